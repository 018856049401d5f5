"""Count the rows of a cross-entropy that the model gets wrong: those on which MaxSup and label smoothing differ."""

from __future__ import annotations

import torch
from torch import Tensor

from maxsup_hf.ops.inputs import gathered, widened
from maxsup_hf.trainer.lm_head_patch import LazyLogits

CHUNK = 1024  # rows whose logits are computed at a time, where the loss is computed without them


@torch.no_grad()
def count_wrong(logits: Tensor | LazyLogits, target: Tensor, ignore_index: int) -> Tensor:
    """Rows whose top logit is not the label's, and all rows that are not ignored.

    A row of class probabilities is right only if all of them are on the class with the top logit: otherwise the label's
    logit, Σ t_k z_k, is less than the top one.

    Args:
        logits: (..., K).
        target: (...) class indices, or (..., K) class probabilities.
        ignore_index: label of ignored rows.

    Returns:
        (2,) int64.
    """
    top = _top(logits)
    if target.is_floating_point():
        counted = torch.ones_like(top, dtype=torch.bool)
        on_top = target.gather(-1, top[..., None]).squeeze(-1)
        wrong = on_top < target.sum(-1) * (1 - 1e-6)
    else:
        target = widened(target)
        counted = target != ignore_index
        wrong = counted & (top != target)
    return torch.stack([wrong.sum(), counted.sum()])


def _top(logits: Tensor | LazyLogits) -> Tensor:
    """(...) class with the top logit."""
    if isinstance(logits, Tensor):
        return gathered(logits).argmax(-1)
    head = logits.head._replace(weight=gathered(logits.head.weight), bias=gathered(logits.head.bias))
    rows = logits.hidden.reshape(-1, logits.hidden.shape[-1])
    weight = head.weight.to(rows.dtype)
    top = []
    for chunk in rows.split(CHUNK):
        z = rows.new_empty((len(chunk), len(weight)))
        head.write(chunk, weight, z)
        top.append(z.argmax(-1))
    return torch.cat(top).reshape(logits.shape[:-1])
