"""Checks and conversions of labels and logits that every operation needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NONE_IGNORED = -(2**62)  # an ignore_index that no label equals
NARROW = (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.uint64)


def gathered(x: Any) -> Any:
    """A DTensor gathered from all ranks (differentiable); anything else unchanged."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def widened(labels: Tensor) -> Tensor:
    """Class indices as int64. Comparing narrower labels with ignore_index would be wrong: uint8 cannot represent −100."""
    return labels.long() if labels.dtype in NARROW else labels


def check_range(labels: Tensor, classes: int, ignore_index: int, name: str = "labels") -> bool:
    """Reject class indices out of range. On a GPU this is a device-side assertion, as in torch, so the host does not wait.

    Args:
        labels: int64, any shape, whose values may be read.
        name: the argument's name in the error message.

    Returns:
        True if it is known that no row is ignored.

    Raises:
        ValueError: a class index that is neither in [0, classes) nor `ignore_index`.
    """
    if labels.device.type == "cuda":
        counted = labels != ignore_index
        torch._assert_async((~counted | ((labels >= 0) & (labels < classes))).all(), f"{name} must lie in [0, {classes})")
        return False
    if labels.device.type != "cpu" or not labels.numel():
        return False
    low, high = labels.aminmax()
    if low.item() >= 0 and high.item() < classes:
        return not 0 <= ignore_index < classes
    counted = labels[labels != ignore_index]
    if counted.numel() and not (int(counted.min()) >= 0 and int(counted.max()) < classes):
        raise ValueError(
            f"{name} must lie in [0, {classes}), or be ignore_index={ignore_index}, got values from "
            f"{int(counted.min())} to {int(counted.max())}"
        )
    return False
