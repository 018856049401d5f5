"""The committed matrix holds: whole and without a defect, and a sample of it comes out the same today."""

import json

import pytest
import transformers

from tests.support.__main__ import MATRIX, OUTCOMES, matrix
from tests.support.build import head_classes

COMMITTED = json.loads(MATRIX.read_text())
HEADS = COMMITTED["heads"]
SAME_VERSION = pytest.mark.skipif(
    COMMITTED["transformers"] != transformers.__version__,
    reason=f"the matrix is of transformers {COMMITTED['transformers']}: run python -m tests.support for this version",
)


def test_no_head_ends_with_a_wrong_loss_or_an_error_that_is_not_ours():
    assert {row["outcome"] for row in HEADS.values()} <= set(OUTCOMES)
    assert all(row["gradient_error"] <= 1e-6 for row in HEADS.values() if row["outcome"] == "equal")


@SAME_VERSION
def test_every_head_is_in_it():
    assert set(HEADS) == set(head_classes())


@SAME_VERSION
def test_a_sample_of_it():
    sample = sorted(HEADS)[::20]
    rows = matrix("^(" + "|".join(sample) + ")$")
    assert {name: row["outcome"] for name, row in rows.items()} == {name: HEADS[name]["outcome"] for name in sample}
    exact = [name for name in sample if HEADS[name].get("cut_error", 1) <= 1e-6]
    assert exact and {name for name in exact if not rows[name].get("cut_error", 1) <= 1e-6} == set()
