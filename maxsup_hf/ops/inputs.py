"""Inputs, made fit for all that looks at them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NONE_IGNORED = -(2**62)  # an ignore_index that no label has
NARROW = (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.uint64)


def gathered(x: Any) -> Any:
    """A DTensor as a tensor of all that its ranks hold; the gradient finds its way back by itself."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def widened(labels: Tensor) -> Tensor:
    """Class indices as int64, before anything is compared with them: −100 is not a number of 8 unsigned bits."""
    return labels.long() if labels.dtype in NARROW else labels


def check_range(labels: Tensor, classes: int, ignore_index: int, name: str = "labels") -> bool:
    """Refuse class indices that no class has. On a GPU the host does not wait: the device itself fails, as in torch.

    Args:
        labels: int64, any shape, in memory that may be read.
        name: of the argument, for the message.

    Returns:
        Whether it is known that no row is ignored.

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
