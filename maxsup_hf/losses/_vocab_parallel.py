"""A loss on logits that are sharded over ranks along the vocabulary (tensor parallelism), without gathering them."""

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
    """The loss of a batch whose vocabulary is sharded over the ranks of a process group, in the order of the ranks.

    Every rank passes the same labels and its own columns of the logits. Every rank gets the same loss, and the gradient of
    that loss with respect to its columns. If the top logit is tied, the lowest index over all ranks is the top.

    Args:
        local_logits: (..., V of this rank), floating; the ranks' parts may differ in size.
        labels: (...) integer indices into the complete vocabulary.
        group: process group; `None` is the default group.
        loss: name of a registered loss on row statistics, or a sum of names.
        vocab_start: index of this rank's first column in the complete vocabulary. `None` asks the other ranks, which takes
            one more communication.
        progress, num_items_in_batch, ignore_index: as for a loss on logits.
        reduction: `"mean"` or `"sum"`.
        **loss_kwargs: parameters of the loss, as for `create_loss`.

    Returns:
        0-dim loss, float32 (float64 for float64 logits), the same on all ranks, which can be differentiated once.

    Raises:
        ValueError: an unknown loss or one that needs the logits, another reduction, invalid shapes, or (on the CPU) a label
            outside the vocabulary.
        RuntimeError: there is no process group; (from backward) a second derivative.

    Example:
        >>> import torch
        >>> import torch.distributed as dist
        >>> from maxsup_hf import vocab_parallel_loss
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # one rank
        >>> print(f"{vocab_parallel_loss(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([1]), loss='maxsup'):.3f}")
        1.508
        >>> dist.destroy_process_group()
    """
    made = create_loss(loss, **loss_kwargs)
    made.require_row_statistics("vocab_parallel_loss")
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
    # The reduction is linear in the values of rows, so its gradient is the factor of each row.
    with torch.enable_grad():
        total = reduce(ones.requires_grad_(), valid, reduction, num_items_in_batch)
    (scale,) = torch.autograd.grad(total, ones)
    on_rows = RowLoss(made.spec.formula, made.spec.statistics, {**made.values(progress), **made.options}, {})
    return sharded_loss(rows, target, scale, vocab_start, group, on_rows)
