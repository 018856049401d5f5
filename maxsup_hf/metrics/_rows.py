"""What all metrics of rows share: reading logits and labels, refusing probabilities, working through rows in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

CHUNK = 2**20  # elements that are worked on at a time: 8 MiB in float64
# How far the sum of a row of probabilities may be from 1: the rounding error of float32, and that of bfloat16. A single row
# of two bfloat16 logits may well sum to 1, several ones do not.
ROUNDING, HALF_ROUNDING = 1e-5, 2**-8
ROWS_FOR_HALF = 8


# ---- what comes in ----


def as_array(values: Any) -> NDArray[Any]:
    """A NumPy array of anything array-like; tensors may be on a device, require a gradient, or be bfloat16."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


def as_logits(values: Any) -> NDArray[np.float64]:
    """Logits in float64, with −inf at masked classes: those of −inf or the lowest value of the dtype."""
    given = as_array(values)
    z = given.astype(np.float64, copy=False)
    if np.issubdtype(given.dtype, np.floating) and given.ndim:
        # Models mask with the lowest value of their dtype. The Trainer casts bfloat16 logits to float32, whose own lowest
        # value is even lower, so in float32 the threshold is that of bfloat16.
        of_dtype = torch.bfloat16 if given.dtype == np.float32 else torch.tensor(given[:0]).dtype
        masked = given <= torch.finfo(of_dtype).min
        if not np.isneginf(z[masked]).all():
            z = np.where(masked, -np.inf, z)
    return z


def check_rows(logits: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.integer]]:
    """`read_rows` of a complete set.

    Raises:
        ValueError: as in `read_rows`, or the rows are probabilities.
    """
    z, y = read_rows(logits, labels)
    refuse_probabilities(z)
    return z, y


def read_rows(logits: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.integer]]:
    """Logits (N, K) in float64 and integer labels (N,), with N at least 1.

    Raises:
        ValueError: no rows, wrong shapes or types, a label outside [0, K), NaN or infinite logits. −inf is a masked class.
    """
    z, y = as_logits(logits), as_array(labels)
    if z.ndim != 2 or y.shape != z.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"expected logits (N, K) and integer labels (N,), got {z.shape} and {y.dtype} {y.shape}")
    require_rows(len(y))
    check_class_indices(y, z.shape[1])
    check_logits(z)
    return z, y


def check_logits(z: NDArray[np.float64]) -> None:
    """Raises ValueError for a row whose greatest logit is NaN, inf, or −inf (every class masked)."""
    broken = ~np.isfinite(z.max(1))
    if broken.any():
        row = int(broken.argmax())
        raise ValueError(
            f"the logits of {int(broken.sum())} rows are NaN, infinite or all masked, the first in row {row}: "
            f"{z[row, :5]}…; has the model diverged?"
        )


class RowSums:
    """Whether rows, which may come in batches, are probabilities: all of them non-negative and with the sum 1."""

    def __init__(self) -> None:
        self._rows, self._lowest, self._error = 0, np.inf, 0.0

    def update(self, z: NDArray[np.float64]) -> None:
        """Take in rows (N, K), K at least 1."""
        if len(z) and self._lowest >= 0:
            self._rows += len(z)
            self._lowest = min(self._lowest, float(z.min()))
            self._error = max(self._error, float(np.abs(z.sum(1) - 1).max()))
            if z.shape[1] == 1:  # a class of its own has the probability 1, but a logit of 1 may be just that
                self._error = np.inf

    def refuse_probabilities(self) -> None:
        """Raises ValueError if all rows so far are probabilities."""
        tolerance = HALF_ROUNDING if self._rows >= ROWS_FOR_HALF else ROUNDING
        if self._rows and self._lowest >= 0 and self._error <= tolerance:
            raise ValueError(
                f"expected logits, got probabilities: all {self._rows} rows are non-negative and sum to 1. Pass the logits, "
                "or the logarithm of the probabilities"
            )


def refuse_probabilities(z: NDArray[np.float64]) -> None:
    """Raises ValueError if logits (N, K) are probabilities."""
    sums = RowSums()
    sums.update(z)
    sums.refuse_probabilities()


def as_class_indices(values: Any, name: str) -> NDArray[Any]:
    """An integer array of indices of classes, which may come as booleans or as whole floats.

    Raises:
        ValueError: other values, such as probabilities.
    """
    given = as_array(values)
    if np.issubdtype(given.dtype, np.integer):
        return given
    if given.dtype.kind not in "bf" or not np.array_equal(given, np.trunc(given.astype(np.float64))):
        raise ValueError(f"{name} must be indices of classes (integers), got {given.dtype} values")
    return given.astype(np.int64)


def check_class_indices(values: Any, num_classes: int, name: str = "labels") -> None:
    """Raises ValueError for values that are not integers in [0, K)."""
    y = as_array(values)
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"{name} must be integers, got {y.dtype}")
    if y.min() < 0 or y.max() >= num_classes:
        raise ValueError(f"{name} must lie in [0, {num_classes}), got {y.min()} to {y.max()}")


def require_rows(count: int) -> None:
    """Raises ValueError where there are no rows."""
    if not count:
        raise ValueError("there are no rows to evaluate")


def counted_rows(values: Any, labels: Any, ignore_index: int) -> tuple[Any, Any]:
    """(…, K) values and (…) labels as (N, K) and (N,), without the rows whose label is `ignore_index`.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    values = values if hasattr(values, "shape") else np.asarray(values)
    labels = labels if hasattr(labels, "shape") else np.asarray(labels)
    if values.ndim < 2 or tuple(values.shape[:-1]) != tuple(labels.shape):
        raise ValueError(
            f"expected rows of shape (…, K) and one label for each row, got {tuple(values.shape)} and {tuple(labels.shape)}"
        )
    if values.ndim > 2:
        values, labels = values.reshape(-1, values.shape[-1]), labels.reshape(-1)
    counted = labels != ignore_index
    return (values, labels) if counted.all() else (values[counted], labels[counted])


# ---- computing ----


def log_softmax(z: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = z - z.max(1, keepdims=True)  # first, so that large logits cause no rounding in probabilities near 1
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def chunks(rows: int, width: int) -> Iterator[slice]:
    """Slices over `rows` rows of `width` elements, none of more than `CHUNK` elements unless a single row has more."""
    step = max(1, CHUNK // max(1, width))
    return (slice(i, min(i + step, rows)) for i in range(0, rows, step))


def float64_device(values: Any) -> torch.device:
    """Where features are worked on: their own device, or the CPU for arrays and for MPS, which has no float64."""
    if not isinstance(values, Tensor) or values.device.type == "mps":
        return torch.device("cpu")
    return values.device


def float64_chunks(features: Any, labels: Any, device: torch.device, width: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Features in float64 and labels, in chunks so small that the copies need hardly any memory.

    Args:
        features: (N, D), tensor or array; a memmap is read chunk by chunk.
        labels: (N,) integers.
        device: of what is returned.
        width: elements that the caller needs for each row, where that is more than D.

    Raises:
        ValueError: NaN or infinite features.
    """
    for i in chunks(len(labels), max(features.shape[1], width)):
        x, y = (torch.as_tensor(np.array(v[i]) if not isinstance(v, Tensor) else v[i].detach()) for v in (features, labels))
        x, y = x.to(device, torch.float64), y.to(device, torch.int64)
        broken = ~x.isfinite().all(1)
        if broken.any():
            row = i.start + int(broken.nonzero()[0])
            raise ValueError(
                f"features of {int(broken.sum())} rows are NaN or infinite, the first in row {row} of this batch; has the "
                "model diverged?"
            )
        yield x, y
