"""Statistics of the logits of each row, and their means over an evaluation set.

A masked class (−inf, or the lowest value of the dtype) is excluded from every sum and from K. `maxsup_hf.metrics` says how
to add a metric.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from maxsup_hf.losses import ls_decomposition
from maxsup_hf.metrics._accumulator import LogitAccumulator
from maxsup_hf.metrics._records import Metric, register_metrics
from maxsup_hf.metrics._rows import as_logits, check_logits, check_rows, refuse_probabilities

MAXSUP = "Zhou et al. 2025, arXiv 2502.15798"

register_metrics(
    Metric(
        "margin", "margin", "logit margin of the label",
        formula="mean over rows of z_label − greatest other logit",
        meaning="how far the logit of the label is above the greatest other logit, on average",
    ),
    Metric(
        "top_margin", "top margin", "logit margin of the top",
        formula="mean over rows of greatest − second logit",
        meaning="how far the greatest logit is above the second, on average",
    ),
    Metric(
        "near_zero_share", "near-zero share", "share of logits near zero",
        formula="mean over rows of the share of logits with |z| < 0.01",
        paper=MAXSUP,
        meaning="share of logits that are almost 0",
    ),
    Metric(
        "ls_regularization", "LS regularization", "regularization term of label smoothing",
        formula="mean over rows of α/K Σ_{z_m < z_label} (z_label − z_m)",
        paper=MAXSUP,
        meaning="the part of label smoothing that regularises: the logits below the label's",
    ),
    Metric(
        "ls_error_amplification", "LS error amplification", "error-amplification term of label smoothing",
        formula="mean over rows of α/K Σ_{z_n > z_label} (z_label − z_n)",
        paper=MAXSUP,
        meaning="the part of label smoothing that makes wrong predictions more confident: the logits above the label's",
    ),
)  # fmt: skip


def near_zero_share(logits: ArrayLike, threshold: float = 0.01) -> NDArray[np.float64]:
    """Share of each row's logits with `|z| < threshold`, (N,) in [0, 1].

    Args:
        logits: (N, K).
        threshold: positive. Default 0.01.

    Raises:
        ValueError: a wrong shape, no rows, NaN or infinite logits, probabilities, or a threshold that is not positive.
    """
    return _near_zero_share(_check(logits), threshold)


def margin(logits: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Label's logit minus the greatest other one, (N,): positive where the row is predicted right.

    Arguments and errors as in `accuracy`; needs at least two classes.
    """
    return _margin(*check_rows(logits, labels))


def top_margin(logits: ArrayLike) -> NDArray[np.float64]:
    """Greatest logit minus the second greatest, (N,), at least 0. Errors as in `near_zero_share`; needs two classes."""
    return _top_margin(_check(logits))


class LogitMetrics(LogitAccumulator):
    """Means over an evaluation set that comes in batches: `compute_metrics=LogitMetrics()`.

    Args:
        alpha: of `ls_decomposition`.
        threshold: of `near_zero_share`.
        ignore_index: label of ignored rows. Default −100.
        next_token: in the Trainer, whether the logits at position t belong to the label at t + 1, as in causal language
            models. Default: set by `MaxSupTrainer`; elsewhere they belong to the label at t.
    """

    def __init__(
        self, alpha: float = 0.1, threshold: float = 0.01, ignore_index: int = -100, next_token: bool | None = None
    ):
        self.alpha, self.threshold = alpha, threshold
        super().__init__(ignore_index, next_token)

    def reset(self) -> None:
        super().reset()
        self._totals: dict[str, float] = {}

    def add(self, z: NDArray[np.float64], y: NDArray[np.integer]) -> None:
        parts = ls_decomposition(torch.from_numpy(z), torch.from_numpy(y), self.alpha, reduction="none")
        batch = {
            "margin": _margin(z, y),
            "top_margin": _top_margin(z),
            "near_zero_share": _near_zero_share(z, self.threshold),
            "ls_regularization": parts.regularization.numpy(),
            "ls_error_amplification": parts.error_amplification.numpy(),
        }
        self._totals = {name: self._totals.get(name, 0.0) + float(x.sum()) for name, x in batch.items()}

    def compute(self) -> dict[str, float]:
        """`margin`, `top_margin`, `near_zero_share`, `ls_regularization`, `ls_error_amplification`: means over the rows.

        Raises:
            ValueError: no rows so far, or they are probabilities.
        """
        self.check_rows()
        return {name: total / self._rows for name, total in self._totals.items()}


# ---- per-row statistics of logits that were checked ----


def _near_zero_share(z: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    if not threshold > 0:
        raise ValueError(f"threshold must be positive, got {threshold!r}")
    return (np.abs(z) < threshold).sum(1) / (~np.isneginf(z)).sum(1)


def _margin(z: NDArray[np.float64], y: NDArray[np.integer]) -> NDArray[np.float64]:
    _at_least_two(z)
    rows = np.arange(len(y))
    others = z.copy()
    others[rows, y] = -np.inf
    return z[rows, y] - others.max(1)


def _top_margin(z: NDArray[np.float64]) -> NDArray[np.float64]:
    _at_least_two(z)
    second, first = np.partition(z, -2, axis=1)[:, -2:].T
    return first - second


def _check(logits: ArrayLike) -> NDArray[np.float64]:
    z = as_logits(logits)
    if z.ndim != 2 or 0 in z.shape:
        raise ValueError(f"expected logits (N, K) with at least one row, got {z.shape}")
    check_logits(z)
    refuse_probabilities(z)
    return z


def _at_least_two(z: NDArray[np.float64]) -> None:
    if z.shape[1] < 2:
        raise ValueError(f"a margin needs logits of at least two classes, got {z.shape}")
