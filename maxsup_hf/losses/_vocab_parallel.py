"""A loss on logits that are sharded over ranks along the vocabulary (tensor parallelism): no rank ever holds them all."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from maxsup_hf.losses import create_loss
from maxsup_hf.losses._reduction import reduce, split_ignored
from maxsup_hf.ops.formula import RowLoss
from maxsup_hf.ops.inputs import widened
from maxsup_hf.ops.row_stats import upcast
from maxsup_hf.ops.shards import sharded_loss


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
        loss: registered name, or a sum of names, of a loss on row statistics.
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
    rows = local_logits.reshape(-1, local_logits.shape[-1])
    valid, target = split_ignored(widened(labels).reshape(-1), ignore_index)
    ones = valid.to(upcast(rows).dtype)
    with torch.enable_grad():  # what a row's value is multiplied by: reduction knows, and it is linear
        total = reduce(ones.requires_grad_(), valid, reduction, num_items_in_batch)
    (scale,) = torch.autograd.grad(total, ones)
    on_rows = RowLoss(made.spec.formula, made.spec.numbers, {**made.values(progress), **made.options}, {})
    return sharded_loss(rows, target, scale, vocab_start, group, on_rows)
