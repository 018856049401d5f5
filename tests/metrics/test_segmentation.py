"""Confusion matrix, mean IoU and pixel accuracy against plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxsup_hf.metrics import confusion_matrix, mean_iou, pixel_accuracy


def plain(predictions, labels, k, ignored):
    pixels = [(p, y) for p, y in zip(predictions.flat, labels.flat, strict=True) if y != ignored]
    unions, ratios = 0, 0.0
    for c in range(k):
        both = sum(p == c and y == c for p, y in pixels)
        either = sum(p == c or y == c for p, y in pixels)
        if either:
            unions, ratios = unions + 1, ratios + both / either
    return ratios / unions, sum(p == y for p, y in pixels) / len(pixels)


@given(k=st.integers(1, 6), n=st.integers(1, 4), seed=st.integers(0, 99), ignored=st.sampled_from([255, -100]))
def test_agree_with_plain_loops_and_add_up_over_batches(k, n, seed, ignored):
    rng = np.random.default_rng(seed)
    predictions, labels = rng.integers(0, k, (n, 3, 4)), rng.integers(0, k, (n, 3, 4))
    labels[rng.random(labels.shape) < 0.3] = ignored
    labels[0, 0, 0] = 0
    whole = confusion_matrix(predictions, labels, k, ignored)
    assert (whole == sum(confusion_matrix(p, y, k, ignored) for p, y in zip(predictions, labels, strict=True))).all()
    assert (mean_iou(whole), pixel_accuracy(whole)) == pytest.approx(plain(predictions, labels, k, ignored))


def test_by_hand():
    confusion = confusion_matrix([[0, 1], [1, 2]], [[0, 1], [0, 255]], 4)
    assert confusion.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert mean_iou(confusion) == 0.5  # classes 2 and 3 are nowhere
    assert pixel_accuracy(confusion) == pytest.approx(2 / 3)


def test_large_counts_and_small_types():
    labels = np.full(300, 200, np.uint8)
    assert confusion_matrix(labels, labels, 201)[200, 200] == 300


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([0, 1], [0], "the same shape"),
        ([0, 3], [0, 1], r"predictions must lie in \[0, 3\), got 0 to 3"),
        ([0, 1], [0, -1], r"labels must lie in \[0, 3\), got -1 to 0"),
    ],
)
def test_bad_pixels(predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(predictions, labels, 3)


@pytest.mark.parametrize("metric", [mean_iou, pixel_accuracy])
@pytest.mark.parametrize(("confusion", "message"), [(np.zeros((2, 2), int), "no pixels"), (np.ones((2, 3)), r"\(K, K\)")])
def test_bad_confusion(metric, confusion, message):
    with pytest.raises(ValueError, match=message):
        metric(confusion)
