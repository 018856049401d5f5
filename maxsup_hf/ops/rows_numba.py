"""Row statistics and their gradient on the CPU, compiled by numba.

Logits and `out` are (N, K), or (outer, K, inner) for rows of K classes with any stride, in which case rows are ordered outer-major,
inner-minor; soft targets have the shape of the logits, everything else has one entry per row. Nothing of the size of the
logits is allocated: layouts and dtypes that cannot be read in place go through a small buffer, a few rows at a time.

numba is imported at the first call, which also compiles what it needs (about a second, cached on disk).
"""

from __future__ import annotations

from torch import Tensor

SMALL = 1 << 15  # elements; `small_rows_and_grad` is meant for batches up to this size


def why_unavailable() -> str | None:
    """The reason for which this backend cannot be used in this environment, or None if it can."""
    raise NotImplementedError


def rows(logits: Tensor, target: Tensor, *, ignore_index: int, square: bool, expected: bool) -> tuple[Tensor, Tensor]:
    """Compute the statistics of each row.

    Args:
        logits: (N, K) or (outer, K, inner); float32, float64, bfloat16 or float16.
        target: (N,) int64 class indices, or floating class probabilities of the shape of `logits`.
        ignore_index: rows with this class index are ignored. Not used with class probabilities.
        square, expected: whether these two statistics are needed; otherwise their columns are 0.

    Returns:
        Statistics (N, 8), float32 (float64 for float64 logits), and the index of the top (N,), int64. Ignored rows hold 0.
        A class index outside of [0, K), as in a shard of the classes, gives label 0.
    """
    raise NotImplementedError


def rows_grad(
    logits: Tensor, target: Tensor, stats: Tensor, index: Tensor, slopes: Tensor, out: Tensor, *, ignore_index: int
) -> None:
    """Write to `out` the gradient with respect to the logits, given `slopes` (N, 7) or (1, 7), the derivatives of the loss with
    respect to the first seven statistics. `stats` and `index` are what `rows` returned, or belong to a whole row of which
    `logits` is a shard; a class index outside of [0, K) is then in another shard.
    """
    raise NotImplementedError


def rows_and_grad(
    logits: Tensor, target: Tensor, slopes: Tensor, out: Tensor, *, ignore_index: int, square: bool, expected: bool
) -> tuple[Tensor, Tensor]:
    """`rows` and `rows_grad` in one pass over each row, for slopes known beforehand."""
    raise NotImplementedError


def serves_small(logits: Tensor, target: Tensor) -> bool:
    """Whether `small_rows_and_grad` takes these: up to `SMALL` contiguous float32 logits and int64 class indices."""
    raise NotImplementedError


def small_rows_and_grad(
    logits: Tensor, target: Tensor, slopes: tuple[float, ...], out: Tensor, *, ignore_index: int, mean: bool
) -> tuple[float, ...]:
    """`rows_and_grad` in one call with little overhead, for one set of slopes and statistics that are only needed summed.

    Args:
        logits: contiguous (N, K) float32.
        target: contiguous (N,) int64.
        slopes: seven floats, the same for all rows.
        out: contiguous (N, K) float32, which receives the gradient.
        mean: divide the slopes by the number of rows that are not ignored (by 1 if there are none).

    Returns:
        The sums over the rows of the eight statistics, and the number of rows that are not ignored.
    """
    raise NotImplementedError
