"""Paired tests over seeds, against scipy and textbook values."""

import math

import numpy as np
import pytest
from scipy import stats

from maxsup_hf.comparison.statistics import best, differences, holm, paired_p, stands_out, summarise

A = {0: 0.91, 1: 0.93, 2: 0.90, 3: 0.94, 4: 0.92, 5: 0.95}
B = {0: 0.89, 1: 0.90, 2: 0.89, 3: 0.90, 4: 0.91, 5: 0.91}
C = {0: 0.905, 1: 0.935, 2: 0.895, 3: 0.935, 4: 0.93, 5: 0.94}


def test_mean_and_standard_deviation():
    assert summarise({0: 1.0, 1: 2.0, 2: 6.0, 3: math.nan}) == (3, 3.0, pytest.approx(math.sqrt(7)))
    assert summarise({4: 2.0})[:2] == (1, 2.0) and math.isnan(summarise({4: 2.0}).sd)
    assert summarise({})[0] == 0 and math.isnan(summarise({}).mean)


def test_p_is_that_of_scipy_on_pairs():
    a, b = np.array(list(A.values())), np.array(list(B.values()))
    assert paired_p(a - b, "t") == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-12)
    assert paired_p(a - b, "wilcoxon") == pytest.approx(stats.wilcoxon(a, b).pvalue, rel=1e-12)


def test_too_few_pairs_or_none_that_varies_make_no_test():
    assert math.isnan(paired_p([0.1, 0.2], "t")) and not math.isnan(paired_p([0.1, 0.2, 0.15], "t"))
    assert math.isnan(paired_p([0.1, 0.2, 0.3, 0.4, 0.5], "wilcoxon"))
    assert math.isnan(paired_p([0.01] * 5, "t")) and math.isnan(paired_p([0.0] * 5, "t"))


def test_holm():
    # Worked example: 0.01, 0.04, 0.03, 0.005 of four tests.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    corrected = holm([0.01, math.nan, 0.02])
    assert corrected[0] == pytest.approx(0.03) and math.isnan(corrected[1]) and corrected[2] == pytest.approx(0.04)
    assert holm([]) == []


def test_differences_pair_by_seed():
    found = differences({"a": A, "b": dict(reversed(B.items())) | {9: 0.0}, "c": C}, "t")
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]
    d = found["a", "b"]
    each = np.array([A[seed] - B[seed] for seed in A])
    assert d.n == 6 and d.mean == pytest.approx(each.mean())
    interval = stats.t.interval(0.95, 5, each.mean(), stats.sem(each))
    assert (d.low, d.high) == pytest.approx(interval)
    assert d.p == pytest.approx(stats.ttest_rel(list(A.values()), list(B.values())).pvalue)
    ps = [value.p for value in found.values()]
    assert [value.p_holm for value in found.values()] == pytest.approx(holm(ps))


def test_the_best_stands_out_only_against_every_other():
    values = {"a": A, "b": B, "c": C}
    assert best(values, higher=True) == "a" and best(values, higher=False) == "b"
    found = differences(values, "t")
    assert found["a", "b"].p_holm < 0.05 < found["a", "c"].p_holm
    assert not stands_out("a", found) and stands_out("b", found)
    assert not stands_out("a", {})  # alone there is nothing to stand out from


def test_no_best_in_a_tie_or_without_values():
    assert best({"a": {0: 1.0}, "b": {0: 1.0}}, higher=True) is None
    assert best({"a": {0: math.nan}}, higher=True) is None
    assert best({"a": {0: math.nan}, "b": {0: 1.0}}, higher=True) == "b"
