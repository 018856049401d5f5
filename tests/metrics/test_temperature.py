"""Temperature scaling against SciPy's minimiser and a temperature that is known."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from maxsup_hf.metrics import accuracy, apply_temperature, fit_temperature, nll


@given(seed=st.integers(0, 99), scale=st.sampled_from([0.01, 1.0, 100.0]))
def test_no_other_temperature_is_better(seed, scale):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 60)
    logits = scale * (rng.normal(size=(60, 4)) + 1.5 * np.eye(4)[labels])
    assume(accuracy(logits, labels) < 1)
    t = fit_temperature(logits, labels)
    best = minimize_scalar(
        lambda log_t: nll(apply_temperature(logits, np.exp(log_t)), labels), (np.log(t) - 3, np.log(t) + 3)
    )
    assert nll(apply_temperature(logits, t), labels) <= best.fun + 1e-12
    assert np.log(t) == pytest.approx(best.x, abs=1e-4)
    assert fit_temperature(7 * logits, labels) == pytest.approx(7 * t, rel=1e-8)
    assert (apply_temperature(logits, t).argmax(1) == logits.argmax(1)).all()


def test_finds_the_temperature_that_the_labels_were_drawn_with():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(100_000, 3))
    drawn = (logits / 2.5 + rng.gumbel(size=logits.shape)).argmax(1)
    assert fit_temperature(logits, drawn) == pytest.approx(2.5, rel=0.02)


def test_masked_classes():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 3)), rng.integers(0, 3, 50)
    logits[np.arange(50), labels] += 1
    masked = np.concatenate([logits, np.full((50, 2), -np.inf)], 1)
    assert fit_temperature(masked, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-9)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (2 * np.eye(3), [0, 1, 2], "every label has the greatest logit"),
        (2 * np.eye(3), [1, 2, 0], "no greater than the others"),
        (np.ones((3, 3)), [0, 1, 2], "every label has the greatest logit"),
        ([[0.0, -np.inf]], [1], "likelihood is 0 at every temperature"),
        ([[0.0, np.nan]], [1], "NaN"),
        (np.zeros((0, 2)), np.zeros(0, int), "no rows"),
    ],
)
def test_no_best_temperature(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, labels)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf")])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match="positive and finite"):
        apply_temperature([[1.0]], temperature)
