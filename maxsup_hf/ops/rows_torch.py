"""Row statistics and their gradient in torch operations, block by block: any device, and a CPU without numba."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from maxsup_hf.ops.row_stats import MASK_DISTANCE, STATISTICS, as_rows, row_stats, upcast

BLOCK = 2**20  # elements worked on at a time on a CPU, for each thread; an accelerator takes larger blocks


def rows(logits: Tensor, target: Tensor, *, ignore_index: int, square: bool, expected: bool) -> tuple[Tensor, Tensor]:
    """Compute the statistics (N, 8) of each row and the index (N,) of its top; see `maxsup_hf.ops.rows_numba.rows`."""
    with torch.no_grad():
        z, t = as_rows(logits), _target_rows(target)
        stats = torch.empty(len(z), 8, dtype=_number(z), device=z.device)
        index = torch.empty(len(z), dtype=torch.int64, device=z.device)
        for part in _blocks(z):
            found = row_stats(z[part], t[part], ignore_index=ignore_index)
            stats[part] = torch.stack([found[name] for name in STATISTICS], 1)
            index[part] = upcast(z[part]).argmax(1)
        if not t.is_floating_point():
            index.masked_fill_(t == ignore_index, 0)
        return stats, index


def rows_grad(
    logits: Tensor, target: Tensor, stats: Tensor, index: Tensor, slopes: Tensor, out: Tensor, *, ignore_index: int
) -> None:
    """Write to `out` the gradient with respect to the logits for `slopes` (N, 7) or (1, 7).

    `stats` and `index` are what `rows` returned for these logits.
    """
    with torch.no_grad():
        z, t = as_rows(logits), _target_rows(target)
        slopes = slopes.to(stats.dtype).expand(len(z), 7)
        into = out if out.ndim == 2 else torch.empty_like(z)
        for part in _blocks(z):
            into[part] = _gradient(z[part], t[part], stats[part], index[part], slopes[part], ignore_index)
        if out.ndim == 3:
            out.copy_(into.view(out.shape[0], out.shape[2], out.shape[1]).movedim(-1, 1))


def rows_and_grad(
    logits: Tensor, target: Tensor, slopes: Tensor, out: Tensor, *, ignore_index: int, square: bool, expected: bool
) -> tuple[Tensor, Tensor]:
    """`rows` and `rows_grad`, for slopes known beforehand."""
    stats, index = rows(logits, target, ignore_index=ignore_index, square=square, expected=expected)
    rows_grad(logits, target, stats, index, slopes, out, ignore_index=ignore_index)
    return stats, index


def _gradient(z: Tensor, target: Tensor, stats: Tensor, index: Tensor, slopes: Tensor, ignore_index: int) -> Tensor:
    z = upcast(z)
    entropy, lse, top, mean, label, square, expected = slopes[:, None].unbind(2)
    of = dict(zip(STATISTICS, stats[:, None].unbind(2), strict=True))
    masked = z < of["top"] - MASK_DISTANCE
    finite = torch.where(masked, 0, z)
    soft = target.to(z.dtype) if target.is_floating_point() else None
    mass = 1 if soft is None else soft.sum(1, keepdim=True)
    grad = z.softmax(1)
    grad = grad * (entropy * mass + lse + expected * (1 + finite - of["expected"]))
    grad = grad + mean / of["classes"].clamp_min(1) + 2 * square * finite
    grad = torch.where(masked, 0, grad)
    columns = torch.arange(z.shape[1], device=z.device)
    at_label = (columns == target[:, None]).to(z.dtype) if soft is None else soft
    grad = grad + (label - entropy) * at_label + top * (columns == index[:, None])
    unused = (slopes == 0).all(1)
    if soft is None:
        unused |= target == ignore_index
    return torch.where(unused[:, None], 0, grad)


def _target_rows(target: Tensor) -> Tensor:
    return as_rows(target) if target.is_floating_point() else target


def _number(z: Tensor) -> torch.dtype:
    return torch.float64 if z.dtype == torch.float64 else torch.float32


def _blocks(z: Tensor) -> Iterator[slice]:
    size = BLOCK * (torch.get_num_threads() if z.device.type == "cpu" else 64)
    step = max(1, size // max(1, z.shape[1]))
    return (slice(start, start + step) for start in range(0, len(z), step))
