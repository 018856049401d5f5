"""The two terms of label smoothing: regularization and error amplification (arXiv 2502.15798, Corollary 3.4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from maxsup_hf.losses._inputs import check_inputs, normalized
from maxsup_hf.losses._reduction import reduce, split_ignored
from maxsup_hf.ops.row_stats import masked_classes, upcast


class Decomposition(NamedTuple):
    """The two terms that label smoothing adds to cross-entropy."""

    regularization: Tensor
    error_amplification: Tensor


class Gaps(NamedTuple):
    """The label's logit minus the other logits, summed separately over smaller and over larger ones (strictly)."""

    above_smaller: Tensor  # Σ_{z_m < z_g} (z_g − z_m) ≥ 0
    smaller: Tensor  # M, the number of smaller logits
    below_larger: Tensor  # Σ_{z_n > z_g} (z_g − z_n) ≤ 0
    larger: Tensor  # N, the number of larger logits


def gaps(logits: Tensor, labels: Tensor) -> Gaps:
    """Compute `Gaps`.

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
    """The two terms that label smoothing adds to cross-entropy, which sum to α(z_label − mean z).

    Regularization is α/K·Σ_{z_m < z_label} (z_label − z_m). Error amplification is α/K·Σ_{z_n > z_label} (z_label − z_n): 0
    for a correct prediction, and negative for a wrong one, which it rewards for its confidence.

    Source: arXiv 2502.15798, Corollary 3.4.

    Args:
        logits: (..., K), floating.
        labels: (...) integer class indices.
        alpha: strength of the smoothing, in [0, 1].
        ignore_index: label of ignored rows.
        reduction: `"mean"` over rows that are not ignored, `"sum"`, or `"none"` for (...).

    Returns:
        `(regularization, error_amplification)`, float32 (float64 for float64 logits), differentiable.

    Raises:
        TypeError, ValueError: invalid shapes, dtypes, labels or alpha.

    Example:
        >>> import torch
        >>> from maxsup_hf import ls_decomposition
        >>> terms = ls_decomposition(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([1]), alpha=0.3)
        >>> print(", ".join(f"{name} {value:.2f}" for name, value in terms._asdict().items()))
        regularization 0.10, error_amplification -0.10
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha!r}")
    labels, _ = normalized(labels, None, logits)
    check_inputs(logits, labels, ignore_index, None)
    if labels.is_floating_point():
        raise ValueError(
            f"labels must be integer class indices, got {labels.dtype}: the terms depend on which class is the label"
        )
    rows = logits.reshape(-1, logits.shape[-1])
    masked = masked_classes(rows)
    valid, target = split_ignored(labels.reshape(-1), ignore_index)
    gap = gaps(torch.where(valid[:, None], upcast(rows).masked_fill(masked, -torch.inf), 0), target)
    classes = (~masked).sum(-1).clamp_min(1)
    terms = [reduce(alpha * part / classes, valid, reduction) for part in (gap.above_smaller, gap.below_larger)]
    if reduction == "none":
        terms = [term.reshape(labels.shape) for term in terms]
    return Decomposition(*terms)
