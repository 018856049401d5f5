"""Scores and calibration errors against scikit-learn, torchmetrics and plain loops; batches against the complete set."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error
from transformers import EvalPrediction

from maxsup_hf.metrics import (
    CalibrationMetrics,
    LogitMetrics,
    accuracy,
    adaptive_ece,
    apply_temperature,
    brier,
    classwise_ece,
    confidence_when_wrong,
    ece,
    error_auroc,
    fit_temperature,
    margin,
    mce,
    near_zero_share,
    nll,
    ood_auroc,
    reliability_curve,
    top_margin,
)

FUNCTIONS = (accuracy, nll, brier, ece, adaptive_ece, classwise_ece, mce, confidence_when_wrong, error_auroc)


def softmax(logits):
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def rows(seed, n=40, k=4, scale=1.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, k)) * scale, rng.integers(0, k, n)


def plain_error(values, truths, bins):
    """Rows in (0, 1/B], (1/B, 2/B], …: each bin's share of rows and distance."""
    members = [[] for _ in range(bins)]
    for value, truth in zip(values, truths, strict=True):
        members[next(b for b in range(bins) if value <= (b + 1) / bins or b == bins - 1)].append((value, truth))
    found = [(len(m) / len(values), abs(sum(t for _, t in m) - sum(v for v, _ in m)) / len(m)) for m in members if m]
    return sum(share * distance for share, distance in found), max(distance for _, distance in found)


def plain_adaptive(values, truths, bins):
    """Sorted rows cut at the quantiles; NumPy's default one is linear between order statistics."""
    edges = [np.percentile(values, 100 * b / bins) for b in range(1, bins)]
    which = [sum(value > edge for edge in edges) for value in values]
    return sum(abs(sum(t - v for v, t, w in zip(values, truths, which, strict=True) if w == b)) for b in set(which)) / len(
        values
    )


# ---- values ----


@given(n=st.integers(1, 40), k=st.integers(1, 7), scale=st.sampled_from([0.1, 1.0, 10.0, 1000.0]), seed=st.integers(0, 99))
def test_agree_with_plain_loops_and_sklearn(n, k, scale, seed):
    logits, labels = rows(seed, n, k, scale)
    q = softmax(logits)
    confidence, right = q.max(1), logits.argmax(1) == labels
    for bins in (1, 10, 15):
        expected, maximum = plain_error(confidence, right, bins)
        assert ece(logits, labels, bins) == pytest.approx(expected, abs=1e-9)
        assert mce(logits, labels, bins) == pytest.approx(maximum, abs=1e-9)
        assert adaptive_ece(logits, labels, bins) == pytest.approx(plain_adaptive(confidence, right, bins), abs=1e-9)
        by_class = [plain_error(q[:, c], labels == c, bins)[0] for c in range(k)]
        assert classwise_ece(logits, labels, bins) == pytest.approx(np.mean(by_class), abs=1e-9)
    if k > 1 and scale <= 1:  # scikit-learn clips probabilities
        assert nll(logits, labels) == pytest.approx(log_loss(labels, q, labels=range(k)), rel=1e-6, abs=1e-9)
    if k > 2:
        expected = brier_score_loss(labels, q, labels=range(k), scale_by_half=False)
        assert brier(logits, labels) == pytest.approx(expected, abs=1e-9)
    pairs = [(a > b) + (a == b) / 2 for a in confidence[right] for b in confidence[~right]]
    assert error_auroc(logits, labels) == pytest.approx(np.mean(pairs) if pairs else math.nan, nan_ok=True)
    wrong = confidence[~right]
    assert confidence_when_wrong(logits, labels) == pytest.approx(wrong.mean() if len(wrong) else math.nan, nan_ok=True)


@pytest.mark.parametrize(("norm", "metric"), [("l1", ece), ("max", mce)])
def test_agree_with_torchmetrics(norm, metric):
    logits, labels = rows(0, 500, 5, 2.0)
    probabilities, truth = torch.tensor(softmax(logits)), torch.tensor(labels)
    expected = multiclass_calibration_error(probabilities, truth, num_classes=5, n_bins=15, norm=norm)
    assert metric(logits, labels) == pytest.approx(float(expected), abs=1e-6)


def test_by_hand():
    logits = np.log([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6], [0.9, 0.1]])
    labels = [0, 1, 1, 0]
    assert nll(logits, labels) == pytest.approx(-np.log([0.8, 0.2, 0.6, 0.9]).mean())
    assert brier(logits, labels) == pytest.approx(2 * (0.04 + 0.64 + 0.16 + 0.01) / 4)
    # 15 bins: {.8, .8} is right half of the time, {.6} and {.9} always
    assert ece(logits, labels) == pytest.approx((abs(1 - 1.6) + 0.4 + 0.1) / 4)
    assert ece(logits, labels, bins=1) == pytest.approx(abs(0.75 - (0.8 + 0.8 + 0.6 + 0.9) / 4))
    assert mce(logits, labels) == pytest.approx(0.4)
    assert confidence_when_wrong(logits, labels) == pytest.approx(0.8)
    assert error_auroc(logits, labels) == pytest.approx((0.5 + 0 + 1) / 3)


def test_reliability_curve():
    logits = np.log([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6], [0.9, 0.1]])
    curve = reliability_curve(logits, [0, 1, 1, 0], bins=5)
    np.testing.assert_allclose(curve.edges, [0, 0.2, 0.4, 0.6, 0.8, 1])
    assert curve.rows.tolist() == [0, 0, 1, 2, 1]
    np.testing.assert_allclose(curve.accuracy, [np.nan, np.nan, 1, 0.5, 1])
    np.testing.assert_allclose(curve.confidence, [np.nan, np.nan, 0.6, 0.8, 0.9])
    adaptive = reliability_curve(*rows(0, 90), bins=9, adaptive=True)
    assert adaptive.rows.tolist() == [10] * 9


def test_equal_confidences_share_a_bin():
    """Ten rows as certain as can be, one of them wrong: whichever it is, the gap is one tenth."""
    for wrong in (0, 5, 9):
        labels = np.zeros(10, int)
        labels[wrong] = 1
        assert adaptive_ece(np.tile([100.0, 0.0], (10, 1)), labels) == pytest.approx(0.1)


def test_masked_classes_and_large_logits_are_exact():
    logits = np.array([[1e4, 0.0, -np.inf], [0.0, 0.0, -np.inf]], dtype=np.float32)
    assert nll(logits, [0, 1]) == pytest.approx(math.log(2) / 2)
    assert nll(logits[:1], [1]) == pytest.approx(1e4)
    assert brier(logits, [0, 1]) == pytest.approx(0.25)
    low = torch.tensor(logits).to(torch.float16)
    low[:, 2] = torch.finfo(torch.float16).min
    assert nll(low[1:], [1]) == pytest.approx(math.log(2)) and mce(low[1:], [1]) == pytest.approx(0.5)


def test_out_of_distribution():
    known, unknown = np.log([[0.9, 0.1], [0.3, 0.7]]), np.log([[0.6, 0.4], [0.8, 0.2], [0.3, 0.7]])
    assert ood_auroc(known, unknown) == pytest.approx((1 + 1 + 1 + 1 + 0 + 0.5) / 6)


# ---- what must not change it ----


@given(seed=st.integers(0, 99), sizes=st.lists(st.integers(0, 9), max_size=4), bins=st.sampled_from([1, 15]))
def test_batches_in_any_order_add_up_to_the_whole(seed, sizes, bins):
    logits, labels = rows(seed, scale=3.0)
    order = np.random.default_rng(seed).permutation(len(labels))
    metrics = CalibrationMetrics(bins)
    ends = np.cumsum([0, *sizes])
    for i, j in zip(ends, [*ends[1:], len(labels)], strict=True):
        metrics.update(logits[order[i:j]], labels[order[i:j]])
    found = metrics.compute()
    for function in FUNCTIONS:
        options = {"bins": bins} if "ce" in function.__name__.split("_")[-1] and function is not accuracy else {}
        assert found[function.__name__] == pytest.approx(function(logits, labels, **options), abs=1e-12), function.__name__
    shifted = logits + np.random.default_rng(seed).normal(size=(len(labels), 1))  # softmax does not see it
    assert classwise_ece(shifted, labels, bins) == pytest.approx(found["classwise_ece"], abs=1e-9)
    assert metrics.curve().expected_error() == found["ece"]


def test_large_batches_are_worked_through_in_pieces(monkeypatch):
    logits, labels = rows(0)
    expected = CalibrationMetrics()
    expected.update(logits, labels)
    monkeypatch.setattr("maxsup_hf.metrics._rows.CHUNK", 16)
    metrics = CalibrationMetrics()
    metrics.update(logits, labels)
    assert metrics.compute() == pytest.approx(expected.compute(), abs=1e-12)
    assert classwise_ece(logits, labels) == pytest.approx(expected.compute()["classwise_ece"], abs=1e-12)


def test_compute_metrics_of_the_trainer():
    logits, labels = rows(0)
    metrics = CalibrationMetrics()
    whole = metrics(EvalPrediction(logits, labels))
    assert whole["ece"] == ece(logits, labels)
    for _ in range(2):  # as the Trainer does with batch_eval_metrics=True; then the next evaluation
        assert metrics(EvalPrediction(torch.tensor(logits[:30]), torch.tensor(labels[:30])), compute_result=False) == {}
        last = EvalPrediction((torch.tensor(logits[30:]), "hidden states"), torch.tensor(labels[30:]))
        assert metrics(last, compute_result=True) == pytest.approx(whole)
    assert "confidence_when_wrong" not in metrics(EvalPrediction(2 * np.eye(3), np.arange(3)))  # there are none


def test_ignored_labels():
    logits, labels = rows(0)
    folded, masked = logits.reshape(4, 10, 4), labels.reshape(4, 10).copy()
    masked[:, 7:] = -100
    metrics = CalibrationMetrics()
    metrics.update(folded, masked)
    kept = masked.ravel() != -100
    assert metrics.compute()["nll"] == pytest.approx(nll(logits[kept], labels[kept]))


# ---- bad input ----


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ece([[0.0, 1.0]], [1], bins=0), "bins must be at least 1"),
        (lambda: classwise_ece([[0.0, 1.0]], [1], bins=0), "bins must be at least 1"),
        (lambda: CalibrationMetrics(0), "bins must be at least 1"),
        (lambda: CalibrationMetrics().compute(), "no rows"),
        (lambda: CalibrationMetrics().curve(), "no rows"),
        (lambda: CalibrationMetrics().update(np.ones((2, 3)), [0]), r"got \(2, 3\) and \(1,\)"),
        (lambda: CalibrationMetrics().update(np.ones((1, 3)), [3]), r"\[0, 3\)"),
        (lambda: ood_auroc(np.ones((2, 3)), np.ones((2, 4))), r"ood_logits \(M, K\)"),
        (lambda: ood_auroc(np.ones((2, 3)), np.ones((0, 3))), "both sets need rows"),
        (lambda: ood_auroc(np.ones((2, 3)), np.full((2, 3), np.nan)), "NaN"),
        (lambda: ood_auroc(np.ones((2, 3)), np.full((2, 4), 0.25)[:, :3] * 4 / 3), "got probabilities: all 2 rows"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def streamed(metrics):
    def compute(logits, labels):
        metrics.reset()
        for i in range(0, len(labels), 3):  # no batch is large
            metrics.update(logits[i : i + 3], labels[i : i + 3])
        return metrics.compute()

    return compute


def without_labels(function):
    return lambda logits, labels: function(logits)


OF_LOGITS = [
    *FUNCTIONS, fit_temperature, reliability_curve, margin, streamed(CalibrationMetrics()), streamed(LogitMetrics()),
    *(without_labels(f) for f in (top_margin, near_zero_share, partial(apply_temperature, temperature=2.0))),
]  # fmt: skip


@pytest.mark.parametrize("function", OF_LOGITS)
@pytest.mark.parametrize("cast", [np.float64, np.float32, np.float16, lambda q: torch.tensor(q).bfloat16()])
def test_probabilities_are_refused(function, cast):
    logits, labels = rows(0, n=1000, k=10, scale=3.0)
    with pytest.raises(ValueError, match="expected logits, got probabilities: all 1000 rows .* Pass the logits, or the log"):
        function(cast(softmax(logits)), labels)


@pytest.mark.parametrize(
    "logits",
    [
        [[0.5, 0.4], [0.3, 0.2]],  # non-negative, but no row sums to 1
        [[0.5, 0.5], [1.5, -0.5]],  # a negative one
        [[0.5, 0.5], [0.5, 0.25]],  # only one row sums to 1
        [[1.0], [1.0]],
        [[0.25, 0.7495]],  # a single row whose sum happens to be near 1
    ],
)
def test_logits_that_resemble_probabilities_are_not_refused(logits):
    labels = [0] * len(logits)
    expected = log_loss(labels, softmax(np.array(logits)), labels=[0, 1]) if len(logits[0]) > 1 else 0
    assert nll(logits, labels) == streamed(CalibrationMetrics())(np.array(logits), np.array(labels))["nll"]
    assert nll(logits, labels) == pytest.approx(expected)


def test_classes_must_stay():
    metrics = CalibrationMetrics()
    metrics.update(np.ones((1, 3)), [0])
    with pytest.raises(ValueError, match="3 classes so far, now 4"):
        metrics.update(np.ones((1, 4)), [0])
