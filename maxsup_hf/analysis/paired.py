"""Whether models differ on the same rows: McNemar's exact test of the accuracy, a paired bootstrap of the other scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from maxsup_hf.analysis.measure import Measured
from maxsup_hf.metrics import get_metric
from maxsup_hf.metrics.reliability import bin_of

LEVEL = 0.05
RESAMPLES, FEWEST_RESAMPLES = 2000, 200
MOST_DRAWS = 2 * 10**8  # rows drawn in all resamples together; of more than 100,000 rows there are fewer resamples
TESTED = ("accuracy", "nll", "brier", "ece")


class Difference(NamedTuple):
    """Between two models on the same rows.

    Attributes:
        metric: one of `TESTED`.
        first, second: indices of the models.
        value: of the first minus that of the second.
        low, high: 95 % interval by the bootstrap.
        p: two-sided, by McNemar's exact test for the accuracy, else by the bootstrap; multiplied by the number of pairs of
            models (Bonferroni), and at most 1.
    """

    metric: str
    first: int
    second: int
    value: float
    low: float
    high: float
    p: float


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Two-sided p of the hypothesis that two models are right equally often: the exact test of McNemar (1947).

    Args:
        first, second: (N,) whether each model is right, on the same rows.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first == only_second:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def resamples(rows: int) -> int:
    """The number of bootstrap resamples for this many rows."""
    return min(RESAMPLES, max(FEWEST_RESAMPLES, MOST_DRAWS // rows))


def differences(measured: Sequence[Measured], seed: int = 0) -> list[Difference]:
    """Each metric of `TESTED` for each pair of models.

    Args:
        measured: of each model, on the same rows.
        seed: of the resampling of rows, with replacement; all models are evaluated on the same resamples.
    """
    pairs = list(combinations(range(len(measured)), 2))
    if not pairs:
        return []
    scores = _Scores(measured)
    rows = scores.rows
    count = resamples(rows)
    generator = np.random.default_rng(seed)
    observed = scores(np.ones(rows))
    draws = (generator.integers(rows, size=rows) for _ in range(count))
    drawn = np.stack([scores(np.bincount(draw, minlength=rows)) for draw in draws])
    found = []
    for k, metric in enumerate(TESTED):
        for i, j in pairs:
            of_resamples = drawn[:, i, k] - drawn[:, j, k]
            if metric == "accuracy":
                p = mcnemar(measured[i].right, measured[j].right)
            else:
                p = 2 * (1 + min((of_resamples <= 0).sum(), (of_resamples >= 0).sum())) / (1 + count)
            low, high = np.quantile(of_resamples, (0.025, 0.975))
            value = observed[i, k] - observed[j, k]
            found.append(Difference(metric, i, j, *map(float, (value, low, high, min(1.0, p * len(pairs))))))
    return found


def best_model(metric: str, values: Sequence[float], found: Sequence[Difference]) -> int | None:
    """The model with the best value of a metric, if it differs significantly from every other one, else `None`."""
    higher = get_metric(metric).higher_is_better
    tests = [each for each in found if each.metric == metric]
    if higher is None or not tests:
        return None
    best = int(np.argmax(values) if higher else np.argmin(values))
    own = [each for each in tests if best in (each.first, each.second)]
    return best if all(each.p < LEVEL for each in own) else None


class _Scores:
    """The scores `TESTED` of models, with rows counted any number of times."""

    def __init__(self, measured: Sequence[Measured]):
        self.rows = len(measured[0].labels)
        self._means = np.stack([np.stack([m.right, m.nll, m.brier]) for m in measured])  # (models, 3, N)
        self._gaps = [m.right - m.confidence for m in measured]
        self._bins = [bin_of(m.confidence, m.curve.edges) for m in measured]

    def __call__(self, counts: NDArray) -> NDArray[np.float64]:
        """(models, 4) if row i of the data is there `counts[i]` times."""
        ece = [np.abs(np.bincount(b, counts * gaps)).sum() for b, gaps in zip(self._bins, self._gaps, strict=True)]
        return np.column_stack([self._means @ counts, ece]) / counts.sum()
