"""Precision, recall, F1 and support of each class, by scikit-learn, and their means over classes."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from maxsup_hf.metrics._records import Metric, register_metrics
from maxsup_hf.metrics._rows import as_class_indices
from maxsup_hf.output.files import replacing

register_metrics(
    Metric(
        "macro_f1", "macro-F1", higher_is_better=True,
        formula="mean over classes of 2·precision·recall / (precision + recall)",
        meaning="F1 of each class, averaged, so that rare classes count as much as frequent ones",
    ),
    Metric(
        "balanced_accuracy", "balanced accuracy", higher_is_better=True,
        formula="mean over classes of the recall",
        meaning="accuracy of each class, averaged, so that rare classes count as much as frequent ones",
    ),
)  # fmt: skip


class ClassScores(NamedTuple):
    """One class, or one kind of entity, whose rows are entities.

    Attributes:
        name: of the class.
        support: rows of the class.
        precision: share of the rows predicted as the class that are of it; 0 if no row is predicted so.
        recall: share of the rows of the class that are predicted as it; 0 if no row is of it.
        f1: harmonic mean of precision and recall.
    """

    name: str
    support: int
    precision: float
    recall: float
    f1: float


def per_class(
    labels: ArrayLike, predictions: ArrayLike, names: Sequence[str], counts: ArrayLike | None = None
) -> list[ClassScores]:
    """The scores of each class, in the order of `names`.

    >>> from maxsup_hf.metrics import per_class
    >>> per_class([0, 0, 1], [0, 1, 1], ["cat", "dog"])[0].recall
    0.5

    Args:
        labels: (N,) integers in [0, K).
        predictions: (N,) integers in [0, K).
        names: of the K classes.
        counts: (N,) integers, how many rows each pair of label and prediction stands for. Default: 1.

    Raises:
        ValueError: no rows, different lengths, or values that are not integers in [0, K).
    """
    from sklearn.metrics import precision_recall_fscore_support  # takes a second to import

    y, p = _check(labels, predictions, len(names))
    scores = precision_recall_fscore_support(y, p, labels=range(len(names)), sample_weight=counts, zero_division=0)
    columns = [np.asarray(column).tolist() for column in scores]
    return [
        ClassScores(name, int(support), precision, recall, f1)
        for name, precision, recall, f1, support in zip(names, *columns, strict=True)
    ]


def write_per_class(path: Path, column: str, scores: Iterable[tuple[str, Sequence[ClassScores]]]) -> None:
    """Write the scores of each class as csv.

    Args:
        column: the first one, `split` or `model`.
        scores: name of a split or a model -> its scores, as pairs.
    """
    with replacing(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([column, *ClassScores._fields])
        for name, of_classes in scores:
            writer.writerows([name, *of_class] for of_class in of_classes)


def macro_f1(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Mean F1 over the classes that occur among labels or predictions, in [0, 1], arguments as in `per_class`."""
    from sklearn.metrics import f1_score

    return float(f1_score(*_check(labels, predictions), average="macro", zero_division=0))


def balanced_accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Mean recall over the classes that occur among the labels, in [0, 1], arguments as in `per_class`."""
    y, p = _check(labels, predictions)
    return float(np.mean([(p[y == k] == k).mean() for k in np.unique(y)]))


def _check(labels: ArrayLike, predictions: ArrayLike, classes: int | None = None) -> tuple[Any, Any]:
    y, p = as_class_indices(labels, "labels"), as_class_indices(predictions, "predictions")
    if y.ndim != 1 or y.shape != p.shape or len(y) == 0:
        raise ValueError(f"labels and predictions must be (N,) with N ≥ 1, got {y.shape} and {p.shape}")
    for name, values in (("labels", y), ("predictions", p)):
        if values.min() < 0 or (classes is not None and values.max() >= classes):
            raise ValueError(f"{name} must lie in [0, {classes or 'K'}), got {values.min()} to {values.max()}")
    return y, p
