"""The committed matrix is complete and has no defects, and a sample of it is reproduced."""

import json

import pytest
import transformers

from tests.support.__main__ import MATRIX, OUTCOMES, matrix
from tests.support.build import head_classes

COMMITTED = json.loads(MATRIX.read_text())
HEADS = COMMITTED["heads"]
SAME_VERSION = pytest.mark.skipif(
    COMMITTED["transformers"] != transformers.__version__,
    reason=f"the matrix was made with transformers {COMMITTED['transformers']}: run `python -m tests.support` again",
)


def test_no_head_has_a_defect():
    assert {row["outcome"] for row in HEADS.values()} <= set(OUTCOMES)
    assert all(row["gradient_error"] <= 1e-6 for row in HEADS.values() if row["outcome"] == "equal")


@SAME_VERSION
def test_the_matrix_has_every_head():
    assert set(HEADS) == set(head_classes())


@SAME_VERSION
def test_a_sample_is_reproduced():
    sample = sorted(HEADS)[::20]
    rows = matrix("^(" + "|".join(sample) + ")$")
    assert {name: row["outcome"] for name, row in rows.items()} == {name: HEADS[name]["outcome"] for name in sample}
    exact = [name for name in sample if HEADS[name].get("cut_error", 1) <= 1e-6]
    assert exact and {name for name in exact if not rows[name].get("cut_error", 1) <= 1e-6} == set()
