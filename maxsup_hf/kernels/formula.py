"""The derivative of a loss's formula with respect to the row numbers: N values each, cheap beside a pass over N·K logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Formula = Callable[..., tuple[Tensor, Tensor]]


def differentiate(
    formula: Formula,
    numbers: Mapping[str, Tensor],
    values: Mapping[str, Any],
    label_scale: Tensor | float = 1.0,
    penalty_scale: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Evaluate a formula and the gradient of Σ label_scale·label_term + penalty_scale·penalty.

    Args:
        formula: (row numbers, **parameters) -> (term on the label, penalty), each (N,) or 0-dim.
        numbers: name -> (N,), in the formula's order.
        values: its parameters, numbers or 0-dim tensors.
        label_scale, penalty_scale: (N,) or a number; what the two terms are multiplied by before they are summed.

    Returns:
        Term on the label and penalty, detached, and name -> (N,) gradient of each number on which they depend.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in numbers.items()}
    with torch.enable_grad():
        label_term, penalty = formula(*leaves.values(), **values)
        objective = (label_term * label_scale).sum() + (penalty * penalty_scale).sum()
    gradients = torch.autograd.grad(objective, list(leaves.values()), allow_unused=True)
    return (
        label_term.detach(),
        penalty.detach(),
        {name: grad for name, grad in zip(leaves, gradients, strict=True) if grad is not None},
    )
