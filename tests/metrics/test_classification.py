"""Accuracy, NLL and ECE against plain loops and scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss

from maxsup_hf.metrics import accuracy, ece, nll


def plain_ece(logits, labels, bins):
    rows = [[] for _ in range(bins)]
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total = sum(math.exp(z - max(row)) for z in row)
        confidence = 1 / total
        # (0, 1/B], (1/B, 2/B], ...
        which = next(b for b in range(bins) if confidence <= (b + 1) / bins or b == bins - 1)
        rows[which].append((confidence, row.index(max(row)) == label))
    error = 0.0
    for members in filter(None, rows):
        mean_confidence = sum(c for c, _ in members) / len(members)
        share_right = sum(r for _, r in members) / len(members)
        error += len(members) / len(labels) * abs(share_right - mean_confidence)
    return error


@given(n=st.integers(1, 40), k=st.integers(1, 7), scale=st.sampled_from([0.1, 1.0, 10.0, 1000.0]), seed=st.integers(0, 99))
def test_agree_with_plain_loops_and_sklearn(n, k, scale, seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(n, k)) * scale, rng.integers(0, k, n)
    assert accuracy(logits, labels) == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    for bins in (1, 10, 15):
        assert ece(logits, labels, bins) == pytest.approx(plain_ece(logits, labels, bins), abs=1e-9)
    if k > 1 and scale <= 1:  # scikit-learn clips probabilities
        shifted = np.exp(logits - logits.max(1, keepdims=True))
        expected = log_loss(labels, shifted / shifted.sum(1, keepdims=True), labels=range(k))
        assert nll(logits, labels) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_by_hand():
    logits = np.log([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6], [0.9, 0.1]])
    labels = [0, 1, 1, 0]
    assert accuracy(logits, labels) == 0.75
    assert nll(logits, labels) == pytest.approx(-np.log([0.8, 0.2, 0.6, 0.9]).mean())
    # 15 bins: {.8, .8} is right half of the time, {.6} and {.9} always
    assert ece(logits, labels) == pytest.approx((abs(1 - 1.6) + 0.4 + 0.1) / 4)
    assert ece(logits, labels, bins=1) == pytest.approx(abs(0.75 - (0.8 + 0.8 + 0.6 + 0.9) / 4))


def test_masked_classes_and_large_logits_are_exact():
    logits = np.array([[1e4, 0.0, -np.inf], [0.0, 0.0, -np.inf]], dtype=np.float32)
    assert nll(logits, [0, 1]) == pytest.approx(math.log(2) / 2)
    assert nll(logits[:1], [1]) == pytest.approx(1e4)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "no rows"),
        (np.zeros((2, 3)), np.zeros(3, int), "expected logits"),
        (np.zeros(3), np.zeros(3, int), "expected logits"),
        (np.zeros((2, 3)), np.zeros(2), "integer labels"),
        (np.zeros((2, 3)), [0, 3], r"\[0, 3\)"),
        (np.zeros((2, 3)), [0, -100], r"\[0, 3\)"),
    ],
)
@pytest.mark.parametrize("metric", [accuracy, nll, ece])
def test_bad_input(metric, logits, labels, message):
    with pytest.raises(ValueError, match=message):
        metric(logits, labels)


def test_bad_bins():
    with pytest.raises(ValueError, match="bins must be at least 1"):
        ece([[0.0, 1.0]], [1], bins=0)
