"""Differences between models against scipy's bootstrap, and marks only where they are significant."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from maxsup_hf.analysis import paired
from maxsup_hf.analysis.measure import Measured
from maxsup_hf.analysis.paired import Difference, best_model, differences, mcnemar
from maxsup_hf.metrics import brier, ece, nll, reliability_curve


def measured(logits, labels):
    fields = dict.fromkeys(field.name for field in dataclasses.fields(Measured))
    q = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    of_label = q[np.arange(len(labels)), labels]
    scores = {"nll": -np.log(of_label), "brier": (q**2).sum(1) - 2 * of_label + 1, "confidence": q.max(1)}
    return Measured(
        **fields | scores | {"labels": labels, "predicted": q.argmax(1), "curve": reliability_curve(logits, labels)}
    )


def two_models(rows=120, better=0.0):
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=rows)
    shared = generator.normal(size=(rows, 3)) + np.eye(3)[labels]
    logits = [shared + 0.3 * generator.normal(size=(rows, 3)) for _ in range(2)]
    logits[1] = logits[1] + better * np.eye(3)[labels]
    return logits, labels


def test_differences_are_those_of_the_metrics_with_the_interval_of_scipy():
    logits, labels = two_models()
    found = {each.metric: each for each in differences([measured(z, labels) for z in logits])}
    for function in (nll, brier, ece):
        expected = bootstrap(
            (np.arange(len(labels)),), lambda i, f=function: f(logits[0][i], labels[i]) - f(logits[1][i], labels[i]),
            n_resamples=999, method="percentile", vectorized=False, rng=np.random.default_rng(1),
        ).confidence_interval  # fmt: skip
        each = found[function.__name__]
        assert each.value == pytest.approx(function(logits[0], labels) - function(logits[1], labels))
        width = expected.high - expected.low
        assert each.low == pytest.approx(expected.low, abs=0.15 * width)
        assert each.high == pytest.approx(expected.high, abs=0.15 * width)
    assert differences([measured(logits[0], labels)]) == []


def test_mcnemar_looks_at_rows_that_only_one_of_them_gets_right():
    first, second = (
        np.repeat([True, True, False, False], [50, 9, 1, 40]),
        np.repeat([True, False, True, False], [50, 9, 1, 40]),
    )
    assert mcnemar(first, second) == pytest.approx(22 / 1024) == binomtest(9, 10).pvalue  # 2·(1 + 10)/2^10
    assert mcnemar(first, first) == 1


def test_a_difference_is_found_and_none_is_made_up():
    logits, labels = two_models(better=1.0)
    assert all(each.p < 0.01 for each in differences([measured(z, labels) for z in logits]) if each.metric != "ece")
    same = measured(logits[0], labels)
    for each in differences([same, same]):
        assert (each.value, each.low, each.high, each.p) == (0, 0, 0, 1)
    pairs = differences([measured(z, labels) for z in (logits[0], logits[1], logits[0])])
    assert {(each.first, each.second) for each in pairs} == {(0, 1), (0, 2), (1, 2)}
    two = {each.metric: each.p for each in differences([measured(z, labels) for z in logits])}
    three = {each.metric: each.p for each in pairs if (each.first, each.second) == (0, 1)}
    assert all(three[metric] == pytest.approx(min(1, 3 * p)) for metric, p in two.items())  # Bonferroni


def test_of_a_nominal_level_of_5_percent_few_equal_models_differ(monkeypatch):
    """Models that are equally good on rows of this kind: about 1 of 20 pairs may be called different."""
    monkeypatch.setattr(paired, "RESAMPLES", 400)
    called = {metric: 0 for metric in paired.TESTED}
    for seed in range(60):
        generator = np.random.default_rng(seed)
        labels = generator.integers(3, size=150)
        models = [measured(generator.normal(size=(150, 3)) + 2 * np.eye(3)[labels], labels) for _ in range(2)]
        for each in differences(models, seed=seed):
            called[each.metric] += each.p < 0.05
    assert max(called.values()) <= 7, called


@pytest.mark.parametrize(
    ("metric", "values", "p", "best"),
    [
        ("accuracy", [0.9, 0.8], {(0, 1): 0.01}, 0),
        ("nll", [0.9, 0.8], {(0, 1): 0.01}, 1),  # lower is better
        ("nll", [0.9, 0.8], {(0, 1): 0.06}, None),
        ("accuracy", [0.9, 0.8, 0.5], {(0, 1): 0.06, (0, 2): 0.001, (1, 2): 0.001}, None),  # the second is as good
        ("accuracy", [0.9, 0.8, 0.5], {(0, 1): 0.01, (0, 2): 0.001, (1, 2): 1.0}, 0),
        ("margin", [0.9, 0.8], {(0, 1): 0.01}, None),  # has no better end
        ("brier", [0.1, 0.2], {}, None),  # not tested
    ],
)
def test_what_is_marked(metric, values, p, best):
    found = [Difference(metric, i, j, 0.0, 0.0, 0.0, value) for (i, j), value in p.items()]
    assert best_model(metric, values, found) == best
