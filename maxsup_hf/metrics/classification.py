"""Accuracy, negative log-likelihood and calibration of logits, over a whole evaluation set at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def accuracy(logits: ArrayLike, labels: ArrayLike) -> float:
    """Share of rows whose greatest logit is the label's, in [0, 1]; of equal logits the first counts.

    Args:
        logits: (N, K).
        labels: (N,) integers in [0, K).

    Raises:
        ValueError: no rows, other shapes, or a label outside [0, K).
    """
    z, y = _check(logits, labels)
    return float((z.argmax(1) == y).mean())


def nll(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log-likelihood of the labels, in nats: the cross-entropy without any smoothing.

    Arguments and errors as in `accuracy`.
    """
    z, y = _check(logits, labels)
    return float(-_log_softmax(z)[np.arange(len(y)), y].mean())


def ece(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599), in [0, 1].

    Rows are binned by their confidence (the greatest probability) into `bins` intervals of equal width, open below and
    closed above; the error is the mean over rows of the distance between the accuracy and the mean confidence of the
    row's bin.

    Arguments and errors as in `accuracy`; `bins` must be at least 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    z, y = _check(logits, labels)
    confidence = np.exp(_log_softmax(z).max(1))
    edges = np.linspace(0, 1, bins + 1)
    bin_of_row = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    gaps = np.bincount(bin_of_row, (z.argmax(1) == y) - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(y))


def _log_softmax(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return z - np.logaddexp.reduce(z, axis=1, keepdims=True)


def _check(logits: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.integer]]:
    z, y = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if z.ndim != 2 or y.shape != z.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"expected logits (N, K) and integer labels (N,), got {z.shape} and {y.dtype} {y.shape}")
    if len(y) == 0:
        raise ValueError("there are no rows to evaluate")
    if y.min() < 0 or y.max() >= z.shape[1]:
        raise ValueError(f"labels must lie in [0, {z.shape[1]}), got {y.min()} to {y.max()}")
    return z, y
