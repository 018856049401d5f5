"""Proper scores, calibration errors, and whether the confidence of a classifier tells right predictions from wrong ones.

The confidence of a row is its greatest probability. All metrics are over a complete evaluation set: the mean of a
calibration error over batches is a different, greater number. `CalibrationMetrics` takes the set in batches and gives the
exact result.

`maxsup_hf.metrics` says how to add a metric.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maxsup_hf.metrics._accumulator import LogitAccumulator
from maxsup_hf.metrics._records import Metric, register_metrics
from maxsup_hf.metrics._rows import (
    as_logits,
    check_logits,
    check_rows,
    chunks,
    log_softmax,
    refuse_probabilities,
)
from maxsup_hf.metrics.reliability import ReliabilityCurve, bin_confidences, check_bins, class_gaps, classwise_error

GUO = "Guo et al. 2017, arXiv 1706.04599"

register_metrics(
    Metric(
        "nll", "NLL", "negative log-likelihood", higher_is_better=False, rank=30,
        formula="mean over rows of −log q_label",
        meaning="cross-entropy of the probabilities, without any penalty: small if the label gets a high probability",
    ),
    Metric(
        "brier", "Brier", "Brier score", higher_is_better=False, rank=31,
        formula="mean over rows of Σ_k (q_k − [k is the label])²",
        paper="Brier 1950, Monthly Weather Review 78",
        meaning="squared distance of the probabilities from the label: 0 is perfect, 2 the worst",
    ),
    Metric(
        "ece", "ECE", "expected calibration error (15 bins)", higher_is_better=False, rank=40,
        formula="mean over rows of |accuracy − confidence| in the row's bin of confidence",
        paper=GUO,
        meaning="average gap between confidence and accuracy; 0 means that of the rows with 80 % confidence, 80 % are right",
    ),
    Metric(
        "adaptive_ece", "adaptive ECE", "ECE of bins with equally many rows", higher_is_better=False,
        formula="ECE whose bins are quantiles of the confidence",
        paper="Mukhoti et al. 2020, arXiv 2002.09437",
        meaning="the same as ECE, over groups of equally many rows",
    ),
    Metric(
        "classwise_ece", "class-wise ECE", "ECE of each class's own probability", higher_is_better=False,
        formula="mean over classes of the ECE of q_k against [k is the label]",
        paper="Kull et al. 2019, arXiv 1910.12656",
        meaning="the same as ECE, for the probability of every class and not of the predicted one only",
    ),
    Metric(
        "mce", "MCE", "maximum calibration error", higher_is_better=False,
        formula="greatest |accuracy − confidence| of a bin",
        paper=GUO,
        meaning="gap between confidence and accuracy in the worst group of rows",
    ),
    Metric(
        "confidence_when_right", "confidence when right",
        formula="mean confidence of the rows predicted right",
        meaning="average probability of the predicted class, over the rows that are predicted right",
    ),
    Metric(
        "confidence_when_wrong", "confidence when wrong",
        formula="mean confidence of the rows predicted wrong", rank=41,
        meaning="average probability of the predicted class, over the rows that are predicted wrong",
    ),
    Metric(
        "error_auroc", "AUROC of errors", "AUROC of confidence, right against wrong", higher_is_better=True,
        formula="probability that a right prediction is more confident than a wrong one; ties count half",
        meaning="how well the confidence tells right predictions from wrong ones: 1 is perfect, 0.5 is chance",
    ),
    Metric(
        "ood_auroc", "AUROC of OOD", "AUROC of confidence, in against out of distribution", higher_is_better=True,
        formula="probability that a row of the task is more confident than a row that is not; ties count half",
    ),
)  # fmt: skip


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
        bins: number of bins, at least 1.
        adaptive: bins with equally many rows (equal confidences stay together) instead of bins of equal width.

    Raises:
        ValueError: as in `accuracy`, or `bins` below 1.
    """
    check_bins(bins)
    return bin_confidences(*_confidence(logits, labels), bins, adaptive)


def ece(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599), in [0, 1], with bins of equal width.

    Arguments and errors as in `reliability_curve`.
    """
    return reliability_curve(logits, labels, bins).expected_error()


def adaptive_ece(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """ECE of bins with equally many rows (Mukhoti et al. 2020, arXiv 2002.09437). As in `reliability_curve`."""
    return reliability_curve(logits, labels, bins, adaptive=True).expected_error()


def mce(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Maximum calibration error (Guo et al. 2017): the worst bin of `ece`, in [0, 1]. As in `reliability_curve`."""
    return reliability_curve(logits, labels, bins).maximum_error()


def classwise_ece(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Calibration error of every class's probability, averaged over the classes (Kull et al. 2019, arXiv 1910.12656).

    For class k all rows are binned by q_k, and the mean q_k of a bin is compared with the share of its rows labelled k.
    Arguments and errors as in `reliability_curve`.
    """
    check_bins(bins)
    z, y = check_rows(logits, labels)
    return classwise_error(sum(class_gaps(np.exp(log_softmax(z[i])), y[i], bins) for i in chunks(*z.shape)), len(y))


# ---- does the confidence tell right from wrong? ----


def confidence_when_wrong(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean confidence of the rows that are predicted wrong, in [0, 1]; NaN if there are none. As in `accuracy`."""
    return _mean_confidence(*_confidence(logits, labels), right=False)


def error_auroc(logits: ArrayLike, labels: ArrayLike) -> float:
    """How well confidence tells right predictions from wrong ones: the probability that a right one is more confident.

    0.5 is chance; ties count half; NaN if all predictions are right, or all wrong. Arguments and errors as in `accuracy`.
    """
    confidence, right = _confidence(logits, labels)
    return _auroc(confidence[right], confidence[~right])


def ood_auroc(logits: ArrayLike, ood_logits: ArrayLike) -> float:
    """How well confidence tells rows of the task from rows out of distribution, as in `error_auroc`.

    Args:
        logits: (N, K) of rows that belong to the task.
        ood_logits: (M, K) of rows that do not.

    Raises:
        ValueError: no rows, wrong shapes, NaN or infinite logits, or probabilities in place of logits.
    """
    known, unknown = (as_logits(x) for x in (logits, ood_logits))
    if known.ndim != 2 or unknown.ndim != 2 or known.shape[1] != unknown.shape[1]:
        raise ValueError(f"expected logits (N, K) and ood_logits (M, K), got {known.shape} and {unknown.shape}")
    if not len(known) or not len(unknown):
        raise ValueError(f"both sets need rows, got {len(known)} of the task and {len(unknown)} others")
    for z in (known, unknown):
        check_logits(z)
        refuse_probabilities(z)
    return _auroc(*(np.exp(log_softmax(z).max(1)) for z in (known, unknown)))


# ---- batches ----


class CalibrationMetrics(LogitAccumulator):
    """Accuracy and the metrics above, of logits that come in batches: `compute_metrics=CalibrationMetrics()`.

    Two values are kept of each row, not its K logits. The results are those of the functions on the complete set.

    Args:
        bins: as in `reliability_curve`.
        ignore_index: label of ignored rows. Default −100.
        next_token: in the Trainer, whether the logits at position t belong to the label at t + 1, as in causal language
            models. Default: set by `MaxSupTrainer`; elsewhere they belong to the label at t.
    """

    def __init__(self, bins: int = 15, ignore_index: int = -100, next_token: bool | None = None):
        check_bins(bins)
        self.bins = bins
        super().__init__(ignore_index, next_token)

    def reset(self) -> None:
        super().reset()
        self._confidence: list[NDArray[np.float64]] = []
        self._right: list[NDArray[np.bool_]] = []
        self._nll = self._brier = 0.0
        self._class_gaps: NDArray[np.float64] | None = None

    def add(self, z: NDArray[np.float64], y: NDArray[np.integer]) -> None:
        log_q = log_softmax(z)
        q = np.exp(log_q)
        self._confidence.append(q.max(1))
        self._right.append(z.argmax(1) == y)
        self._nll += float(_nll(log_q, y).sum())
        self._brier += float(_brier(q, y).sum())
        gaps = class_gaps(q, y, self.bins)
        self._class_gaps = gaps if self._class_gaps is None else self._class_gaps + gaps

    def compute(self) -> dict[str, float]:
        """Name -> value; NaN where the value is undefined, as in the functions.

        Raises:
            ValueError: no rows so far, or they are probabilities.
        """
        self.check_rows()
        confidence, right = np.concatenate(self._confidence), np.concatenate(self._right)
        curve = bin_confidences(confidence, right, self.bins, adaptive=False)
        rows = len(right)
        return {
            "accuracy": float(right.mean()),
            "nll": self._nll / rows,
            "brier": self._brier / rows,
            "ece": curve.expected_error(),
            "adaptive_ece": bin_confidences(confidence, right, self.bins, adaptive=True).expected_error(),
            "classwise_ece": classwise_error(self._class_gaps, rows),
            "mce": curve.maximum_error(),
            "confidence_when_right": _mean_confidence(confidence, right, right=True),
            "confidence_when_wrong": _mean_confidence(confidence, right, right=False),
            "error_auroc": _auroc(confidence[right], confidence[~right]),
        }

    def curve(self, adaptive: bool = False) -> ReliabilityCurve:
        """The reliability curve of the rows so far."""
        self.check_rows()
        return bin_confidences(np.concatenate(self._confidence), np.concatenate(self._right), self.bins, adaptive)


# ---- per-row statistics ----


def _confidence(logits: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    z, y = check_rows(logits, labels)
    return np.exp(log_softmax(z).max(1)), z.argmax(1) == y


def _nll(log_q: NDArray[np.float64], y: NDArray[np.integer]) -> NDArray[np.float64]:
    return -log_q[np.arange(len(y)), y]


def _brier(q: NDArray[np.float64], y: NDArray[np.integer]) -> NDArray[np.float64]:
    of_label = q[np.arange(len(y)), y]
    return np.square(q).sum(1) - of_label**2 + (1 - of_label) ** 2


def _mean_confidence(confidence: NDArray[np.float64], is_right: NDArray[np.bool_], right: bool) -> float:
    chosen = confidence[is_right == right]
    return float(chosen.mean()) if len(chosen) else float("nan")


def _auroc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    if not len(positive) or not len(negative):
        return float("nan")
    from sklearn.metrics import roc_auc_score

    truth = np.repeat([1, 0], [len(positive), len(negative)])
    return float(roc_auc_score(truth, np.concatenate([positive, negative])))
