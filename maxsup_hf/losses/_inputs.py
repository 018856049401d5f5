"""What a user hands to a loss: checked, and in the dtypes and the layout that everything else expects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maxsup_hf.ops.autograd import can_be_read
from maxsup_hf.ops.inputs import check_range, widened


def normalized(labels: Tensor, weight: Any, logits: Tensor) -> tuple[Tensor, Tensor | None]:
    """Class indices as int64 and class weights in the precision of the arithmetic, before anything looks at them: a sum of
    weights is not a number of 16 bits."""
    labels = widened(labels)
    if weight is not None:
        number = torch.float64 if logits.dtype == torch.float64 else torch.float32
        weight = torch.as_tensor(weight).to(logits.device, number)
    return labels, weight


def check_inputs(logits: Tensor, labels: Tensor, ignore_index: int, weight: Tensor | None) -> bool:
    """Refuse what would give a wrong loss or an obscure error.

    Returns:
        Whether it is known that no row is ignored.
    """
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if logits.ndim == 0:
        raise ValueError("logits must have a class dimension, got a 0-dim tensor")
    num_classes = logits.shape[-1]
    if num_classes < 2:
        raise ValueError(
            f"logits must have at least 2 classes, got shape {tuple(logits.shape)}: with one class the loss is 0 whatever "
            "the model does (for regression use a regression loss)"
        )
    if labels.is_floating_point():
        if labels.shape != logits.shape:
            raise ValueError(
                f"floating labels are class probabilities and must have the logits' shape {tuple(logits.shape)}, got "
                f"{tuple(labels.shape)}; class indices must be integers"
            )
    elif labels.dtype == torch.bool or labels.is_complex():
        raise TypeError(f"labels must be integer class indices or floating class probabilities, got {labels.dtype}")
    elif labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels must have shape {tuple(logits.shape[:-1])}, one class index for each row of logits "
            f"{tuple(logits.shape)}, got {tuple(labels.shape)}"
        )
    if weight is not None and weight.shape != (num_classes,):
        raise ValueError(f"weight must have shape ({num_classes},), one for each class, got {tuple(weight.shape)}")
    if labels.is_floating_point():
        return True
    return can_be_read(labels) and check_range(labels, num_classes, ignore_index)


def in_layout(logits: Tensor) -> Tensor:
    """(..., K) as (N, K), or as (outer, K, inner) where memory holds the classes outside of something else, as in images
    (N, K, H, W); without a copy where the layout allows it."""
    if logits.ndim == 2:
        return logits
    if logits.ndim > 2 and logits.numel() and logits.stride(-1) > logits.stride(-2):
        return logits.movedim(-1, 1).flatten(2)
    return logits.reshape(-1, logits.shape[-1])
