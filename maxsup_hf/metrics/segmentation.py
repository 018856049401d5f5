"""Metrics of semantic segmentation, computed from a confusion matrix; those of batches add up."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maxsup_hf.metrics._records import Metric, register_metrics
from maxsup_hf.metrics._rows import as_class_indices, check_class_indices

register_metrics(
    Metric(
        "mean_iou", "mean IoU", higher_is_better=True, rank=10,
        formula="mean over classes of pixels labelled and predicted / pixels labelled or predicted",
        meaning="overlap of predicted and labelled pixels of each class, averaged: 1 is perfect",
    ),
    Metric("pixel_accuracy", "pixel accuracy", higher_is_better=True, rank=11, formula="share of pixels predicted right"),
)  # fmt: skip


def confusion_matrix(
    predictions: ArrayLike, labels: ArrayLike, num_classes: int, ignore_index: int = 255
) -> NDArray[np.int64]:
    """How many pixels of each class were predicted as each class.

    Args:
        predictions: integers in [0, K), of any shape.
        labels: integers of the same shape, in [0, K) or `ignore_index`, whose pixels are ignored.
        num_classes: K.

    Returns:
        (K, K); row: label, column: prediction.

    Raises:
        ValueError: different shapes, or a value that is not an integer or is out of range.
    """
    guesses, truths = as_class_indices(predictions, "predictions"), as_class_indices(labels, "labels")
    if guesses.shape != truths.shape:
        raise ValueError(f"expected predictions and labels of the same shape, got {guesses.shape} and {truths.shape}")
    counted = truths != ignore_index
    guesses, truths = guesses[counted].astype(np.int64), truths[counted].astype(np.int64)
    if truths.size:
        check_class_indices(guesses, num_classes, "predictions")
        check_class_indices(truths, num_classes)
    pairs = np.bincount(truths * num_classes + guesses, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def mean_iou(confusion: ArrayLike) -> float:
    """Intersection over union, averaged over the classes that are labelled or predicted anywhere, in [0, 1].

    Args:
        confusion: (K, K), as `confusion_matrix` returns it.

    Raises:
        ValueError: a wrong shape, or no pixels.
    """
    counts = _check(confusion)
    both = counts.diagonal()
    either = counts.sum(0) + counts.sum(1) - both
    return float((both[either > 0] / either[either > 0]).mean())


def pixel_accuracy(confusion: ArrayLike) -> float:
    """Share of the pixels predicted right, in [0, 1]. Arguments and errors as in `mean_iou`."""
    counts = _check(confusion)
    return float(counts.trace() / counts.sum())


def _check(confusion: ArrayLike) -> NDArray[np.integer]:
    counts = np.asarray(confusion)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"expected a confusion matrix (K, K), got {counts.shape}")
    if not (counts >= 0).all():
        raise ValueError("a confusion matrix counts pixels, so that no value is negative or NaN")
    if counts.sum() == 0:
        raise ValueError("there are no pixels to evaluate")
    return counts
