"""Row statistics, and their gradient, of logits whose classes are sharded over the ranks of a process group.

Each rank computes the statistics of its own part of every row. Gathering these few values per row is enough to compute the
statistics of the complete row, and with them each rank computes the gradient of its part: the backward communicates nothing.
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
    """Σ scale·loss over rows, the same on all ranks; can be differentiated once.

    Args:
        logits: (N, V of this rank).
        target: (N,) int64 indices into the complete vocabulary.
        scale: (N,) factor of each row, 0 for ignored rows.
        start: index of this rank's first class in the complete vocabulary.
        group: the process group; `None` is the default group.

    Raises:
        ValueError: a target outside the vocabulary; on a GPU this is a device-side assertion instead.
    """
    return _ShardedLoss.apply(logits, target, scale, start, group, loss)


class _ShardedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, scale: Tensor, start: int, group: Any, loss: RowLoss) -> Tensor:
        column = target - start
        inside = (column >= 0) & (column < logits.shape[1])
        top = upcast(logits).amax(1)
        dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
        # Masking depends on the distance to the top of the complete row, which may be on another rank. Set such classes to
        # −inf, so that the backend also masks them within this part.
        z = torch.where(upcast(logits) < (top - MASK_DISTANCE)[:, None], -torch.inf, logits)
        backend = backends.fastest(z)
        flags: Any = {"ignore_index": NONE_IGNORED, "moments": loss.needs_moments}
        of_part, index = backend.rows(z, column, **flags)
        stats, owner = _complete_rows(of_part, inside, target, scale, group)
        # Ignored rows may hold NaN, which must reach neither the formula nor its slopes.
        given = {name: torch.where(scale != 0, stats[name], 0) for name in loss.names}
        of_rows, slopes = differentiate(loss.formula, given, loss.values)
        index = torch.where(owner == dist.get_rank(group), index, -1)  # only one rank has the top
        # a selection and not a product alone: a formula that divides by a statistic has infinite slopes at 0
        by_stats = torch.where(scale[:, None] != 0, packed(slopes, of_rows) * scale[:, None], 0)
        gradient = torch.empty_like(z)
        complete = torch.stack([stats[name] for name in COLUMNS], 1)
        backend.rows_grad(z, column, complete, index, by_stats, gradient, **flags)
        ctx.save_for_backward(gradient)
        return torch.where(scale != 0, of_rows * scale, 0).sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("the gradient of vocab_parallel_loss cannot be differentiated again (create_graph=True)")
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), *[None] * 5


def _complete_rows(
    of_part: Tensor, inside: Tensor, target: Tensor, scale: Tensor, group: Any
) -> tuple[dict[str, Tensor], Tensor]:
    """name of `COLUMNS` -> (N,) statistics of complete rows, and (N,) the rank that holds the top."""
    mine = torch.cat([of_part, inside.to(of_part.dtype)[:, None]], 1)
    all_ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(all_ranks, mine, group=group)
    of_ranks = torch.stack(all_ranks).unbind(2)  # (ranks, N) each
    of = dict(zip(COLUMNS, of_ranks[:-1], strict=True))
    _check_labels(target, scale, of_ranks[-1].sum(0))
    top, owner = of["top"].max(0)  # for a tie the lowest rank, hence the lowest class index
    empty = of["top"] == -torch.inf  # all classes of this part are masked, and its other statistics are not finite
    of = {name: torch.where(empty, 0, x) for name, x in of.items() if name != "top"} | {"top": of["top"]}
    # Every rank measured its exponentials from its own top: rescale them to the top of the complete row.
    parts = of["exp_sum"] * torch.exp(of["top"] - top)
    exp_sum, classes = parts.sum(0), of["classes"].sum(0)
    share = parts / exp_sum  # the probability that softmax gives to each rank's classes
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
        # within a rank a class has the probability q/share, so −Σ q log q = Σ share·(entropy of the rank − log share)
        "entropy": (share * (of["entropy"] - log_share)).sum(0),
        "classes": classes,
        "exp_sum": exp_sum,
    }
    return stats, owner


def _check_labels(target: Tensor, scale: Tensor, places: Tensor) -> None:
    """Reject labels outside the vocabulary. All ranks see the same values, so all of them raise.

    Args:
        places: (N,) how many ranks have a column for the label.
    """
    counted = scale != 0
    if target.device.type == "cuda":
        torch._assert_async(((places > 0) | ~counted).all(), "labels must be indices into the complete vocabulary")
    elif (outside := target[(places == 0) & counted]).numel():
        raise ValueError(
            "labels must be indices into the complete vocabulary, or ignore_index, got "
            f"{', '.join(map(str, outside.unique()[:5].tolist()))}, for which no rank has a column of the logits"
        )
