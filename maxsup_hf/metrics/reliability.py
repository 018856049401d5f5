"""Accuracy against confidence: the bins that calibration errors are computed from."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class ReliabilityCurve(NamedTuple):
    """What a reliability diagram shows; B bins of confidence, each open below and closed above.

    Attributes:
        edges: (B + 1,) limits of the bins.
        rows: (B,) number of rows in each bin.
        confidence: (B,) their mean confidence; NaN in an empty bin.
        accuracy: (B,) share of them that is predicted right; NaN in an empty bin.
    """

    edges: NDArray[np.float64]
    rows: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    def expected_error(self) -> float:
        """Mean over rows of `|accuracy − confidence|` in the row's bin."""
        filled = self.rows > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float((gaps * self.rows[filled]).sum() / self.rows.sum())

    def maximum_error(self) -> float:
        """The greatest `|accuracy − confidence|` of the bins that hold rows."""
        return float(np.abs(self.accuracy - self.confidence)[self.rows > 0].max())


def check_bins(bins: int) -> None:
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")


def bin_confidences(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int, adaptive: bool
) -> ReliabilityCurve:
    """The reliability curve of per-row statistics.

    Args:
        confidence: (N,) greatest probability of each row.
        right: (N,) whether the row is predicted right.
        bins: number of bins.
        adaptive: bins with equally many rows instead of bins of equal width.
    """
    shares = np.linspace(0, 1, bins + 1, dtype=np.float64)
    edges = np.asarray(np.quantile(confidence, shares) if adaptive else shares, np.float64)
    which = bin_of(confidence, edges)
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN in an empty bin, as promised
        means = (np.bincount(which, x, minlength=bins) / count for x in (confidence, right))
        return ReliabilityCurve(edges, count, *means)


def class_gaps(q: NDArray[np.float64], y: NDArray[np.integer], bins: int) -> NDArray[np.float64]:
    """(K, B) sums over the rows whose q_k lies in the bin: Σ ([k is the label] − q_k). Those of batches add up."""
    classes = q.shape[1]
    which = np.arange(classes) * bins + bin_of(q, np.linspace(0, 1, bins + 1, dtype=np.float64))
    of_label = np.bincount(which[np.arange(len(y)), y], minlength=classes * bins)
    of_all = np.bincount(which.ravel(), q.ravel(), minlength=classes * bins)
    return np.subtract(of_label, of_all, dtype=np.float64).reshape(classes, bins)


def classwise_error(gaps: Any, rows: int) -> float:
    """Class-wise ECE of `rows` rows whose `class_gaps` are these."""
    return float(np.abs(gaps).sum() / len(gaps) / rows)


def bin_of(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.intp]:
    """(N,) the bin of each value; what lies outside the edges goes into the first bin or the last."""
    return np.clip(np.searchsorted(edges, values, side="left") - 1, 0, len(edges) - 2)
