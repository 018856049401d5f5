"""Intervals of shares."""

from __future__ import annotations

from scipy import stats


def binomial_interval(successes: int, rows: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    interval = stats.binomtest(successes, rows).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
