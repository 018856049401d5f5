"""Metrics that see a data set batch by batch, and are a `compute_metrics` for the Trainer."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maxsup_hf.metrics._rows import RowSums, chunks, counted_rows, read_rows, require_rows


class Accumulator(ABC):
    """A metric that sees one batch after the other: `update` each, then `compute`, then `reset` before the next data set.

    It is also a `compute_metrics` for the Trainer, with and without `batch_eval_metrics=True`.

    Attributes:
        ignore_index: label of ignored rows.
        next_token: whether, in the Trainer, the row at position t belongs to the label at t + 1, as in causal language
            models. `None`: to be set by a MaxSup trainer, which knows its model; elsewhere labels belong to their own
            position, with a warning where that may be wrong.
    """

    def __init__(self, ignore_index: int = -100, next_token: bool | None = None):
        self.ignore_index, self.next_token = ignore_index, next_token
        self.reset()

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
            The scalars of `compute()` that are defined on these rows (not NaN). Empty before the last batch.
        """
        values, labels = prediction.predictions, prediction.label_ids
        self.update(*self._aligned(values[0] if isinstance(values, tuple) else values, labels))
        if not compute_result:
            return {}
        try:
            found = self.compute()
        finally:
            self.reset()
        return {name: value for name, value in found.items() if isinstance(value, float) and value == value}

    def _aligned(self, values: Any, labels: Any) -> tuple[Any, Any]:
        """Rows and the labels that they predict."""
        if getattr(labels, "ndim", 0) < 2:
            return values, labels
        if self.next_token:
            return values[..., :-1, :], labels[..., 1:]
        if self.next_token is None:
            name = type(self).__name__
            warnings.warn(
                f"{name} compares the prediction at each position with the label at that position. For a causal language "
                f"model, which predicts the next token, pass {name}(next_token=True); otherwise next_token=False",
                stacklevel=3,
            )
        return values, labels


class LogitAccumulator(Accumulator):
    """An accumulator of logits and labels, which a derived class takes in by `add`."""

    def reset(self) -> None:
        self._rows, self._classes = 0, 0
        self._sums = RowSums()

    def update(self, values: Any, labels: Any) -> None:
        """Take in logits (…, K) and integer labels (…). Errors as in `accuracy`; K must stay the same."""
        logits, labels = counted_rows(values, labels, self.ignore_index)
        if self._rows and logits.shape[1] != self._classes:
            raise ValueError(f"logits had {self._classes} classes so far, now {logits.shape[1]}")
        for i in chunks(*logits.shape):
            z, y = read_rows(logits[i], labels[i])
            self._sums.update(z)
            self.add(z, y)
            self._rows, self._classes = self._rows + len(y), z.shape[1]

    @abstractmethod
    def add(self, z: NDArray[np.float64], y: NDArray[np.integer]) -> None:
        """Take in logits (N, K) and labels (N,) that were checked."""

    def check_rows(self) -> None:
        """Raises ValueError where there were no rows so far, or all of them are probabilities."""
        require_rows(self._rows)
        self._sums.refuse_probabilities()
