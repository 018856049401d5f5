"""Measurements of features and logits against the metrics of complete arrays, and projections against plain geometry."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maxsup_hf import metrics
from maxsup_hf.analysis.measure import choose_triples, measure, plane, project, rows_of
from maxsup_hf.trainer.features import FeatureRows


def data(classes=4, dim=6, labels=None):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(classes, (40,), generator=generator) if labels is None else labels
    features = torch.randn(len(labels), dim, generator=generator) + torch.nn.functional.one_hot(labels, dim)
    weight = torch.randn(classes, dim, generator=generator)
    return FeatureRows(features, features @ weight.T, labels), weight


def cut(rows, size=7):
    return lambda: (FeatureRows(*parts) for parts in zip(*(x.split(size) for x in rows), strict=True))


def test_measures_are_those_of_the_whole_arrays():
    rows, weight = data()
    found = measure(cut(rows), weight)
    features, logits, labels = (x.double().numpy() if x.is_floating_point() else x.numpy() for x in rows)
    for name in ("accuracy", "nll", "brier", "ece", "classwise_ece"):
        assert found.metrics[name] == pytest.approx(getattr(metrics, name)(logits, labels), abs=1e-9)
    assert found.metrics["margin"] == pytest.approx(metrics.margin(logits, labels).mean(), abs=1e-9)
    expected = metrics.feature_geometry(features, labels, classifier=weight, predictions=logits.argmax(1))
    for name, value in expected.items():
        np.testing.assert_allclose(found.geometry[name], value, rtol=1e-9, atol=1e-12, err_msg=name)
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found.confidence, softmax.max(1))
    np.testing.assert_allclose(found.top, logits.max(1) - logits.mean(1), atol=1e-12)
    np.testing.assert_array_equal(found.right, logits.argmax(1) == labels)
    for c in range(4):
        np.testing.assert_allclose(found.confusion[c], softmax[labels == c].mean(0))


def test_a_class_without_a_row():
    rows, weight = data(labels=torch.tensor([0, 1, 3] * 10))
    with pytest.raises(ValueError, match="1 of 4 classes have no sample: 2"):
        measure(cut(rows), weight)
    found = measure(cut(rows), weight, missing="skip")
    assert found.geometry["classes_without_sample"] == [2] and np.isnan(found.confusion[2]).all()
    assert all(2 not in triple for triple in choose_triples(found.confusion))


def test_a_single_class_and_no_rows_are_refused():
    rows, weight = data(labels=torch.ones(9, dtype=torch.int64))
    with pytest.raises(ValueError, match="all rows are of class 1"):
        measure(cut(rows), weight, missing="skip")
    with pytest.raises(ValueError, match="there are no rows to evaluate"):
        measure(lambda: iter(()), weight)


def test_triples_are_the_most_confused_pair_with_the_next_nearest_and_the_farthest_class():
    confusion = np.eye(5)
    confusion[1, 4] = confusion[4, 1] = 0.3  # the pair
    confusion[4, 2] = confusion[2, 4] = 0.2  # its nearest
    confusion[1, 0] = confusion[1, 3] = 0.1
    confusion[0, 1] = 0.05
    assert choose_triples(confusion) == [(1, 4, 2), (1, 4, 3)]
    assert choose_triples(confusion[:3, :3]) == [(0, 1, 2)]
    assert choose_triples(confusion[:2, :2]) == []


@given(st.integers(2, 7), st.integers(0, 10**6))
def test_projection_is_a_distance_preserving_map_of_the_plane(dim, seed):
    rng = np.random.default_rng(seed)
    templates, features = rng.normal(size=(3, dim)), rng.normal(size=(5, dim))
    origin, basis = plane(templates)
    np.testing.assert_allclose(basis @ basis.T, np.eye(2), atol=1e-10)
    flat = project(templates, templates)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(flat[i] - flat[j]) == pytest.approx(np.linalg.norm(templates[i] - templates[j]))
    direction = flat[1] - flat[0]
    assert direction[0] > 0 and direction[1] == pytest.approx(0, abs=1e-9)
    assert flat[2, 1] > flat[0, 1]
    # the nearest points of the plane, by least squares
    span = (templates[1:] - templates[0]).T
    for x, p in zip(features, project(features, templates), strict=True):
        nearest = templates[0] + span @ np.linalg.lstsq(span, x - templates[0], rcond=None)[0]
        np.testing.assert_allclose(origin + p @ basis, nearest, atol=1e-6 * max(1, np.linalg.cond(span)))


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ([[0, 0], [1, 1], [2, 2]], "lie on one line"),
        ([[0, 0], [0, 0], [1, 0]], "lie on one line"),
        ([[0.0], [1], [3]], r"templates must be \(3, D\), D at least 2, got \(3, 1\)"),
        ([[0, 0], [1, 0]], r"got \(2, 2\)"),
    ],
)
def test_no_plane(templates, message):
    with pytest.raises(ValueError, match=message):
        plane(templates)


def test_rows_of_classes():
    rows, _ = data()
    found = rows_of(cut(rows)(), [2, 0], most=3)
    assert list(found) == [2, 0]
    for c, features in found.items():
        np.testing.assert_array_equal(features, rows.features[rows.labels == c][:3])
    everything = rows_of(cut(rows)(), [1])
    np.testing.assert_array_equal(everything[1], rows.features[rows.labels == 1])
