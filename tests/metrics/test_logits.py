"""Near-zero logits, margins and the two parts of label smoothing, against plain loops and label smoothing itself."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

import maxsup_hf
from maxsup_hf.metrics import LogitMetrics, margin, near_zero_share, top_margin


def rows(seed, n=20, k=5):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, k)) * rng.choice([0.01, 1.0, 10.0], (n, k))
    return np.round(logits, 2), rng.integers(0, k, n)  # rounded: ties happen


def ls_decomposition(logits, labels, alpha=0.1):
    """What the metrics take the means of, for each row."""
    logits, labels = torch.as_tensor(logits), torch.as_tensor(labels)
    return maxsup_hf.ls_decomposition(logits, labels, alpha, reduction="none")


@given(seed=st.integers(0, 99), k=st.integers(2, 7), alpha=st.sampled_from([0.0, 0.1, 1.0]))
def test_agree_with_plain_loops(seed, k, alpha):
    logits, labels = rows(seed, k=k)
    parts = ls_decomposition(logits, labels, alpha)
    for i, (z, g) in enumerate(zip(logits.tolist(), labels.tolist(), strict=True)):
        others = [value for j, value in enumerate(z) if j != g]
        assert margin(logits, labels)[i] == pytest.approx(z[g] - max(others))
        assert top_margin(logits)[i] == pytest.approx(sorted(z)[-1] - sorted(z)[-2])
        assert near_zero_share(logits)[i] == pytest.approx(sum(abs(value) < 0.01 for value in z) / k)
        assert parts.regularization[i].item() == pytest.approx(alpha / k * sum(z[g] - m for m in z if m < z[g]))
        assert parts.error_amplification[i].item() == pytest.approx(alpha / k * sum(z[g] - n for n in z if n > z[g]))


@given(seed=st.integers(0, 99))
def test_the_parts_add_up_to_label_smoothing(seed):
    logits, labels = (torch.tensor(x) for x in rows(seed))
    parts = ls_decomposition(logits, labels, 0.3)
    smoothed = cross_entropy(logits, labels, label_smoothing=0.3, reduction="none")
    penalty = smoothed - cross_entropy(logits, labels, reduction="none")
    np.testing.assert_allclose(sum(parts), penalty, atol=1e-9)
    wrong = (logits > logits.gather(1, labels[:, None])).any(1).numpy()
    assert ((parts.error_amplification.numpy() < 0) == wrong).all() and (parts.regularization >= 0).all()


@given(seed=st.integers(0, 99), mask=st.sampled_from([-np.inf, np.finfo(np.float64).min]))
def test_masked_classes_are_excluded(seed, mask):
    logits, labels = rows(seed)
    masked = np.concatenate([logits, np.full((20, 2), mask)], 1)
    for with_mask, without in zip(ls_decomposition(masked, labels), ls_decomposition(logits, labels), strict=True):
        np.testing.assert_allclose(with_mask, without)
    np.testing.assert_allclose(near_zero_share(masked), near_zero_share(logits))
    np.testing.assert_allclose(margin(masked, labels), margin(logits, labels))
    np.testing.assert_allclose(top_margin(masked), top_margin(logits))


@given(seed=st.integers(0, 99), cut=st.integers(0, 20))
def test_batches_add_up(seed, cut):
    logits, labels = rows(seed)
    metrics = LogitMetrics(alpha=0.2, threshold=0.1)
    for part in (slice(0, cut), slice(cut, None)):
        metrics.update(logits[part], labels[part])
    parts = ls_decomposition(logits, labels, 0.2)
    assert metrics.compute() == pytest.approx(
        {
            "margin": margin(logits, labels).mean(),
            "top_margin": top_margin(logits).mean(),
            "near_zero_share": near_zero_share(logits, 0.1).mean(),
            "ls_regularization": parts.regularization.mean().item(),
            "ls_error_amplification": parts.error_amplification.mean().item(),
        },
        abs=1e-12,
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: near_zero_share([[1.0]], 0.0), "threshold must be positive"),
        (lambda: near_zero_share([1.0]), r"expected logits \(N, K\)"),
        (lambda: near_zero_share(np.ones((0, 2))), "at least one row"),
        (lambda: top_margin([[1.0, np.nan]]), "NaN"),
        (lambda: top_margin([[1.0]]), "at least two classes"),
        (lambda: margin([[1.0]], [0]), "at least two classes"),
        (lambda: margin([[1.0, 2.0]], [2]), r"\[0, 2\)"),
        (lambda: LogitMetrics(alpha=1.5).update([[1.0, 2.0]], [0]), r"alpha must be in \[0, 1\]"),
        (lambda: LogitMetrics(alpha=float("nan")).update([[1.0, 2.0]], [0]), r"alpha must be in \[0, 1\]"),
        (lambda: LogitMetrics().compute(), "no rows"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
