"""What every metric of rows shares: how logits and labels come in, how batches add up, how the Trainer calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

CHUNK = 2**20  # numbers that are worked on at a time: 8 MiB in float64


def as_array(values: Any) -> NDArray[Any]:
    """A NumPy array of anything array-like; tensors may be on a device, need a gradient, or be bfloat16."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


def as_logits(values: Any) -> NDArray[np.float64]:
    """Logits in float64, with −inf at masked classes: those of −inf or the smallest number of the dtype."""
    given = as_array(values)
    z = given.astype(np.float64, copy=False)
    if np.issubdtype(given.dtype, np.floating) and given.ndim:
        # A float16 or bfloat16 minimum that was upcast to float32 counts too.
        of_dtype = torch.bfloat16 if given.dtype == np.float32 else torch.tensor(given[:0]).dtype
        masked = given <= torch.finfo(of_dtype).min
        if not np.isneginf(z[masked]).all():
            z = np.where(masked, -np.inf, z)
    return z


def check_rows(logits: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.integer]]:
    """Logits (N, K) in float64 and integer labels (N,), with N at least 1.

    Raises:
        ValueError: no rows, other shapes or types, a label outside [0, K), NaN or infinite logits. −inf is a masked class.
    """
    z, y = as_logits(logits), as_array(labels)
    if z.ndim != 2 or y.shape != z.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"expected logits (N, K) and integer labels (N,), got {z.shape} and {y.dtype} {y.shape}")
    if len(y) == 0:
        raise ValueError("there are no rows to evaluate")
    if y.min() < 0 or y.max() >= z.shape[1]:
        raise ValueError(f"labels must lie in [0, {z.shape[1]}), got {y.min()} to {y.max()}")
    check_logits(z)
    return z, y


def check_logits(z: NDArray[np.float64]) -> None:
    """Raises ValueError for a row whose greatest logit is NaN, inf, or −inf (every class masked)."""
    broken = ~np.isfinite(z.max(1))
    if broken.any():
        row = int(broken.argmax())
        raise ValueError(
            f"logits of {int(broken.sum())} rows have NaN, inf or no class that is not masked, the first in row {row}: "
            f"{z[row, :5]}…; has the model diverged?"
        )


def log_softmax(z: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = z - z.max(1, keepdims=True)  # first, so that large logits leave no rounding in probabilities near 1
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def counted_rows(values: Any, labels: Any, ignore_index: int) -> tuple[Any, Any]:
    """(…, K) values and (…) labels as (N, K) and (N,), without the rows whose label is `ignore_index`.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    values = values if hasattr(values, "shape") else np.asarray(values)
    labels = labels if hasattr(labels, "shape") else np.asarray(labels)
    if values.ndim < 2 or tuple(values.shape[:-1]) != tuple(labels.shape):
        raise ValueError(
            f"expected rows of shape (…, K) and one label for each of them, got {tuple(values.shape)} and "
            f"{tuple(labels.shape)}"
        )
    if values.ndim > 2:
        values, labels = values.reshape(-1, values.shape[-1]), labels.reshape(-1)
    counted = labels != ignore_index
    return (values, labels) if counted.all() else (values[counted], labels[counted])


def chunks(rows: int, width: int) -> Iterator[slice]:
    """Slices over `rows` rows of `width` numbers, none of more than `CHUNK` numbers unless a row alone is."""
    step = max(1, CHUNK // max(1, width))
    return (slice(i, min(i + step, rows)) for i in range(0, rows, step))


class Accumulator(ABC):
    """A metric that sees one batch after the other: `update` each, then `compute`, then `reset` before the next set.

    It is also a `compute_metrics` for the Trainer, with and without `batch_eval_metrics=True`.
    """

    @abstractmethod
    def update(self, values: Any, labels: Any) -> None: ...

    @abstractmethod
    def compute(self) -> dict[str, Any]: ...

    @abstractmethod
    def reset(self) -> None: ...

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, float]:
        """What the Trainer calls.

        Args:
            prediction: `transformers.EvalPrediction`. Of several predictions the first counts: the logits.
            compute_result: whether this is the last batch.

        Returns:
            Of `compute()` what is a number; without what is not defined (NaN) on these rows. Empty before the last batch.
        """
        values, labels = prediction.predictions, prediction.label_ids
        self.update(values[0] if isinstance(values, tuple) else values, labels)
        if not compute_result:
            return {}
        try:
            found = self.compute()
        finally:
            self.reset()
        return {name: value for name, value in found.items() if isinstance(value, float) and value == value}
