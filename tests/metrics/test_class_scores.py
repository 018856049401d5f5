"""Scores of single classes against counting by hand."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from maxsup_hf.metrics.class_scores import balanced_accuracy, macro_f1, per_class

LABELS, PREDICTIONS = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 1, 1, 1, 0, 3])


def test_by_hand():
    cat, dog, bird, fish = per_class(LABELS, PREDICTIONS, ["cat", "dog", "bird", "fish"])
    assert (cat.support, cat.precision, cat.recall) == (3, 1 / 2, 1 / 3) and cat.f1 == pytest.approx(0.4)
    assert (dog.support, dog.precision, dog.recall) == (2, 1 / 3, 1 / 2) and dog.f1 == pytest.approx(0.4)
    assert bird == ("bird", 0, 0.0, 0.0, 0.0) and fish == ("fish", 1, 1.0, 1.0, 1.0)
    assert macro_f1(LABELS, PREDICTIONS) == pytest.approx((0.4 + 0.4 + 1) / 3)
    assert balanced_accuracy(LABELS, PREDICTIONS) == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)


def test_as_scikit_learn():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 7, 200), rng.integers(0, 7, 200)
    assert balanced_accuracy(labels, predictions) == pytest.approx(balanced_accuracy_score(labels, predictions))


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([], [], "N ≥ 1"),
        ([0, 1], [0], "N ≥ 1"),
        ([0, -1], [0, 0], "labels must lie"),
        ([0, 1], [0, 2], r"\[0, 2\), got 0 to 2"),
    ],
)
def test_refused(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        per_class(labels, predictions, ["a", "b"])
