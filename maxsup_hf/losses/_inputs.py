"""Checks of what a user passes to a loss, and its conversion to the dtypes and layouts that the operations expect."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maxsup_hf.losses._spec import LossSpec
from maxsup_hf.ops.autograd import can_be_read
from maxsup_hf.ops.inputs import check_range, widened


def normalized(labels: Tensor, weight: Any, logits: Tensor) -> tuple[Tensor, Tensor | None]:
    """Class indices as int64, and class weights as float32 (float64 for float64 logits) on the device of the logits.

    Done before any other use: 16 bits are too few for a sum of weights.
    """
    labels = widened(labels)
    if weight is not None:
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        weight = torch.as_tensor(weight).to(logits.device, dtype)
    return labels, weight


def check_inputs(logits: Tensor, labels: Tensor, ignore_index: int, weight: Tensor | None) -> bool:
    """Reject inputs that would give a wrong loss or an obscure error.

    Returns:
        True if it is known that no row is ignored.
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


def check_supported(spec: LossSpec, labels: Tensor, weight: Tensor | None, weight_in_batch: Any, kernel: str) -> None:
    """Reject labels, class weights and kernels for which a loss is not defined.

    Raises:
        ValueError: says what to leave out or use instead.
    """
    soft = labels.is_floating_point()
    if soft and "labels" in spec.arguments:
        raise ValueError(
            f"loss {spec.name!r} needs integer labels, got soft ones ({labels.dtype}): it depends on which class is the "
            "label. Turn off Mixup, CutMix and other soft labels, or use another loss"
        )
    if soft and weight is not None and not spec.weighs_soft_labels:
        raise ValueError(
            f"weight cannot be combined with soft labels in loss {spec.name!r}: class weights would scale a term that is "
            "not a sum over classes. Leave out weight, or use integer labels"
        )
    if weight_in_batch is not None and (soft or weight is None):
        given = "no weight" if weight is None else "weight"
        raise ValueError(
            "weight_in_batch divides the class-weighted sum of integer labels, so it needs weight and integer labels, got "
            f"{given} and labels of {labels.dtype}; leave it out"
        )
    if spec.needs_logits and kernel in ("cpu", "triton"):
        raise ValueError(
            f"kernel={kernel!r} cannot compute loss {spec.name!r} here: it supports losses on row statistics, and this one "
            "needs the logits themselves; use kernel='auto'"
        )


def in_layout(logits: Tensor) -> Tensor:
    """Logits (..., K) in a layout of the row operation, without a copy if memory allows it.

    Returns:
        (N, K), or (outer, K, inner) if the classes are not adjacent in memory, as in images (N, K, H, W).
    """
    if logits.ndim == 2:
        return logits
    if logits.ndim > 2 and logits.numel() and logits.stride(-1) > logits.stride(-2):
        return logits.movedim(-1, 1).flatten(2)
    return logits.reshape(-1, logits.shape[-1])


def labels_in_layout(labels: Tensor, rows: Tensor) -> Tensor:
    """Labels that fit `rows`, as returned by `in_layout`: (N,) class indices, or probabilities of the shape of `rows`."""
    if not labels.is_floating_point():
        return labels.reshape(-1)
    if rows.ndim == 3:
        return labels.movedim(-1, 1).flatten(2)
    return labels.reshape(rows.shape)
