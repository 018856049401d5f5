"""The derivative of a loss's formula with respect to row statistics: N values each, cheap beside a pass over N·K logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maxsup_hf.ops.row_stats import MOMENTS, SLOPES

Formula = Callable[..., tuple[Tensor, Tensor]]


class RowLoss(NamedTuple):
    """A loss on row statistics.

    Attributes:
        formula: `(row statistics, **values) -> (target term, penalty)`.
        names: the statistics that it takes.
        values: its parameters and options.
        summands: of a sum, name -> formula of the penalty of each loss.
    """

    formula: Formula
    names: Sequence[str]
    values: Mapping[str, Any]
    summands: Mapping[str, Formula]

    @property
    def needs_moments(self) -> bool:
        return not MOMENTS.isdisjoint(self.names)


def differentiate(
    formula: Formula, stats: Mapping[str, Tensor], values: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Evaluate a formula and its slopes.

    Args:
        formula: `(row statistics, **parameters) -> (target term, penalty)`, each (N,) or 0-dim.
        stats: name -> (N,), in the formula's order.
        values: its parameters, numbers or 0-dim tensors.

    Returns:
        (N,) target term + penalty, detached, and name -> (N,) derivative with respect to each statistic on which it depends.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in stats.items()}
    with torch.enable_grad():
        target_term, penalty = formula(*leaves.values(), **values)
        loss = target_term + penalty
        total = loss.sum()
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return loss.detach(), {name: grad for name, grad in zip(leaves, gradients, strict=True) if grad is not None}


def packed(slopes: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """(N, 8) as the row operation takes them, of the slopes of some statistics; `like` is (N,)."""
    none = torch.zeros_like(like)
    return torch.stack([slopes.get(name, none) for name in SLOPES], 1)


def linear_coefficients(
    formula: Formula, names: Sequence[str], values: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The coefficients of a formula that is linear in the row statistics: its gradient is then known without a backward.

    Args:
        formula, names, values: as for `differentiate`, `names` those of the statistics.

    Returns:
        name -> coefficient (a number or a 0-dim tensor) of the target term, and of the penalty; `None` for a formula
        that is not linear.
    """
    try:
        terms: Any = formula(*(_Linear({name: 1.0}) for name in names), **values)
    except (TypeError, AttributeError):
        return None
    return (terms[0].coefficients, terms[1].coefficients) if all(isinstance(term, _Linear) for term in terms) else None


class _Linear:
    """Stands in for the row statistics: Σ coefficient·statistic. What is not linear raises TypeError or AttributeError, as
    Python does where an operation is missing."""

    def __init__(self, coefficients: dict[str, Any]):
        self.coefficients = coefficients

    def new_zeros(self, *args: Any) -> _Linear:
        return _Linear({})

    def __add__(self, other: Any) -> _Linear:
        if not isinstance(other, _Linear):
            return NotImplemented
        names = dict.fromkeys((*self.coefficients, *other.coefficients))
        return _Linear({name: self.coefficients.get(name, 0.0) + other.coefficients.get(name, 0.0) for name in names})

    def __mul__(self, other: Any) -> _Linear:
        if not isinstance(other, Real | Tensor):
            return NotImplemented
        return _Linear({name: coefficient * other for name, coefficient in self.coefficients.items()})

    __rmul__ = __mul__

    def __neg__(self) -> _Linear:
        return self * -1.0

    def __sub__(self, other: Any) -> _Linear:
        return self + -other if isinstance(other, _Linear) else NotImplemented

    def __truediv__(self, other: Any) -> _Linear:
        return self * (1 / other) if isinstance(other, Real | Tensor) else NotImplemented

    # What Python answers for any object, though it is a question about the values.
    def __bool__(self) -> bool:
        raise TypeError("a linear form has no truth value")

    def __eq__(self, other: object) -> bool:
        raise TypeError("a linear form cannot be compared")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _Linear({}) if function is torch.zeros_like else NotImplemented
