"""Accuracy of logits."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from maxsup_hf.metrics import accuracy, ece, mce, nll


@given(n=st.integers(1, 40), k=st.integers(1, 7), seed=st.integers(0, 99))
def test_agrees_with_sklearn(n, k, seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(n, k)), rng.integers(0, k, n)
    assert accuracy(logits, labels) == pytest.approx(accuracy_score(labels, logits.argmax(1)))


def test_of_equal_logits_the_first_counts():
    assert accuracy([[1.0, 1.0], [1.0, 1.0]], [0, 1]) == 0.5


def test_tensors_of_any_type():
    logits = torch.tensor([[0.5, 2.0], [1.0, 0.25]], dtype=torch.bfloat16, requires_grad=True)
    assert accuracy(logits, torch.tensor([1, 1])) == 0.5
    assert nll(logits, torch.tensor([1, 1])) == nll(logits.detach().double().numpy(), [1, 1])


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "no rows"),
        (np.zeros((2, 3)), np.zeros(3, int), "expected logits"),
        (np.zeros(3), np.zeros(3, int), "expected logits"),
        (np.zeros((2, 3)), np.zeros(2), "integer labels"),
        (np.zeros((2, 3)), [0, 3], r"\[0, 3\)"),
        (np.zeros((2, 3)), [0, -100], r"\[0, 3\)"),
        ([[0.0, 1.0], [0.0, np.nan]], [0, 0], "logits of 1 rows are NaN.*row 1"),
        ([[0.0, np.inf], [0.0, 1.0]], [0, 0], "inf.*row 0"),
        ([[-np.inf, -np.inf]], [0], "all masked"),
    ],
)
@pytest.mark.parametrize("metric", [accuracy, nll, ece, mce])
def test_bad_input(metric, logits, labels, message):
    with pytest.raises(ValueError, match=message):
        metric(logits, labels)
