"""Values of the wrong kind are refused where a metric would otherwise give a wrong number in silence."""

import numpy as np
import pytest

from maxsup_hf.metrics import (
    answer_f1,
    apply_temperature,
    balanced_accuracy,
    chrf,
    confusion_matrix,
    effective_rank,
    entity_f1,
    exact_match,
    macro_f1,
    mean_iou,
    shot_accuracy,
)


@pytest.mark.parametrize(
    ("compute", "error", "message"),
    [
        (lambda: balanced_accuracy([0, 1], [0.2, 0.9]), ValueError, "predictions must be indices of classes"),
        (lambda: macro_f1([0.5, 1], [0, 1]), ValueError, "labels must be indices of classes"),
        (lambda: confusion_matrix([0, 1.7], [0, 1], 2), ValueError, "predictions must be indices of classes"),
        (lambda: confusion_matrix([0, 1], [0, np.nan], 2), ValueError, "labels must be indices of classes"),
        (lambda: mean_iou([[np.nan, 0], [0, 1]]), ValueError, "negative or NaN"),
        (lambda: mean_iou([[2, -1], [0, 1]]), ValueError, "negative or NaN"),
        (lambda: exact_match("cat", "cat"), TypeError, "list of texts, got the text 'cat'"),
        (lambda: answer_f1("cat", "cat"), TypeError, "list of texts, got the text 'cat'"),
        (lambda: chrf("cat", "cat"), TypeError, "lists of texts"),
        (lambda: entity_f1(["O"], [["O"]]), TypeError, "a list of tags for each sentence"),
        (lambda: effective_rank([1.0, np.inf]), ValueError, "finite"),
        (lambda: shot_accuracy([0, 1], [0, 1], [5, -1]), ValueError, "train_counts .* negative or NaN"),
        (lambda: shot_accuracy([0, 1], [0, 1], [5, np.nan]), ValueError, "train_counts .* negative or NaN"),
        (lambda: apply_temperature([[1.0, np.nan]], 2.0), ValueError, "NaN, infinite"),
    ],
)
def test_refused(compute, error, message):
    with pytest.raises(error, match=message):
        compute()


def test_booleans_and_whole_floats_are_classes():
    assert confusion_matrix([True, False], [1.0, 0.0], 2).tolist() == [[1, 0], [0, 1]]


def test_temperature_keeps_masked_classes():
    """The lowest value of a dtype marks a masked class; divided, it would be an ordinary logit."""
    lowest = np.finfo(np.float16).min
    assert apply_temperature(np.array([[1.0, lowest]], np.float16), 2.0).tolist() == [[0.5, -np.inf]]
