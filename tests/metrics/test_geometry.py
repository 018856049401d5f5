"""Feature geometry against a reference implementation, by hand, and under changes that must not matter."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maxsup_hf.metrics import FeatureGeometry, NearestCentre, effective_rank, feature_geometry
from tests.metrics import geometry_at_scale, reference

SEEDS = st.integers(0, 99)


def rows(seed, n=60, d=5, k=4, spread=0.5):
    """Features in k clusters; every class has a sample."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.concatenate([np.arange(k), rng.integers(0, k, n - k)]))
    return rng.normal(size=(k, d))[y] + spread * rng.normal(size=(n, d)), y, rng.normal(size=(k, d))


def streamed(x, y, num_classes, sizes, classifier=None, predictions=None):
    geometry = FeatureGeometry(num_classes)
    ends = np.cumsum([0, *sizes])
    parts = list(zip(ends, [*ends[1:], len(y)], strict=True))
    for i, j in parts:
        geometry.update(x[i:j], y[i:j])
    found = geometry.compute(classifier)
    if predictions is not None:
        nearest = NearestCentre(geometry.class_means())
        for i, j in parts:
            nearest.update(x[i:j], predictions[i:j])
        found |= nearest.compute()
    return found


def agree(found, expected, tolerance=1e-9):
    assert expected.keys() <= found.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


# ---- values ----


@given(seed=SEEDS, d=st.integers(2, 9), k=st.integers(2, 7), sizes=st.lists(st.integers(0, 9), max_size=4))
def test_agrees_with_the_reference_however_it_is_cut(seed, d, k, sizes):
    x, y, classifier = rows(seed, d=d, k=k)
    predictions = np.random.default_rng(seed).integers(0, k, len(y))
    agree(streamed(x, y, k, sizes, classifier, predictions), reference.geometry(x, y, classifier, predictions))


def test_function_and_stream_agree():
    x, y, classifier = rows(0)
    whole = feature_geometry(x, y, classifier=classifier, predictions=y)
    parts = streamed(x, y, 4, [7, 20], classifier, y)
    assert whole.keys() == parts.keys()
    agree(whole, {name: value for name, value in parts.items() if name != "classes_without_sample"})


def test_by_hand():
    """Two classes at right angles; one of them is a point, the other two opposite directions."""
    found = feature_geometry([[2.0, 0.0], [4.0, 0.0], [0.0, 1.0], [0.0, -1.0]], [0, 0, 1, 1])
    assert found["d_within_per_class"].tolist() == [0, 1] and found["d_within"] == 0.5
    assert found["d_total"] == 0.75 and found["r2"] == pytest.approx(1 / 3)
    assert found["count_per_class"].tolist() == [2, 2] and found["rows"] == 4
    # h_0 = (3, 0), h_1 = 0: Σ_B is 2.25 along the first axis, where the variance within is (1 + 1 + 0 + 0) / 4
    assert found["nc1"] == pytest.approx(0.5 / 2.25 / 2)
    assert found["nc2_equinorm"] == pytest.approx(0) and found["nc2_max_angle"] == pytest.approx(0)
    s = np.sqrt([20, 2])
    p = s / s.sum()
    assert found["effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_full_collapse_onto_a_simplex():
    simplex = np.eye(5) - 1 / 5
    y = np.arange(5).repeat(3)
    found = feature_geometry(simplex[y] + 2, y, classifier=3 * simplex, predictions=y)
    for name in ("nc1", "nc2_equinorm", "nc2_equiangular", "nc2_max_angle", "nc3_self_duality", "nc2_weight_equiangular"):
        assert found[name] == pytest.approx(0, abs=1e-12), name
    assert found["d_within"] == pytest.approx(0, abs=1e-12) and found["r2"] == pytest.approx(1)
    assert found["nc4_agreement"] == 1 and found["effective_rank_centered"] == pytest.approx(4)


def test_almost_collapsed_features_keep_their_digits():
    """Far from 0 and tight: Σxxᵀ − n·μμᵀ would have no digit of the scatter left."""
    rng = np.random.default_rng(0)
    y, noise = np.arange(4).repeat(50), 1e-6 * rng.normal(size=(200, 6))
    centres = rng.normal(size=(4, 6)) + 1e4
    shifted = (centres[y] + noise) - 1e4  # the same rounding, back at 0
    sizes = [13] * 12
    expected = reference.geometry(shifted, y)["nc1"]
    assert streamed(centres[y] + noise, y, 4, sizes)["nc1"] == pytest.approx(expected, rel=1e-5)


def test_class_means_on_a_line():
    """Between them there is one direction; across it only their rounding, which is nothing to divide by."""
    rng = np.random.default_rng(0)
    y, noise = np.arange(4).repeat(20), rng.normal(size=(80, 6))
    noise -= np.stack([noise[y == k].mean(0) for k in range(4)])[y]
    along = np.ones(6) / np.sqrt(6)
    found = feature_geometry(1000.1 + 3 * y[:, None] * along + noise, y)
    assert found["nc1"] == pytest.approx(np.mean((noise @ along) ** 2) / (9 * 5 / 4) / 4, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_every_type_and_shape(dtype):
    x, y, classifier = rows(0)
    features, labels = torch.tensor(x).to(dtype).requires_grad_(), torch.tensor(y)
    found = feature_geometry(features, labels, classifier=torch.tensor(classifier, requires_grad=True))
    agree(found, reference.geometry(features.detach().double().numpy(), y, classifier))
    folded = FeatureGeometry(4)
    folded.update(features.reshape(6, 10, 5), labels.reshape(6, 10))
    agree(folded.compute(), reference.geometry(features.detach().double().numpy(), y))


def test_large_batches_are_worked_through_in_pieces(monkeypatch):
    monkeypatch.setattr("maxsup_hf.metrics._rows.CHUNK", 16)
    x, y, classifier = rows(3)
    agree(feature_geometry(x, y, classifier=classifier, predictions=y), reference.geometry(x, y, classifier, y))


def test_effective_rank():
    assert effective_rank([2, 2, 2]) == pytest.approx(3)
    assert effective_rank([5.0, 0.0]) == 1
    x = np.random.default_rng(0).normal(size=(50, 2)) @ np.random.default_rng(1).normal(size=(2, 8))
    found = feature_geometry(x, np.arange(50) % 2)
    assert found["effective_rank"] == pytest.approx(reference.effective_rank(x), rel=1e-9) and found["effective_rank"] < 2
    assert effective_rank([0.0, 0.0]) == 0
    for bad in ([], [-1.0, 2.0], [[1.0]], [np.nan, 1.0]):
        with pytest.raises(ValueError, match="singular values"):
            effective_rank(bad)


def test_without_scatter_only_the_separability():
    x, y, classifier = rows(0)
    geometry = FeatureGeometry(4, scatter=False)
    geometry.update(x, y)
    found, expected = geometry.compute(), reference.geometry(x, y)
    assert not any(name.startswith(("nc", "effective")) for name in found)
    agree(found, {name: expected[name] for name in ("d_within", "d_total", "r2", "d_within_per_class", "r2_per_class")})
    with pytest.raises(ValueError, match="scatter=True"):
        geometry.compute(classifier)


# ---- what must not change it ----


@given(seed=SEEDS)
def test_order_of_rows_rotation_scale_and_names_of_classes(seed):
    x, y, classifier = rows(seed)
    rng = np.random.default_rng(seed)
    order, rotation = rng.permutation(len(y)), np.linalg.qr(rng.normal(size=(5, 5)))[0]
    names = rng.permutation(4)
    scalars = {n: v for n, v in feature_geometry(x, y, classifier=classifier, predictions=y).items() if isinstance(v, float)}
    renamed = names[y]
    weight = np.empty_like(classifier)
    weight[names] = classifier
    agree(feature_geometry(x[order], y[order], classifier=classifier, predictions=y[order]), scalars)
    agree(feature_geometry(3 * x @ rotation, y, classifier=classifier @ rotation, predictions=y), scalars)
    agree(feature_geometry(x, renamed, classifier=weight, predictions=renamed), scalars)


@given(seed=SEEDS)
def test_separability_looks_at_directions_alone_and_at_classes_equally(seed):
    x, y, _ = rows(seed)
    names = ("d_within", "d_total", "r2")
    expected = {name: feature_geometry(x, y)[name] for name in names}
    lengths = np.random.default_rng(seed).uniform(0.1, 10, (len(y), 1))
    agree(feature_geometry(lengths * x, y), expected)
    twice = np.concatenate([np.arange(len(y)), np.flatnonzero(y == 1)])
    agree(feature_geometry(x[twice], y[twice]), expected)


# ---- what is missing or wrong ----


def test_a_class_without_a_sample_is_named_or_left_out():
    x, y, classifier = rows(0)
    apart = np.where(y >= 2, y + 2, y)  # classes 2 and 3 of 6 have no rows
    weight = np.ones((6, 5))
    weight[[0, 1, 4, 5]] = classifier
    geometry = FeatureGeometry(6)
    geometry.update(x, apart)
    with pytest.raises(ValueError, match="2 of 6 classes have no sample: 2, 3"):
        geometry.compute()
    found, expected = geometry.compute(weight, missing="skip"), reference.geometry(x, y, classifier)
    assert found["classes_without_sample"] == [2, 3] and found["count_per_class"][2:4].tolist() == [0, 0]
    for name in ("d_within_per_class", "r2_per_class"):
        assert np.isnan(found[name][2:4]).all()
        np.testing.assert_allclose(found[name][[0, 1, 4, 5]], expected.pop(name))
    agree(found, expected)
    means = geometry.class_means()
    assert means[2:4].isnan().all()
    nearest = NearestCentre(means)
    nearest.update(x, apart)
    assert nearest.compute()["nc4_agreement"] == pytest.approx(reference.geometry(x, y, predictions=y)["nc4_agreement"])


def test_ignored_rows_do_not_count():
    x, y, _ = rows(0)
    expected = {name: v for name, v in feature_geometry(x, y).items() if isinstance(v, float)}
    geometry = FeatureGeometry(4)
    geometry.update(np.concatenate([x, np.full((3, 5), np.nan)]), np.concatenate([y, [-100] * 3]))
    geometry.update(x[:2], [-100, -100])
    agree(geometry.compute(), expected)


def test_features_that_are_zero_are_counted():
    found = feature_geometry([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]], [0, 0, 1])
    assert found["zero_features"] == 1 and found["d_within_per_class"].tolist() == [0.75, 0]


def test_features_that_are_all_the_same():
    found = feature_geometry(np.ones((6, 3)), [0, 0, 0, 1, 1, 1])
    assert np.isnan(found["r2"]) and np.isnan(found["r2_per_class"]).all() and found["nc1"] == np.inf
    assert found["d_total"] == pytest.approx(0) and found["effective_rank"] == 1 and found["effective_rank_centered"] == 0


def update(x, y, k=3):
    FeatureGeometry(k).update(x, y)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FeatureGeometry(1), "num_classes must be at least 2, got 1"),
        (lambda: feature_geometry(np.ones((3, 2)), [0, 0, 0]), "num_classes must be at least 2"),
        (lambda: feature_geometry(np.ones((3, 2)), [1, 1, 1]), "1 of 2 classes have no sample: 0"),
        (lambda: feature_geometry(np.ones((3, 2)), [1, 1, 1], missing="skip"), "all rows are of class 1"),
        (lambda: feature_geometry(np.ones((3, 2)), [0, 1, 1], missing="drop"), "missing must be 'raise' or 'skip'"),
        (lambda: feature_geometry(np.ones((0, 2)), np.ones(0, int)), "no rows"),
        (lambda: FeatureGeometry(3).compute(), "no rows"),
        (lambda: update(np.ones((3, 2)), [0, 1]), r"got \(3, 2\) and \(2,\)"),
        (lambda: update(np.ones(3), [0, 1, 2]), r"got \(3,\) and \(3,\)"),
        (lambda: update(np.ones((2, 2)), [0, 3]), r"labels must lie in \[0, 3\), got 0 to 3"),
        (lambda: update(np.ones((2, 2)), [0.0, 1.0]), "labels must be integers"),
        (lambda: update([[1.0, 2.0], [np.nan, 1.0]], [0, 1]), "1 rows are NaN or infinite, the first in row 1"),
        (lambda: update([[1.0, np.inf], [1.0, 1.0]], [0, 1]), "NaN or infinite, the first in row 0"),
        (lambda: feature_geometry(np.eye(3), [0, 1, 2], classifier=np.ones((3, 2))), r"must be \(3, 3\).*got \(3, 2\)"),
        (lambda: feature_geometry(np.eye(2), [0, 1], classifier=np.full((2, 2), np.nan)), "NaN or infinite weights"),
        (lambda: NearestCentre(np.ones((1, 2))), "at least two classes"),
        (lambda: NearestCentre(np.eye(2)).update(np.ones((1, 3)), [0]), "have 2 dimensions, the features 3"),
        (lambda: NearestCentre(np.eye(2)).update(np.ones((1, 2)), [2]), r"predictions must lie in \[0, 2\)"),
        (lambda: NearestCentre(np.eye(2)).compute(), "no rows"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_dimensions_must_stay():
    geometry = FeatureGeometry(2)
    geometry.update(np.ones((2, 3)), [0, 1])
    with pytest.raises(ValueError, match="3 dimensions so far, now 4"):
        geometry.update(np.ones((2, 4)), [0, 1])


# ---- memory ----


def test_a_stream_is_never_held():
    """100 000 × 256 features are 205 MB in float64. `python -m tests.metrics.geometry_at_scale` does 1 000 000 × 512."""
    args = Namespace(rows=100_000, dim=256, classes=100, batch=2048)
    reader, stream = (geometry_at_scale.measure(mode, args)["peak_mb"] for mode in ("read", "stream"))
    assert stream - reader < 100
