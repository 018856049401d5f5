"""Rows are divided in proportion from every class."""

import logging

import numpy as np
import pytest

from maxsup_hf.data.splits import hold_out_groups, hold_out_validation, stratified_indices
from tests.data.conftest import table


@pytest.mark.parametrize("count", [1, 10, 37, 99, 100])
def test_stratified_indices_keep_the_shares_of_the_classes(count):
    labels = np.repeat([0, 1, 2, 3], [60, 30, 9, 1])
    chosen = stratified_indices(labels, count)
    assert len(set(chosen)) == len(chosen) == count
    shares = np.bincount(labels[chosen], minlength=4)
    assert (abs(shares - np.array([60, 30, 9, 1]) * count / 100) < 1).all()
    assert (chosen == stratified_indices(labels, count)).all()
    assert (chosen == stratified_indices(3 - labels, count)).all(), "which rows must not depend on the numbers of classes"
    assert count in (1, 100) or (chosen != np.arange(count)).any()


def test_validation_is_held_out_only_where_there_is_none(caplog):
    rows = table(x=list(range(20)), labels=[0, 1] * 10)
    with caplog.at_level(logging.INFO, "maxsup_hf"):
        splits = hold_out_validation({"train": rows}, 0.2, "labels")
    assert "held out 4 of the 20 training rows" in caplog.text
    assert sorted(list(splits["train"]["x"]) + list(splits["validation"]["x"])) == list(range(20))
    assert sorted(splits["validation"]["labels"]) == [0, 0, 1, 1]
    given = {"train": rows, "validation": table(x=[1], labels=[0])}
    assert hold_out_validation(given, 0.2, "labels") == given


def test_a_class_with_a_single_row_stays_in_training():
    labels = [0] * 10 + [1] * 10 + list(range(2, 9))  # of 27 rows 9 are held out, some of classes with one row
    splits = hold_out_validation({"train": table(x=list(range(27)), labels=labels)}, 1 / 3, "labels")
    assert set(splits["train"]["labels"]) == set(labels) and set(splits["validation"]["labels"]) == {0, 1}
    assert sorted([*splits["train"]["x"], *splits["validation"]["x"]]) == list(range(27))
    with pytest.raises(ValueError, match="no class of the training data has rows enough"):
        hold_out_validation({"train": table(labels=[0, 1, 2])}, 0.4, "labels")


def test_rows_of_a_group_are_not_divided():
    groups = [f"text {i // 3}" for i in range(60)]
    splits = hold_out_groups({"train": table(x=list(range(60)), context=groups)}, 0.2, "context")
    train, validation = (set(splits[split]["context"]) for split in ("train", "validation"))
    assert len(validation) == 4 and len(train) == 16 and not train & validation
    with pytest.raises(ValueError, match="a single context"):
        hold_out_groups({"train": table(x=[1, 2], context=["a", "a"])}, 0.2, "context")
