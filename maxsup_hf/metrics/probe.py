"""Transfer of frozen features to a task: a linear probe, and nearest neighbours."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maxsup_hf.metrics._records import Metric, register_metrics
from maxsup_hf.metrics._rows import as_array

L2_GRID: NDArray[np.float64] = np.logspace(-6, 5, 45, dtype=np.float64)

register_metrics(
    Metric(
        "linear_probe_accuracy", "linear probe", "accuracy of a linear probe", higher_is_better=True,
        formula="test accuracy of logistic regression on frozen features, l2 chosen on validation rows",
        paper="Kornblith et al. 2021, arXiv 2010.16402",
    ),
    Metric(
        "knn_accuracy", "k-NN", "accuracy of the nearest neighbours", higher_is_better=True,
        formula="test accuracy of the majority class of the k nearest training rows by cosine distance",
    ),
)  # fmt: skip


class ProbeResult(NamedTuple):
    """The result of `linear_probe`.

    Attributes:
        accuracy: share of the test rows predicted right, in [0, 1]; of the validation rows if there are no test rows.
        l2: the strength that was chosen: the best on the validation rows, the greatest of equally good ones.
        l2_values: (L,) all strengths, descending.
        validation_accuracies: (L,) accuracy on the validation rows for each strength.
        converged: (L,) whether the optimiser converged.
    """

    accuracy: float
    l2: float
    l2_values: NDArray[np.float64]
    validation_accuracies: NDArray[np.float64]
    converged: NDArray[np.bool_]


def linear_probe(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    validation_features: ArrayLike,
    validation_labels: ArrayLike,
    test_features: ArrayLike | None = None,
    test_labels: ArrayLike | None = None,
    *,
    l2: Sequence[float] | NDArray[Any] = L2_GRID,
    max_iter: int = 1000,
) -> ProbeResult:
    """Multinomial logistic regression on frozen features, as Kornblith et al. 2021 (arXiv 2010.16402) measure transfer.

    The objective is Σ cross-entropy + l2/2·‖W‖² with a free bias (scikit-learn, L-BFGS, C = 1/l2; of two classes it fits one
    weight vector). The strength is chosen on the validation rows; with test rows the probe is then refitted on training and
    validation rows together. Features are used as they are: scale them first if they need it.

    Args:
        train_features, train_labels: (N, D) and (N,) integers of at least two classes.
        validation_features, validation_labels: (M, D) and (M,).
        test_features, test_labels: (T, D) and (T,), or neither; not used for choosing.
        l2: strengths to try, positive. Default: 45 log-spaced values in 1e-6…1e5. Fewer are faster.
        max_iter: L-BFGS steps for each strength; each fit starts where the next stronger one ended.

    Raises:
        ValueError: shapes that do not fit, features that are NaN or infinite, a label without a training row, a single
            class, or a strength that is not positive and finite.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x, y = _check("train", train_features, train_labels)
    held_x, held_y = _check("validation", validation_features, validation_labels, x, y)
    if len(np.unique(y)) < 2:
        raise ValueError(f"train_labels are all {y[0]}; a probe needs at least two classes")
    strengths = np.sort(as_array(l2).astype(np.float64).ravel())[::-1]
    if not strengths.size or not (np.isfinite(strengths) & (strengths > 0)).all():
        raise ValueError(f"l2 must be one or more positive finite strengths, got {l2!r}")
    if (test_features is None) != (test_labels is None):
        raise ValueError("test_features and test_labels belong together: give both or neither")
    test = None if test_features is None else _check("test", test_features, test_labels, x, y)

    probe = LogisticRegression(max_iter=max_iter, warm_start=True)
    accuracies, converged = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the result says which fits converged
        for strength in strengths:
            probe.set_params(C=1 / strength).fit(x, y)
            accuracies.append(float((probe.predict(held_x) == held_y).mean()))
            converged.append(bool(probe.n_iter_.max() < max_iter))
        best = int(np.argmax(accuracies))
        accuracy = accuracies[best]
        if test is not None:
            final = LogisticRegression(max_iter=max_iter, C=1 / strengths[best])
            final.fit(np.concatenate([x, held_x]), np.concatenate([y, held_y]))
            accuracy = float((final.predict(test[0]) == test[1]).mean())
    return ProbeResult(accuracy, float(strengths[best]), strengths, np.array(accuracies), np.array(converged))


def knn_accuracy(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    *,
    k: int = 20,
) -> float:
    """Share of the test rows whose class is that of most of the k nearest training rows by cosine distance, in [0, 1].

    Ties go to the smallest class (scikit-learn's KNeighborsClassifier).

    Args:
        train_features, train_labels, test_features, test_labels: as in `linear_probe`.
        k: neighbours, in [1, N]. Default 20.

    Raises:
        ValueError: as in `linear_probe`, or k out of range.
    """
    from sklearn.neighbors import KNeighborsClassifier

    x, y = _check("train", train_features, train_labels)
    test_x, test_y = _check("test", test_features, test_labels, x, y)
    if not 1 <= k <= len(y):
        raise ValueError(f"k must lie in [1, {len(y)}], the number of training rows, got {k}")
    return float((KNeighborsClassifier(k, metric="cosine").fit(x, y).predict(test_x) == test_y).mean())


def _check(
    name: str, features: Any, labels: Any, train_x: NDArray[Any] | None = None, train_y: NDArray[Any] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.integer]]:
    x, y = as_array(features).astype(np.float64, copy=False), as_array(labels)
    if x.ndim != 2 or y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer) or not len(y):
        raise ValueError(
            f"expected {name}_features (N, D) and integer {name}_labels (N,), N at least 1, got {x.shape} and {y.dtype} "
            f"{y.shape}"
        )
    if not np.isfinite(x).all():
        raise ValueError(f"{name}_features are NaN or infinite in row {int((~np.isfinite(x)).any(1).argmax())}")
    if train_x is not None and x.shape[1] != train_x.shape[1]:
        raise ValueError(f"{name}_features have {x.shape[1]} dimensions, train_features {train_x.shape[1]}")
    if train_y is not None and (unknown := np.setdiff1d(y, train_y)).size:
        raise ValueError(f"{name}_labels have classes without a training row: {unknown[:10].tolist()}")
    return x, y
