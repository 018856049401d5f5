"""Row statistics and their gradient on the CPU, compiled by numba.

Logits and `out` are (N, K) or (outer, K, inner), with any strides; the rows of the latter are ordered outer-major,
inner-minor. Soft targets have the shape of the logits, everything else has one entry per row. Nothing of the size of the
logits is allocated: layouts and dtypes that cannot be read in place go through a small buffer, a few rows at a time.

numba is imported at the first call, which also compiles what it needs (about a second, cached on disk).
"""

from __future__ import annotations

import getpass
import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maxsup_hf.ops import _pool
from maxsup_hf.ops.row_stats import empty_stats

_SHARED = 1 << 18  # elements up to which one thread does everything: waking another takes longer
_LABELS = 1 << 14  # that may be looked at by each part of `loss_and_grad`
_COLUMN_CLASSES = 2048  # with more, rows that lie side by side leave the cache, and long sums lose digits
_CPU = torch.device("cpu")
_BLOCK = 1 << 18  # elements that are copied at a time where a layout or a dtype needs a copy


def why_unavailable() -> str | None:
    """The reason for which this backend cannot be used in this environment, or None if it can. Imports numba."""
    try:
        import numba  # noqa: F401
    except Exception as error:  # an installation can be broken in more ways than being absent
        return f"numba cannot be imported ({type(error).__name__}: {error})"
    return None


def rows(logits: Tensor, target: Tensor, *, ignore_index: int, moments: bool) -> tuple[Tensor, Tensor]:
    """Compute the statistics of each row.

    Args:
        logits: (N, K) or (outer, K, inner); float32, float64, bfloat16 or float16.
        target: (N,) int64 class indices, or floating class probabilities of the shape of `logits`.
        ignore_index: rows with this class index are ignored. Not used with class probabilities.
        moments: whether `square`, `expected` and `entropy` are needed; otherwise their columns are 0.

    Returns:
        Statistics (N, 10), float32 (float64 for float64 logits), in the order of `COLUMNS`, and the index of the top (N,),
        int64. Ignored rows hold 0. A class index outside of [0, K), as in a shard of the classes, gives label 0.
    """
    stats, index = empty_stats(logits)
    _run(logits, target, None, None, stats, index, ignore_index, moments, True)
    return stats, index


def rows_grad(
    logits: Tensor,
    target: Tensor,
    stats: Tensor,
    index: Tensor,
    slopes: Tensor,
    out: Tensor,
    *,
    ignore_index: int,
    moments: bool,
) -> None:
    """Write to `out`, which may be `logits`, the gradient with respect to the logits.

    Args:
        stats, index: what `rows` returned, or those of whole rows of which `logits` is a shard. A class index or an index
            of the top outside of [0, K) is then in another shard.
        slopes: (N, 8), or (1, 8) for all rows: the derivatives of the loss with respect to each of `SLOPES`.
        moments: as it was for `rows`; where it is False the last three slopes are taken for 0.
    """
    _run(logits, target, out, slopes, stats.contiguous(), index.contiguous(), ignore_index, moments, False)


def rows_and_grad(
    logits: Tensor, target: Tensor, slopes: Tensor, out: Tensor, *, ignore_index: int, moments: bool
) -> tuple[Tensor, Tensor]:
    """`rows` and `rows_grad` in one pass over each row, for slopes known beforehand. `out` must not be `logits`."""
    stats, index = empty_stats(logits)
    _run(logits, target, out, slopes, stats, index, ignore_index, moments, True)
    return stats, index


def serves_loss(logits: Tensor, target: Tensor) -> bool:
    """Whether `loss_and_grad` takes these: contiguous logits of two classes or more and int64 class indices, not too many
    rows. Not float16, in
    which α/(K·N) is 0 before a gradient scaler has scaled it."""
    return (
        logits.dim() == 2
        and 0 < logits.shape[0] <= _LABELS
        and logits.shape[1] > 1
        and (logits.dtype is torch.float32 or logits.dtype is torch.bfloat16)
        and target.dtype is torch.int64
        and target.shape == logits.shape[:1]
        and logits.is_contiguous()
        and target.is_contiguous()
        and logits.device == target.device == _CPU
    )


def loss_and_grad(
    logits: Tensor, target: Tensor, slopes: tuple[float, ...], out: Tensor, *, ignore_index: int, divisor: float
) -> tuple[float, float, int]:
    """`rows_and_grad` in one call with little overhead, for one set of slopes and statistics that are only needed summed.

    Args:
        logits: contiguous (N, K) float32 or bfloat16.
        target: contiguous (N,) int64.
        slopes: eight floats, the same for all rows.
        out: as `logits`, receives the gradient.
        divisor: what the slopes are divided by; 0 stands for the number of rows that are not ignored (1 if there are none).

    Returns:
        Σ slope·statistic and the cross-entropy, both divided, and the number of rows that are not ignored, or −1 if a class
        index is out of range.
    """
    rows, classes = logits.shape
    kernel = _loss_kernel(logits.dtype, slopes[5] != 0 or slopes[6] != 0 or slopes[7] != 0)
    arguments = logits.data_ptr(), target.data_ptr(), out.data_ptr(), rows, classes, ignore_index, divisor, *slopes
    if rows * classes <= _SHARED or rows == 1 or torch.get_num_threads() == 1:
        return kernel(*arguments, 0, rows)
    parts: dict[int, tuple[float, float, int]] = {}

    def task(first: int, last: int) -> None:
        parts[first] = kernel(*arguments, first, last)

    _pool.share(task, rows, torch.get_num_threads())
    found = [parts[first] for first in sorted(parts)]  # in an order that does not depend on who was faster
    return sum(part[0] for part in found), sum(part[1] for part in found), found[0][2]


def _run(
    logits: Tensor,
    target: Tensor,
    out: Tensor | None,
    slopes: Tensor | None,
    stats: Tensor,
    index: Tensor,
    ignore_index: int,
    moments: bool,
    with_stats: bool,
) -> None:
    """Call the kernel for this layout on all rows, on several threads if there are many."""
    rows, classes = stats.shape[0], logits.shape[1]
    if classes == 0:
        raise ValueError(f"logits must have at least one class, got the shape {tuple(logits.shape)}")
    if rows == 0:
        return
    soft = target.is_floating_point()
    slopes = stats if slopes is None else slopes.to(stats.dtype).contiguous()  # not read if None
    arrays = [logits, logits if out is None else out, *([target] if soft else [])]
    steps = _row_steps(arrays) if not soft or target.dtype is stats.dtype else None
    columns = steps is None
    if columns and logits.dtype is stats.dtype and not soft and classes <= _COLUMN_CLASSES:
        steps = _column_steps(arrays)
    if steps is None:
        _by_blocks(logits, target, out, slopes, stats, index, ignore_index, moments, with_stats)
        return
    target = target if soft else target.contiguous()
    kernel = _kernel(logits.dtype, columns, soft, moments, with_stats, out is not None)
    arguments = (
        *(logits.data_ptr(), target.data_ptr(), 0 if out is None else out.data_ptr()),
        *(slopes.data_ptr(), stats.data_ptr(), index.data_ptr()),
        *(int(slopes.shape[0] > 1), ignore_index, classes, *steps),
    )
    threads = torch.get_num_threads()
    if threads == 1 or rows == 1 or rows * classes <= _SHARED:
        kernel(*arguments, 0, rows)
    else:
        _pool.share(partial(kernel, *arguments), rows, threads)


def _row_steps(arrays: list[Tensor]) -> tuple[int, ...] | None:
    """The distances between rows of logits, gradient and class probabilities, if every row is contiguous."""
    steps = []
    for x in arrays:
        if x.stride(1) != 1 or (x.dim() == 3 and x.shape[0] > 1 and x.stride(0) != x.shape[2] * x.stride(2)):
            return None
        steps.append(x.stride(0) if x.dim() == 2 else x.stride(2))
    return (*steps, 0) if len(steps) == 2 else tuple(steps)


def _column_steps(arrays: list[Tensor]) -> tuple[int, ...] | None:
    """The number of rows that lie side by side, and the strides of classes and of such blocks of logits and gradient."""
    if any(x.stride(0 if x.dim() == 2 else 2) != 1 for x in arrays):
        return None
    blocks = (step for x in arrays for step in (x.stride(1), 0 if x.dim() == 2 else x.stride(0)))
    return arrays[0].shape[0 if arrays[0].dim() == 2 else 2], *blocks


def _by_blocks(
    logits: Tensor, target: Tensor, out: Tensor | None, slopes: Tensor, stats: Tensor, index: Tensor, *rest: Any
) -> None:
    """`_run` by way of contiguous copies in the dtype of the arithmetic, of blocks that stay in cache."""
    outer, inner = (1, logits.shape[0]) if logits.dim() == 2 else (logits.shape[0], logits.shape[2])
    step = max(1, _BLOCK // logits.shape[1])
    soft = target.is_floating_point()
    transposed = soft or logits.shape[1] > _COLUMN_CLASSES

    def piece(x: Tensor, o: int, part: slice) -> Tensor:
        if x.dim() == 2:
            return x[part]
        x = x[o : o + 1, :, part]
        return x[0].T if transposed else x

    for o in range(outer):
        for start in range(0, inner, step):
            part = slice(start, min(start + step, inner))
            rows = slice(o * inner + part.start, o * inner + part.stop)
            z = piece(logits, o, part).to(stats.dtype).contiguous()
            t = piece(target, o, part).to(stats.dtype).contiguous() if soft else target[rows]
            g = None if out is None else torch.empty_like(z)
            of_rows = slopes[rows] if slopes.shape[0] > 1 else slopes
            _run(z, t, g, of_rows, stats[rows], index[rows], *rest)
            if out is not None and g is not None:
                piece(out, o, part).copy_(g)


@cache
def _kernel(
    dtype: torch.dtype, columns: bool, soft: bool, moments: bool, with_stats: bool, with_gradient: bool
) -> Callable[..., None]:
    """The compiled kernel for a dtype and a layout."""
    import numpy as np
    from numba import types

    from maxsup_hf.ops._numba_columns import make_column_kernel
    from maxsup_hf.ops._numba_kernels import make_kernel

    number = np.float64 if dtype is torch.float64 else np.float32
    flags = (moments, with_stats, with_gradient)
    name = _name(dtype, columns, soft, *flags)
    if columns:
        return _compile(make_column_kernel(name, number, *flags), types.void(*[types.int64] * 16))
    return _compile(make_kernel(name, _memory(dtype), number, soft, *flags), types.void(*[types.int64] * 14))


def _memory(dtype: torch.dtype) -> type:
    """How kernels see numbers of this dtype in memory."""
    import numpy as np

    from maxsup_hf.ops import _numba_arithmetic as arithmetic

    narrow = {torch.bfloat16: arithmetic.BFLOAT16, torch.float16: arithmetic.FLOAT16}
    return {torch.float32: np.float32, torch.float64: np.float64, **narrow}[dtype]


@cache
def _loss_kernel(dtype: torch.dtype, moments: bool) -> Callable[..., tuple[float, float, int]]:
    from numba import types

    from maxsup_hf.ops._numba_kernels import make_loss_kernel

    arguments = [*[types.int64] * 6, *[types.float64] * 9, *[types.int64] * 2]
    result = types.Tuple((types.float64, types.float64, types.int64))
    name = _name("loss", dtype, moments)
    return _compile(make_loss_kernel(name, _memory(dtype), moments), result(*arguments))


def _name(*kinds: Any) -> str:
    """A name under which only this very function is cached, for this code and this CPU.

    numba keeps all functions of one name in one list, which two processes that fill it at once can get wrong.
    """
    kind = hashlib.sha256("".join([_fingerprint(), *map(str, kinds)]).encode())
    return f"rows_{kind.hexdigest()[:16]}"


@cache
def _fingerprint() -> str:
    """What compiled code depends on besides numba's version, which numba looks at itself."""
    import llvmlite.binding as llvm

    sources = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("_numba_*.py"))]
    cpu = llvm.get_host_cpu_name() + llvm.get_host_cpu_features().flatten()
    return hashlib.sha256(b"".join([*sources, cpu.encode()])).hexdigest()


def _compile(function: Callable[..., Any], signature: Any) -> Callable[..., Any]:
    """Compile with numba, or load what was compiled before.

    numba keeps compiled functions in `NUMBA_CACHE_DIR`, beside the source, or in the user's cache folder. Where none of
    these can be written it refuses, and a temporary folder serves.
    """
    from numba import njit
    from numba.core import config

    settings: Any = config

    def compiled(cache: bool) -> Callable[..., Any]:
        return njit([signature], nogil=True, error_model="numpy", cache=cache)(function)

    try:
        return compiled(cache=True)
    except Exception:  # no folder, a full disk, a damaged file: none of it a reason to fail
        pass
    configured = settings.CACHE_DIR
    try:
        settings.CACHE_DIR = _temporary_folder()
        return compiled(cache=True)
    except Exception:
        return compiled(cache=False)
    finally:
        settings.CACHE_DIR = configured


def _temporary_folder() -> str:
    """A folder that nobody else can write to, since what is loaded from it is run."""
    folder = Path(tempfile.gettempdir()) / f"maxsup_hf_{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o077):
        raise PermissionError(f"{folder} belongs to someone else or can be written by others")
    return str(folder)
