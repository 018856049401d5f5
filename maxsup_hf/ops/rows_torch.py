"""Row statistics and their gradient in torch operations, block by block: any device, and a CPU without numba."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from maxsup_hf.ops.row_stats import COLUMNS, MASK_DISTANCE, SLOPES, as_rows, empty_stats, row_stats, upcast

BLOCK = 2**20  # elements processed at a time, for each thread of a CPU; accelerators take larger blocks


def rows(logits: Tensor, target: Tensor, *, ignore_index: int, moments: bool) -> tuple[Tensor, Tensor]:
    """Compute the statistics (N, 10) of each row and the index (N,) of its top; see `maxsup_hf.ops.rows_numba.rows`."""
    with torch.no_grad():
        z, t = as_rows(logits), _target_rows(target)
        stats, index = empty_stats(logits)
        for part in _blocks(z):
            here, inside = z[part], t[part]
            if not t.is_floating_point():  # a class index outside the row, as in a shard of the classes, counts as logit 0
                elsewhere = (inside != ignore_index) & ((inside < 0) | (inside >= z.shape[1]))
                inside = torch.where(elsewhere, 0, inside)
            found = row_stats(here, inside, COLUMNS, ignore_index=ignore_index)
            if not t.is_floating_point():
                found["label"] = torch.where(elsewhere, 0, found["label"])
                found["cross_entropy"] = torch.where(elsewhere, found["lse"], found["cross_entropy"])
            stats[part] = torch.stack([found[name] for name in COLUMNS], 1)
            index[part] = upcast(here).argmax(1)
        if not t.is_floating_point():
            index.masked_fill_(t == ignore_index, 0)
        return stats, index


def rows_grad(
    logits: Tensor, target: Tensor, stats: Tensor, index: Tensor, slopes: Tensor, out: Tensor, *, ignore_index: int,
    moments: bool,
) -> None:  # fmt: skip
    """Write to `out` the gradient with respect to the logits; see `maxsup_hf.ops.rows_numba.rows_grad`."""
    with torch.no_grad():
        z, t = as_rows(logits), _target_rows(target)
        slopes = slopes.to(stats.dtype).expand(len(z), len(SLOPES))
        into = out if out.ndim == 2 else torch.empty_like(z)
        for part in _blocks(z):
            into[part] = _gradient(z[part], t[part], stats[part], index[part], slopes[part], ignore_index)
        if out.ndim == 3:
            out.copy_(into.view(out.shape[0], out.shape[2], out.shape[1]).movedim(-1, 1))


def rows_and_grad(
    logits: Tensor, target: Tensor, slopes: Tensor, out: Tensor, *, ignore_index: int, moments: bool
) -> tuple[Tensor, Tensor]:
    """`rows` and `rows_grad` for slopes known in advance."""
    stats, index = rows(logits, target, ignore_index=ignore_index, moments=moments)
    rows_grad(logits, target, stats, index, slopes, out, ignore_index=ignore_index, moments=moments)
    return stats, index


def multiply(grad: Tensor, factor: Tensor) -> Tensor:
    """Multiply `grad` by a 0-dim factor, in place."""
    return grad.mul_(factor)


def _gradient(z: Tensor, target: Tensor, stats: Tensor, index: Tensor, slopes: Tensor, ignore_index: int) -> Tensor:
    """The gradient of some rows, by the table in `maxsup_hf.ops.row_stats`."""
    z = upcast(z)
    by = dict(zip(SLOPES, slopes[:, None].unbind(2), strict=True))
    of = dict(zip(COLUMNS, stats[:, None].unbind(2), strict=True))
    soft = target.to(z.dtype) if target.is_floating_point() else None
    mass = 1 if soft is None else soft.sum(1, keepdim=True)
    x = z - of["top"]
    masked = x < -MASK_DISTANCE
    q = x.exp() / of["exp_sum"]
    shifted_expected = of["exp_sum"].log() - of["entropy"]
    grad = q * (by["cross_entropy"] * mass + by["lse"] + by["expected"])
    # A term without a slope must not be added even as a product with 0: its other factor may be infinite.
    by_x = by["expected"] - by["entropy"]
    grad = torch.where(by_x == 0, grad, grad + by_x * q * (x - shifted_expected))
    grad = grad + by["mean"] / of["classes"].clamp_min(1)
    grad = torch.where(by["square"] == 0, grad, grad + 2 * by["square"] * z)
    grad = torch.where(masked, 0, grad)
    columns = torch.arange(z.shape[1], device=z.device)
    at_label = (columns == target[:, None]).to(z.dtype) if soft is None else soft
    grad = grad + (by["label"] - by["cross_entropy"]) * at_label + by["top"] * (columns == index[:, None])
    unused = (slopes == 0).all(1)  # the gradient is then 0 even if the logits are NaN
    if soft is None:
        unused |= target == ignore_index
    return torch.where(unused[:, None], 0, grad)


def _target_rows(target: Tensor) -> Tensor:
    """Class probabilities as (N, K); class indices as they are."""
    return as_rows(target) if target.is_floating_point() else target


def _blocks(z: Tensor) -> Iterator[slice]:
    """Slices of rows, small enough that temporary tensors stay small."""
    size = BLOCK * (torch.get_num_threads() if z.device.type == "cpu" else 64)
    step = max(1, size // max(1, z.shape[1]))
    return (slice(start, start + step) for start in range(0, len(z), step))
