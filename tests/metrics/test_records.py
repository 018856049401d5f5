"""The records of the metrics: complete, distinct, and found by name or alias."""

import dataclasses

import numpy as np
import pytest

from maxsup_hf.metrics import (
    METRICS,
    CalibrationMetrics,
    LogitMetrics,
    Metric,
    _records,
    accuracy,
    feature_geometry,
    get_metric,
    nll,
    register_metrics,
)
from maxsup_hf.metrics._records import ranked
from maxsup_hf.metrics.geometry import feature_metric


@pytest.fixture
def registry(monkeypatch):
    """Records of a test end with it."""
    for name in ("METRICS", "_BY_KEY"):
        monkeypatch.setattr(_records, name, dict(getattr(_records, name)))


def data(rows=60, classes=3):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, classes)), np.arange(rows) % classes


def test_every_scalar_that_is_measured_has_a_record():
    logits, labels = data()
    found = {}
    for metrics in (CalibrationMetrics(), LogitMetrics()):
        metrics.update(logits, labels)
        found |= metrics.compute()
    geometry = feature_geometry(logits, labels, classifier=np.eye(3), predictions=labels)
    found |= {name: value for name, value in geometry.items() if isinstance(value, float)}
    assert found.keys() <= METRICS.keys()
    for name in geometry.keys() & METRICS.keys():
        assert get_metric(feature_metric(name)) is METRICS[name]


@pytest.mark.parametrize("name", METRICS)
def test_records_are_complete(name):
    metric = METRICS[name]
    assert metric.name == name and metric.label and metric.formula
    assert metric.heading.startswith(metric.label)
    assert metric.heading[-1] == {True: "↑", False: "↓", None: metric.label[-1]}[metric.higher_is_better]


def test_labels_and_ranks_are_distinct():
    for field in ("label", "full_name"):
        values = [getattr(metric, field) for metric in METRICS.values()]
        assert len(set(values)) == len(values)
    ranks = [metric.rank for metric in METRICS.values() if metric.rank is not None]
    assert len(set(ranks)) == len(ranks)


def test_the_better_end_is_the_better_end():
    """A sharper model that is right more often scores higher, or lower, as its record says."""
    logits, labels = data()
    better = logits + 2 * np.eye(3)[labels]
    for name, function in (("accuracy", accuracy), ("nll", nll)):
        assert (function(better, labels) > function(logits, labels)) == get_metric(name).higher_is_better


def test_columns_stand_in_rising_rank():
    assert ranked(["feature_r2", "margin", "unknown", "ece", "accuracy", "nll"]) == ["accuracy", "nll", "ece", "feature_r2"]


@pytest.mark.parametrize(
    ("key", "label"), [("top5_share", "top5 share"), ("eval_ece", "eval ECE"), ("weighted_f1", "weighted F1")]
)
def test_a_metric_without_a_record_is_called_by_its_key_in_words(key, label):
    assert get_metric(key) == Metric(key, label)
    assert get_metric(key).heading == get_metric(key).full_name == label


def test_records_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        METRICS["ece"].label = "calibration"


def test_a_key_belongs_to_one_metric(registry):
    for metric in (Metric("ece", "other"), Metric("other", "other", aliases=("feature_within",))):
        with pytest.raises(ValueError, match=f"metric '{metric.name}': the key '.*' belongs to Metric"):
            register_metrics(metric)
    register_metrics(Metric("mine", "mine"))
    register_metrics(Metric("mine", "mine"))  # as when a notebook cell runs again
    assert get_metric("mine") == Metric("mine", "mine")
