"""Effective rank: how many dimensions features spread over."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from maxsup_hf.metrics._records import Metric, register_metrics
from maxsup_hf.metrics._rows import as_array

ROY = "Roy & Vetterli 2007, EUSIPCO"

register_metrics(
    Metric(
        "effective_rank", "effective rank", "effective rank of the features",
        formula="exp of the entropy of p = σ/Σσ, σ the singular values of the features",
        paper=ROY, aliases=("feature_effective_rank",),
    ),
    Metric(
        "effective_rank_centered", "centered effective rank", "effective rank of the features minus their mean",
        formula="exp of the entropy of p = σ/Σσ, σ the singular values of the features minus their mean",
        paper=ROY, aliases=("feature_effective_rank_centered",),
    ),
)  # fmt: skip


def effective_rank(singular_values: Any) -> float:
    """exp of the entropy of p = σ/Σσ (Roy & Vetterli, EUSIPCO 2007), between 1 and the rank; 0 if all σ are 0.

    Args:
        singular_values: (R,), none negative, in any order.

    Raises:
        ValueError: a negative, infinite or NaN value, or no values.
    """
    s = as_array(singular_values).astype(np.float64)
    if s.ndim != 1 or not s.size or not ((s >= 0) & (s < np.inf)).all():
        raise ValueError(f"expected singular values (R,), finite and at least 0, got {s.shape}: {s[:5]}…")
    p = s[s > 0] / s.sum()
    return float(np.exp(-(p * np.log(p)).sum())) if p.size else 0.0


def singular_values(gram: Tensor) -> Tensor:
    """Singular values of X from XᵀX. Those below the rounding errors of its entries are 0."""
    values = torch.linalg.eigvalsh(gram)
    values[values < values[-1] * len(gram) * torch.finfo(gram.dtype).eps] = 0
    return values.sqrt()
