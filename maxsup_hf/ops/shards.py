"""Row statistics of logits whose classes are spread over the ranks of a process group, and their gradient.

Each rank finds the statistics of its own part of every row; what is gathered of a row is a few numbers from each rank, of
which the statistics of the whole row are made. The gradient of a part needs nothing more, so the backward communicates
nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from maxsup_hf.ops import backends
from maxsup_hf.ops.formula import RowLoss, differentiate, packed
from maxsup_hf.ops.inputs import NONE_IGNORED
from maxsup_hf.ops.row_stats import COLUMNS, MASK_DISTANCE, upcast


def sharded_loss(logits: Tensor, target: Tensor, scale: Tensor, start: int, group: Any, loss: RowLoss) -> Tensor:
    """Σ scale·loss over rows, the same on all ranks; differentiable once.

    Args:
        logits: (N, V of this rank).
        target: (N,) int64 indices into the whole vocabulary.
        scale: (N,), 0 for ignored rows.
        start: index of this rank's first class.

    Raises:
        ValueError: on the CPU, a target that no rank has.
    """
    return _Sharded.apply(logits, target, scale, start, group, loss)


class _Sharded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, scale: Tensor, start: int, group: Any, loss: RowLoss) -> Tensor:
        column = target - start
        inside = (column >= 0) & (column < logits.shape[1])
        top = upcast(logits).amax(1)
        dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
        # A class is masked by its distance to the top of the whole row, which this part need not hold.
        z = torch.where(upcast(logits) < (top - MASK_DISTANCE)[:, None], -torch.inf, logits)
        backend = backends.fastest(z)
        flags: Any = {"ignore_index": NONE_IGNORED, "moments": loss.needs_moments}
        of_part, index = backend.rows(z, column, **flags)
        stats, owner = _whole_rows(of_part, inside, target, scale, group)
        given = {name: torch.where(scale != 0, stats[name], 0) for name in loss.names}
        of_rows, slopes = differentiate(loss.formula, given, loss.values)
        index = torch.where(owner == dist.get_rank(group), index, -1)
        by_stats = packed(slopes, of_rows) * scale[:, None]
        gradient = torch.empty_like(z)
        whole = torch.stack([stats[name] for name in COLUMNS], 1)
        backend.rows_grad(z, column, whole, index, by_stats, gradient, **flags)
        ctx.save_for_backward(gradient)
        return torch.where(scale != 0, of_rows * scale, 0).sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("the gradient of vocab_parallel_loss cannot be differentiated again (create_graph=True)")
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), *[None] * 5


def _whole_rows(
    of_part: Tensor, inside: Tensor, target: Tensor, scale: Tensor, group: Any
) -> tuple[dict[str, Tensor], Tensor]:
    """name of `COLUMNS` -> (N,) of whole rows, and the rank that has the top."""
    mine = torch.cat([of_part, inside.to(of_part.dtype)[:, None]], 1)
    everyones = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyones, mine, group=group)
    of_ranks = torch.stack(everyones).unbind(2)  # (ranks, N) each
    of = dict(zip(COLUMNS, of_ranks[:-1], strict=True))
    _check_labels(target, scale, of_ranks[-1].sum(0))
    top, owner = of["top"].max(0)  # the first of equal ranks
    empty = of["top"] == -torch.inf  # a part of which all classes are masked
    of = {name: torch.where(empty, 0, x) for name, x in of.items() if name != "top"} | {"top": of["top"]}
    parts = of["exp_sum"] * torch.exp(of["top"] - top)
    exp_sum, classes = parts.sum(0), of["classes"].sum(0)
    share = parts / exp_sum
    log_share = torch.where(share > 0, share.log(), 0)
    log_sum, label = exp_sum.log(), of["label"].sum(0)
    stats = {
        "cross_entropy": log_sum - (label - top),
        "lse": log_sum + top,
        "top": top,
        "mean": (of["mean"] * of["classes"]).sum(0) / classes.clamp_min(1),
        "label": label,
        "square": of["square"].sum(0),
        "expected": (share * of["expected"]).sum(0),
        "entropy": (share * (of["entropy"] - log_share)).sum(0),
        "classes": classes,
        "exp_sum": exp_sum,
    }
    return stats, owner


def _check_labels(target: Tensor, scale: Tensor, places: Tensor) -> None:
    """Refuse labels that no rank has a column for. All ranks see the same and raise alike; on a GPU nobody waits and the
    device itself fails."""
    counted = scale != 0
    if target.device.type == "cuda":
        torch._assert_async(((places > 0) | ~counted).all(), "labels must be indices into the whole vocabulary")
    elif (outside := target[(places == 0) & counted]).numel():
        raise ValueError(
            "labels must be indices into the whole vocabulary, or ignore_index, got "
            f"{', '.join(map(str, outside.unique()[:5].tolist()))}, for which no rank has a column"
        )
