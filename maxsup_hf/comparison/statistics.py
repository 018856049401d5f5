"""Mean and standard deviation over seeds, and paired significance tests of differences between losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import stats

TESTS = {"t": "paired t-test", "wilcoxon": "Wilcoxon signed-rank test"}
FEWEST = {"t": 3, "wilcoxon": 6}  # two pairs leave t one degree of freedom; with five the smallest exact p is 0.0625
LEVEL = 0.05


class Summary(NamedTuple):
    """Over seeds: their number, mean and standard deviation (n − 1; NaN for one seed)."""

    n: int
    mean: float
    sd: float


class Difference(NamedTuple):
    """Between two losses over the seeds that both have.

    Attributes:
        n: number of pairs.
        mean: of first − second.
        low, high: 95 % confidence interval of the mean by t; NaN for a single pair.
        p: two-sided; NaN if there is no test, because there are too few pairs or all differences are equal.
        p_holm: corrected by Holm (1979) for all pairs of losses.
    """

    n: int
    mean: float
    low: float
    high: float
    p: float
    p_holm: float


def summarise(values: Mapping[int, float]) -> Summary:
    """Summary of seed -> value; NaN is left out."""
    found = np.array([v for v in values.values() if math.isfinite(v)])
    if not len(found):
        return Summary(0, math.nan, math.nan)
    return Summary(len(found), float(found.mean()), float(found.std(ddof=1)) if len(found) > 1 else math.nan)


def paired_p(differences: Sequence[float], test: str) -> float:
    """Two-sided p of differences (n,) centred on 0; NaN for fewer than `FEWEST`, or if all are equal."""
    d = np.asarray(differences, dtype=np.float64)
    # Equal differences, as happen with accuracies on few rows, have no estimate of their spread: t would be infinite.
    if len(d) < FEWEST[test] or np.ptp(d) <= 1e-12 * max(1e-300, float(np.abs(d).max())):
        return math.nan
    return float(stats.ttest_1samp(d, 0.0).pvalue if test == "t" else stats.wilcoxon(d).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected by Holm's step-down method (Holm 1979); NaN stays NaN, but counts as one of the tests."""
    corrected, most = [math.nan] * len(p), 0.0
    ordered = sorted((value, i) for i, value in enumerate(p) if not math.isnan(value))
    for rank, (value, i) in enumerate(ordered):
        most = max(most, min(1.0, (len(p) - rank) * value))
        corrected[i] = most
    return corrected


def differences(values: Mapping[str, Mapping[int, float]], test: str) -> dict[tuple[str, str], Difference]:
    """All pairs of losses.

    Args:
        values: loss -> seed -> value.
        test: one of `TESTS`.
    """
    pairs = list(combinations(values, 2))
    found = {}
    for a, b in pairs:
        seeds = [seed for seed in values[a] if seed in values[b]]
        d = [values[a][seed] - values[b][seed] for seed in seeds]
        found[a, b] = [x for x in d if math.isfinite(x)]
    ps = [paired_p(d, test) for d in found.values()]
    made = {}
    for (pair, d), p, p_holm in zip(found.items(), ps, holm(ps), strict=True):
        made[pair] = Difference(len(d), float(np.mean(d)) if d else math.nan, *interval(d), p, p_holm)
    return made


def interval(d: Sequence[float]) -> tuple[float, float]:
    if len(d) < 2:
        return math.nan, math.nan
    half = float(stats.t.ppf(0.975, len(d) - 1) * np.std(d, ddof=1) / math.sqrt(len(d)))
    return float(np.mean(d)) - half, float(np.mean(d)) + half


def best(values: Mapping[str, Mapping[int, float]], higher: bool) -> str | None:
    """The loss with the best mean; `None` if there is none, or several are equally good."""
    means = {loss: summarise(of).mean for loss, of in values.items()}
    finite = {loss: mean for loss, mean in means.items() if math.isfinite(mean)}
    if not finite:
        return None
    first = (max if higher else min)(finite, key=lambda loss: finite[loss])
    return first if sum(mean == finite[first] for mean in finite.values()) == 1 else None


def stands_out(loss: str, pairs: Mapping[tuple[str, str], Difference]) -> bool:
    """Whether a loss differs significantly from every other one."""
    own = [difference for pair, difference in pairs.items() if loss in pair]
    return bool(own) and all(difference.p_holm < LEVEL for difference in own)
