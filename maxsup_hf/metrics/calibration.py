"""How well the probabilities of a classifier fit what happens: proper scores, calibration errors, and whether the
confidence tells right from wrong.

The confidence of a row is its greatest probability. Everything is over a whole evaluation set: the mean of a calibration
error over batches is another, greater number. `CalibrationMetrics` takes the set in batches and gives the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maxsup_hf.metrics._rows import (
    Accumulator,
    as_logits,
    check_logits,
    check_rows,
    chunks,
    counted_rows,
    log_softmax,
)


class ReliabilityCurve(NamedTuple):
    """What a reliability diagram shows; B bins of confidence, each open below and closed above.

    Attributes:
        edges: (B + 1,) limits of the bins.
        rows: (B,) how many are in each.
        confidence: (B,) their mean confidence; NaN in an empty bin.
        accuracy: (B,) share of them that is right; NaN in an empty bin.
    """

    edges: NDArray[np.float64]
    rows: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    def expected_error(self) -> float:
        """Mean over rows of the distance between accuracy and confidence in the row's bin."""
        filled = self.rows > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float((gaps * self.rows[filled]).sum() / self.rows.sum())

    def maximum_error(self) -> float:
        """The greatest of these distances over the bins that hold rows."""
        return float(np.abs(self.accuracy - self.confidence)[self.rows > 0].max())


# ---- proper scores ----


def nll(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log-likelihood of the labels, in nats: the cross-entropy without any smoothing.

    Arguments and errors as in `accuracy`.
    """
    z, y = check_rows(logits, labels)
    return float(_nll(log_softmax(z), y).mean())


def brier(logits: ArrayLike, labels: ArrayLike) -> float:
    """Brier score (Brier 1950): mean over rows of Σ_k (q_k − [k is the label])², in [0, 2]. As in `accuracy`."""
    z, y = check_rows(logits, labels)
    return float(_brier(np.exp(log_softmax(z)), y).mean())


# ---- calibration errors ----


def reliability_curve(logits: ArrayLike, labels: ArrayLike, bins: int = 15, adaptive: bool = False) -> ReliabilityCurve:
    """Accuracy against confidence.

    Args:
        logits, labels: as in `accuracy`.
        bins: how many, at least 1.
        adaptive: bins that hold equally many rows (equal confidences stay together), instead of equally wide ones.

    Raises:
        ValueError: as in `accuracy`, or `bins` below 1.
    """
    _check_bins(bins)
    return _curve(*_confidence(logits, labels), bins, adaptive)


def ece(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599), in [0, 1], with bins of equal width.

    Arguments and errors as in `reliability_curve`.
    """
    return reliability_curve(logits, labels, bins).expected_error()


def adaptive_ece(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """ECE with bins that hold equally many rows (Mukhoti et al. 2020, arXiv 2002.09437). As in `reliability_curve`."""
    return reliability_curve(logits, labels, bins, adaptive=True).expected_error()


def mce(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Maximum calibration error (Guo et al. 2017): the worst bin of `ece`, in [0, 1]. As in `reliability_curve`."""
    return reliability_curve(logits, labels, bins).maximum_error()


def classwise_ece(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Calibration error of every class's probability, averaged over the classes (Kull et al. 2019, arXiv 1910.12656).

    For class k all rows are binned by q_k, and the mean q_k of a bin is held against the share of its rows with label k.
    Arguments and errors as in `reliability_curve`.
    """
    _check_bins(bins)
    z, y = check_rows(logits, labels)
    return _classwise_error(sum(_class_gaps(np.exp(log_softmax(z[i])), y[i], bins) for i in chunks(*z.shape)), len(y))


# ---- what the confidence is worth ----


def confidence_when_wrong(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean confidence of the rows that are predicted wrong, in [0, 1]; NaN where none is. As in `accuracy`."""
    return _mean_confidence(*_confidence(logits, labels), right=False)


def error_auroc(logits: ArrayLike, labels: ArrayLike) -> float:
    """How well confidence tells right predictions from wrong ones: the probability that a right one is the more confident.

    0.5 is chance; ties count half; NaN where all predictions are right, or all wrong. As in `accuracy`.
    """
    confidence, right = _confidence(logits, labels)
    return _auroc(confidence[right], confidence[~right])


def ood_auroc(logits: ArrayLike, ood_logits: ArrayLike) -> float:
    """How well confidence tells rows of the task from others (out of distribution), as in `error_auroc`.

    Args:
        logits: (N, K) of rows that belong to the task.
        ood_logits: (M, K) of rows that do not.

    Raises:
        ValueError: no rows, other shapes, NaN or infinite logits.
    """
    known, unknown = (as_logits(x) for x in (logits, ood_logits))
    if known.ndim != 2 or unknown.ndim != 2 or known.shape[1] != unknown.shape[1]:
        raise ValueError(f"expected logits (N, K) and ood_logits (M, K), got {known.shape} and {unknown.shape}")
    if not len(known) or not len(unknown):
        raise ValueError(f"both sets need rows, got {len(known)} of the task and {len(unknown)} others")
    for z in (known, unknown):
        check_logits(z)
    return _auroc(*(np.exp(log_softmax(z).max(1)) for z in (known, unknown)))


# ---- all of it, in batches ----


class CalibrationMetrics(Accumulator):
    """Accuracy and everything above, of logits that come in batches: `compute_metrics=CalibrationMetrics()`.

    A row leaves two numbers behind, not its K logits; results are those of the functions on the whole set.

    Args:
        bins: as in `reliability_curve`.
        ignore_index: label of ignored rows. Default −100.
    """

    def __init__(self, bins: int = 15, ignore_index: int = -100):
        _check_bins(bins)
        self.bins, self.ignore_index = bins, ignore_index
        self.reset()

    def reset(self) -> None:
        self._confidence: list[NDArray[np.float64]] = []
        self._right: list[NDArray[np.bool_]] = []
        self._nll = self._brier = 0.0
        self._class_gaps: NDArray[np.float64] | None = None

    def update(self, values: Any, labels: Any) -> None:
        """Take in logits (…, K) and integer labels (…). Errors as in `accuracy`; K must stay the same."""
        logits, labels = counted_rows(values, labels, self.ignore_index)
        if self._class_gaps is not None and logits.shape[1] != len(self._class_gaps):
            raise ValueError(f"logits had {len(self._class_gaps)} classes so far, now {logits.shape[1]}")
        for i in chunks(*logits.shape):
            z, y = check_rows(logits[i], labels[i])
            log_q = log_softmax(z)
            q = np.exp(log_q)
            self._confidence.append(q.max(1))
            self._right.append(z.argmax(1) == y)
            self._nll += float(_nll(log_q, y).sum())
            self._brier += float(_brier(q, y).sum())
            gaps = _class_gaps(q, y, self.bins)
            self._class_gaps = gaps if self._class_gaps is None else self._class_gaps + gaps

    def compute(self) -> dict[str, float]:
        """Name -> value; NaN where a value is not defined, as in the functions.

        Raises:
            ValueError: no rows so far.
        """
        if self._class_gaps is None:
            raise ValueError("there are no rows to evaluate")
        confidence, right = np.concatenate(self._confidence), np.concatenate(self._right)
        curve = _curve(confidence, right, self.bins, adaptive=False)
        rows = len(right)
        return {
            "accuracy": float(right.mean()),
            "nll": self._nll / rows,
            "brier": self._brier / rows,
            "ece": curve.expected_error(),
            "adaptive_ece": _curve(confidence, right, self.bins, adaptive=True).expected_error(),
            "classwise_ece": _classwise_error(self._class_gaps, rows),
            "mce": curve.maximum_error(),
            "confidence_when_right": _mean_confidence(confidence, right, right=True),
            "confidence_when_wrong": _mean_confidence(confidence, right, right=False),
            "error_auroc": _auroc(confidence[right], confidence[~right]),
        }

    def curve(self, adaptive: bool = False) -> ReliabilityCurve:
        """The reliability curve of the rows so far."""
        if not self._right:
            raise ValueError("there are no rows to evaluate")
        return _curve(np.concatenate(self._confidence), np.concatenate(self._right), self.bins, adaptive)


# ---- from per-row statistics ----


def _check_bins(bins: int) -> None:
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")


def _confidence(logits: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    z, y = check_rows(logits, labels)
    return np.exp(log_softmax(z).max(1)), z.argmax(1) == y


def _nll(log_q: NDArray[np.float64], y: NDArray[np.integer]) -> NDArray[np.float64]:
    return -log_q[np.arange(len(y)), y]


def _brier(q: NDArray[np.float64], y: NDArray[np.integer]) -> NDArray[np.float64]:
    of_label = q[np.arange(len(y)), y]
    return np.square(q).sum(1) - of_label**2 + (1 - of_label) ** 2


def _bin_of(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.intp]:
    return np.clip(np.searchsorted(edges, values, side="left") - 1, 0, len(edges) - 2)


def _curve(confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int, adaptive: bool) -> ReliabilityCurve:
    shares = np.linspace(0, 1, bins + 1, dtype=np.float64)
    edges = np.asarray(np.quantile(confidence, shares) if adaptive else shares, np.float64)
    which = _bin_of(confidence, edges)
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN in an empty bin, as promised
        means = (np.bincount(which, x, minlength=bins) / count for x in (confidence, right))
        return ReliabilityCurve(edges, count, *means)


def _class_gaps(q: NDArray[np.float64], y: NDArray[np.integer], bins: int) -> NDArray[np.float64]:
    """(K, B): over the rows whose q_k is in the bin, Σ [k is the label] − q_k."""
    classes = q.shape[1]
    which = np.arange(classes) * bins + _bin_of(q, np.linspace(0, 1, bins + 1, dtype=np.float64))
    of_label = np.bincount(which[np.arange(len(y)), y], minlength=classes * bins)
    of_all = np.bincount(which.ravel(), q.ravel(), minlength=classes * bins)
    return np.subtract(of_label, of_all, dtype=np.float64).reshape(classes, bins)


def _classwise_error(gaps: Any, rows: int) -> float:
    return float(np.abs(gaps).sum() / len(gaps) / rows)


def _mean_confidence(confidence: NDArray[np.float64], is_right: NDArray[np.bool_], right: bool) -> float:
    chosen = confidence[is_right == right]
    return float(chosen.mean()) if len(chosen) else float("nan")


def _auroc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    if not len(positive) or not len(negative):
        return float("nan")
    from sklearn.metrics import roc_auc_score

    truth = np.repeat([1, 0], [len(positive), len(negative)])
    return float(roc_auc_score(truth, np.concatenate([positive, negative])))
