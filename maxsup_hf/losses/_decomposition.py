"""The two halves of label smoothing (arXiv 2502.15798, Corollary 3.4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from maxsup_hf.losses._inputs import check_inputs, normalized
from maxsup_hf.losses._reduction import reduce, split_ignored
from maxsup_hf.ops.row_stats import masked_classes, upcast


class Decomposition(NamedTuple):
    """What label smoothing adds to cross-entropy, in two terms."""

    regularization: Tensor
    error_amplification: Tensor


class Gaps(NamedTuple):
    """How far the label's logit lies above smaller logits and below larger ones, summed over each; strict inequalities."""

    above_smaller: Tensor  # Σ_{z_m < z_g} (z_g − z_m) ≥ 0
    smaller: Tensor  # their number, M
    below_larger: Tensor  # Σ_{z_n > z_g} (z_g − z_n) ≤ 0
    larger: Tensor  # their number, N


def gaps(logits: Tensor, labels: Tensor) -> Gaps:
    """See `Gaps`.

    Args:
        logits: (N, K) float32 or float64, −inf where a class is masked.
        labels: (N,) class indices.

    Returns:
        Four (N,) tensors of the logits' dtype.
    """
    masked = logits == -torch.inf
    gap = logits.gather(-1, labels[:, None]) - logits.masked_fill(masked, 0)
    smaller, larger = (gap > 0) & ~masked, (gap < 0) & ~masked
    return Gaps(
        torch.where(smaller, gap, 0).sum(-1),
        smaller.sum(-1).to(gap.dtype),
        torch.where(larger, gap, 0).sum(-1),
        larger.sum(-1).to(gap.dtype),
    )


def ls_decomposition(
    logits: Tensor, labels: Tensor, alpha: float = 0.1, *, ignore_index: int = -100, reduction: str = "mean"
) -> Decomposition:
    """What label smoothing adds to cross-entropy, α(z_label − mean z), as the sum of its two terms: regularization
    α/K·Σ_{z_m < z_label} (z_label − z_m), and error amplification α/K·Σ_{z_n > z_label} (z_label − z_n), which is 0 for a
    right prediction and rewards a wrong one for its confidence.

    Source: arXiv 2502.15798, Corollary 3.4.

    Args:
        logits: (..., K), floating.
        labels: (...) integer class indices.
        alpha: strength of the smoothing, in [0, 1].
        ignore_index: label of ignored rows.
        reduction: `"mean"` over counted rows, `"sum"`, or `"none"` for (...).

    Returns:
        `(regularization, error_amplification)`, float32 (float64 for float64 logits), differentiable.

    Raises:
        TypeError, ValueError: shapes, dtypes, labels or an alpha that do not fit.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha!r}")
    labels, _ = normalized(labels, None, logits)
    check_inputs(logits, labels, ignore_index, None)
    if labels.is_floating_point():
        raise ValueError(f"labels must be integer class indices, got {labels.dtype}: the terms ask which class is the label")
    rows = logits.reshape(-1, logits.shape[-1])
    masked = masked_classes(rows)
    valid, target = split_ignored(labels.reshape(-1), ignore_index)
    gap = gaps(torch.where(valid[:, None], upcast(rows).masked_fill(masked, -torch.inf), 0), target)
    classes = (~masked).sum(-1).clamp_min(1)
    terms = (reduce(alpha * part / classes, valid, reduction) for part in (gap.above_smaller, gap.below_larger))
    return Decomposition(*(term.reshape(labels.shape) if reduction == "none" else term for term in terms))
