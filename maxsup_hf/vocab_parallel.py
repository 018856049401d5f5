"""A loss on logits that are sharded over ranks along the vocabulary (tensor parallelism): no rank ever holds them all.

Each rank finds the numbers of its own part of a row; one all_gather of a few numbers a row combines them, and each rank
writes the gradient of its own part. The backward communicates nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from maxsup_hf.losses import create_loss
from maxsup_hf.ops.formula import differentiate
from maxsup_hf.ops.row_stats import MASK_DISTANCE, masked_classes, upcast
from maxsup_hf.reduction import reduce, split_ignored

# What is gathered of each row of a rank's part; numbers that a formula does not ask for cost no more than their bytes.
PARTS = ("top", "exp", "sum", "count", "label", "square", "product", "inside")


def vocab_parallel_loss(
    local_logits: Tensor,
    labels: Tensor,
    group: Any = None,
    loss: str = "maxsup",
    *,
    vocab_start: int | None = None,
    progress: float = 0.0,
    num_items_in_batch: Tensor | float | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    **loss_kwargs: Any,
) -> Tensor:
    """The loss of a batch whose vocabulary is spread over the ranks of a group, in their order.

    Every rank calls it with the same labels and its own columns of the logits, gets the same loss, and the gradient of that
    loss with respect to its columns. Of equal top logits the one with the lowest index over all ranks is the top.

    Args:
        local_logits: (..., V of this rank), floating; the ranks' parts may differ in size.
        labels: (...) integer indices into the whole vocabulary.
        group: process group; `None` is the default one.
        loss: registered name, or a sum of names, of a loss on row numbers.
        vocab_start: index of this rank's first column in the whole vocabulary. `None` asks the other ranks, once more.
        progress, num_items_in_batch, ignore_index: as for a loss on logits.
        reduction: `"mean"` or `"sum"`.
        **loss_kwargs: of the loss.

    Returns:
        0-dim loss, float32 (float64 for float64 logits), the same on all ranks; differentiable once.

    Raises:
        ValueError: an unknown loss or one that needs the logits, another reduction, shapes that do not fit, or (on the
            CPU) a label outside of the vocabulary.
        RuntimeError: there is no process group; (from backward) a second derivative.
    """
    made = create_loss(loss, **loss_kwargs)
    made.check_row_numbers("vocab_parallel_loss")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    if labels.is_floating_point() or labels.shape != local_logits.shape[:-1]:
        raise ValueError(
            f"labels must be integers of shape {tuple(local_logits.shape[:-1])}, one for each row of the logits, got "
            f"{labels.dtype} {tuple(labels.shape)}"
        )
    if not dist.is_initialized():
        raise RuntimeError("vocab_parallel_loss needs a process group: call torch.distributed.init_process_group first")
    if vocab_start is None:
        sizes = [torch.zeros(1, dtype=torch.long, device=local_logits.device) for _ in range(dist.get_world_size(group))]
        dist.all_gather(sizes, torch.full_like(sizes[0], local_logits.shape[-1]), group=group)
        vocab_start = int(torch.cat(sizes)[: dist.get_rank(group)].sum())
    labels = labels.long()
    rows = local_logits.reshape(-1, local_logits.shape[-1])
    valid, target = split_ignored(labels.reshape(-1), ignore_index)
    ones = valid.to(upcast(rows).dtype)
    with torch.enable_grad():  # what a row's value is multiplied by: reduction knows, and it is linear
        total = reduce(ones.requires_grad_(), valid, reduction, num_items_in_batch)
    (scale,) = torch.autograd.grad(total, ones)
    values = {**made.values(progress), **made.options}
    return _Parallel.apply(rows, target, scale, vocab_start, group, made.spec.formula, made.spec.numbers, values)


def _check_labels(labels: Tensor, scale: Tensor, places: Tensor) -> None:
    """Refuse labels that no rank has a column for. All ranks see the same and raise alike; on the CPU only, since elsewhere
    the host would wait."""
    if labels.device.type == "cpu":
        outside = labels[(places == 0) & (scale != 0)]
        if outside.numel():
            raise ValueError(
                "labels must be indices into the whole vocabulary, or ignore_index, got "
                f"{', '.join(map(str, outside.unique()[:5].tolist()))}, for which no rank has a column"
            )


class _Parallel(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        scale: Tensor,
        start: int,
        group: Any,
        formula: Any,
        names: Any,
        values: Any,
    ) -> Tensor:
        z = upcast(logits)
        inside = (target >= start) & (target < start + z.shape[1])
        column = torch.where(inside, target - start, 0)[:, None]
        # Classes are masked by the distance to the largest logit of the whole row. Before it is known, by that of this part.
        masked = masked_classes(z) | (z == -torch.inf)
        finite = z.masked_fill(masked, 0)
        local_top = z.amax(1)
        e = torch.exp(z - local_top[:, None].clamp_min(torch.finfo(z.dtype).min)).masked_fill(masked, 0)
        parts = {
            "top": local_top,
            "exp": e.sum(1),
            "sum": finite.sum(1),
            "count": (~masked).sum(1).to(z.dtype),
            "label": torch.where(inside, z.gather(1, column).squeeze(1), 0),
            "square": finite.square().sum(1),
            "product": (e * finite).sum(1),
            "inside": inside.to(z.dtype),
        }
        mine = torch.stack([parts[name] for name in PARTS], 1)
        everyones = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(everyones, mine, group=group)
        found = dict(zip(PARTS, torch.stack(everyones).unbind(2), strict=True))  # (ranks, N) each

        top, owner = found["top"].max(0)  # the first of equal ranks
        _check_labels(target, scale, found["inside"].sum(0))
        shrink = torch.exp(found["top"] - top)
        far = found["top"] < top - MASK_DISTANCE  # a part of which all classes are masked
        for name in ("sum", "count", "square"):
            found[name] = torch.where(far, 0, found[name])
        masked = z < (top - MASK_DISTANCE)[:, None]
        finite = z.masked_fill(masked, 0)
        total = (found["exp"] * shrink).sum(0)
        log_sum, label, count = total.log(), found["label"].sum(0), found["count"].sum(0)
        numbers = {
            "cross_entropy": log_sum - (label - top),
            "lse": log_sum + top,
            "top": top,
            "mean": found["sum"].sum(0) / count.clamp_min(1),
            "label": label,
            "square": found["square"].sum(0),
            "expected": (found["product"] * shrink).sum(0) / total,
            "classes": count,
        }
        counted = {name: torch.where(scale != 0, numbers[name], 0) for name in names}
        label_term, penalty, by = differentiate(formula, counted, values, scale, scale)

        grad = torch.exp(z - top[:, None]).masked_fill(masked, 0) / total[:, None]
        slope = by.get("lse", torch.zeros_like(top)) + by.get("cross_entropy", 0)
        if "expected" in by:
            grad = grad * (slope[:, None] + by["expected"][:, None] * (1 + finite - numbers["expected"][:, None]))
        else:
            grad = grad * slope[:, None]
        if "mean" in by:
            grad = grad + (by["mean"] / count.clamp_min(1))[:, None]
        if "square" in by:
            grad = grad + 2 * by["square"][:, None] * finite
        grad = grad.masked_fill(masked, 0)
        of_label = by.get("label", torch.zeros_like(top)) - by.get("cross_entropy", 0)
        grad = grad.scatter_add(1, column, torch.where(inside, of_label, 0)[:, None])
        if "top" in by:
            here = owner == dist.get_rank(group)
            grad = grad.scatter_add(1, z.argmax(1, keepdim=True), torch.where(here, by["top"], 0)[:, None])
        ctx.save_for_backward(grad.masked_fill((scale == 0)[:, None], 0).to(logits.dtype))
        return torch.where(scale != 0, (label_term + penalty) * scale, 0).sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("the gradient of vocab_parallel_loss cannot be differentiated again (create_graph=True)")
        (grad,) = ctx.saved_tensors
        return (grad * upstream.to(grad.dtype), *[None] * 7)
