"""Linear probe and nearest neighbours: against scikit-learn used plainly, torch, and plain loops."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from maxsup_hf.metrics.probe import L2_GRID, knn_accuracy, linear_probe


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return [(x[part] / 16, y[part]) for part in (slice(0, 300), slice(300, 500), slice(500, 900))]


def test_the_grid_is_that_of_the_paper():
    assert len(L2_GRID) == 45 and L2_GRID[0] == pytest.approx(1e-6) and L2_GRID[-1] == pytest.approx(1e5)
    np.testing.assert_allclose(np.diff(np.log(L2_GRID)), np.log(1e11) / 44)


def test_chooses_on_validation_and_refits_on_both(digits):
    (x, y), (held_x, held_y), (test_x, test_y) = digits
    values = [1e5, 1.0, 1e-2]
    found = linear_probe(x, y, held_x, held_y, test_x, test_y, l2=values)
    scores = [LogisticRegression(C=1 / v, max_iter=1000).fit(x, y).score(held_x, held_y) for v in values]
    assert found.l2_values.tolist() == values and found.l2 == values[int(np.argmax(scores))] != 1e5
    np.testing.assert_allclose(found.validation_accuracies, scores, atol=0.006)  # warm starts end within the tolerance
    both = LogisticRegression(C=1 / found.l2, max_iter=1000).fit(np.concatenate([x, held_x]), np.concatenate([y, held_y]))
    # Two fits end within the tolerance, and another CPU may put a row on the other side of the boundary.
    assert found.accuracy == pytest.approx(both.score(test_x, test_y), abs=0.006)
    assert found.converged.all()
    without = linear_probe(x, y, held_x, held_y, l2=values)
    assert without.accuracy == max(without.validation_accuracies)


def test_the_strength_multiplies_half_the_squared_weights():
    """L-BFGS of torch on the printed objective comes to the same predictions where regularisation decides them."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 80)
    x = rng.normal(size=(80, 4)) + 0.5 * np.eye(3, 4)[y]
    features, labels = torch.tensor(x), torch.tensor(y)
    weight, bias = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True), torch.zeros(3, dtype=torch.float64)
    bias.requires_grad_()
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def objective():
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(features @ weight.T + bias, labels, reduction="sum")
        loss = loss + 30 / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(objective)
    grid = rng.normal(size=(400, 4)) * 2
    expected = (torch.tensor(grid) @ weight.T + bias).argmax(1).numpy()
    assert linear_probe(x, y, grid, expected, l2=[30.0]).accuracy >= 0.995


def test_of_equally_good_strengths_the_greatest():
    x, y = np.array([[0.0], [1.0], [10.0], [11.0]]), np.array([0, 0, 1, 1])
    assert linear_probe(x, y, x, y, l2=[1e-3, 1e-1, 1e-2]).l2 == 0.1


def test_says_where_it_did_not_converge(digits, recwarn):
    (x, y), (held_x, held_y), _ = digits
    assert not linear_probe(x, y, held_x, held_y, l2=[1e-4], max_iter=2).converged.any()
    assert not recwarn.list


def test_nearest_neighbours_agree_with_a_plain_loop(digits):
    (x, y), _, (test_x, test_y) = digits
    test_x, test_y = test_x[:60], test_y[:60]
    unit, test_unit = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, test_x))
    for k in (1, 5):
        nearest = np.argsort(-(test_unit @ unit.T), axis=1, kind="stable")[:, :k]
        votes = [np.bincount(y[row], minlength=10).argmax() for row in nearest]
        assert knn_accuracy(x, y, test_x, test_y, k=k) == np.mean(votes == test_y)
    assert knn_accuracy(torch.tensor(x), torch.tensor(y), 5 * test_x, test_y, k=5) == knn_accuracy(x, y, test_x, test_y, k=5)


X, Y = np.eye(4), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_probe(X, Y, X, Y[:2]), r"validation_features \(N, D\)"),
        (lambda: linear_probe(X[0], Y, X, Y), r"train_features \(N, D\)"),
        (lambda: linear_probe(X, Y.astype(float), X, Y), "integer train_labels"),
        (lambda: linear_probe(X, Y, X[:0], Y[:0]), "N at least 1"),
        (lambda: linear_probe(X * np.nan, Y, X, Y), "train_features are NaN or infinite in row 0"),
        (lambda: linear_probe(X, Y, X[:, :3], Y), "validation_features have 3 dimensions, train_features 4"),
        (lambda: linear_probe(X, Y, X, Y + 1), r"validation_labels have classes without a training row: \[2\]"),
        (lambda: linear_probe(X, 0 * Y, X, 0 * Y), "all 0; a probe needs at least two classes"),
        (lambda: linear_probe(X, Y, X, Y, X), "give both or neither"),
        (lambda: linear_probe(X, Y, X, Y, l2=[0.0]), "l2 must be"),
        (lambda: linear_probe(X, Y, X, Y, l2=[]), "l2 must be"),
        (lambda: knn_accuracy(X, Y, X, Y, k=5), r"k must lie in \[1, 4\]"),
        (lambda: knn_accuracy(X, Y, X, Y, k=0), r"k must lie in \[1, 4\]"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
