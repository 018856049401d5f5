"""Metrics of semantic segmentation, from a confusion matrix: matrices of batches add up, so nothing else must be kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def confusion_matrix(
    predictions: ArrayLike, labels: ArrayLike, num_classes: int, ignore_index: int = 255
) -> NDArray[np.int64]:
    """How many pixels of each class were taken for which.

    Args:
        predictions: integers in [0, K), of any shape.
        labels: integers of the same shape, in [0, K) or `ignore_index`, which does not count.
        num_classes: K.

    Returns:
        (K, K); row: label, column: prediction.

    Raises:
        ValueError: shapes that differ, or a value out of range.
    """
    guesses, truths = np.asarray(predictions), np.asarray(labels)
    if guesses.shape != truths.shape:
        raise ValueError(f"expected predictions and labels of one shape, got {guesses.shape} and {truths.shape}")
    counted = truths != ignore_index
    guesses, truths = guesses[counted].astype(np.int64), truths[counted].astype(np.int64)
    for name, values in (("predictions", guesses), ("labels", truths)):
        if values.size and (values.min() < 0 or values.max() >= num_classes):
            raise ValueError(f"{name} must lie in [0, {num_classes}), got {values.min()} to {values.max()}")
    pairs = np.bincount(truths * num_classes + guesses, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def mean_iou(confusion: ArrayLike) -> float:
    """Intersection over union, averaged over the classes that were labelled or predicted anywhere, in [0, 1].

    Args:
        confusion: (K, K), as `confusion_matrix` returns it.

    Raises:
        ValueError: another shape, or no pixels.
    """
    counts = _check(confusion)
    both = counts.diagonal()
    either = counts.sum(0) + counts.sum(1) - both
    return float((both[either > 0] / either[either > 0]).mean())


def pixel_accuracy(confusion: ArrayLike) -> float:
    """Share of the pixels whose class was predicted, in [0, 1]. Arguments and errors as in `mean_iou`."""
    counts = _check(confusion)
    return float(counts.trace() / counts.sum())


def _check(confusion: ArrayLike) -> NDArray[np.integer]:
    counts = np.asarray(confusion)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"expected a confusion matrix (K, K), got {counts.shape}")
    if counts.sum() == 0:
        raise ValueError("there are no pixels to evaluate")
    return counts
