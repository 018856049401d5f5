"""Derivatives of a loss formula with respect to row statistics: N values each, cheap next to a pass over N·K logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maxsup_hf.ops.row_stats import MOMENTS, SLOPES

Formula = Callable[..., tuple[Tensor, Tensor]]


class RowLoss(NamedTuple):
    """A loss that needs only row statistics.

    Attributes:
        formula: `(row statistics, **values) -> (target term, penalty)`.
        names: the row statistics that the formula takes.
        values: its parameters and options.
        summands: for a sum of losses, name -> formula of the penalty of each.
    """

    formula: Formula
    names: Sequence[str]
    values: Mapping[str, Any]
    summands: Mapping[str, Formula]

    @property
    def needs_moments(self) -> bool:
        """Whether the formula takes any of the more expensive statistics, `MOMENTS`."""
        return not MOMENTS.isdisjoint(self.names)


def differentiate(
    formula: Formula, stats: Mapping[str, Tensor], values: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Evaluate a formula and its derivatives with respect to the row statistics (the slopes).

    Args:
        formula: `(row statistics, **parameters) -> (target term, penalty)`, each (N,) or 0-dim.
        stats: name -> (N,), in the formula's order.
        values: its parameters (floats or 0-dim tensors) and options.

    Returns:
        Target term + penalty (N,), detached, and name -> (N,) derivative with respect to each statistic it depends on.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in stats.items()}
    with torch.enable_grad():
        target_term, penalty = formula(*leaves.values(), **values)
        loss = target_term + penalty
        total = loss.sum()
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return loss.detach(), {name: grad for name, grad in zip(leaves, gradients, strict=True) if grad is not None}


def packed(slopes: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """Slopes of some statistics as the (N, 8) tensor that the row operation takes, zero for the others; `like` is (N,)."""
    none = torch.zeros_like(like)
    return torch.stack([slopes.get(name, none) for name in SLOPES], 1)


def linear_coefficients(
    formula: Formula, names: Sequence[str], values: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The coefficients of a formula that is linear in the row statistics, whose gradient needs no backward.

    Args:
        formula, values: as for `differentiate`.
        names: the row statistics that the formula takes, in its order.

    Returns:
        name -> coefficient (a float or a 0-dim tensor) in the target term, and the same for the penalty; `None` if the
        formula is not linear.
    """
    try:
        terms: Any = formula(*(_LinearForm({name: 1.0}) for name in names), **values)
    except (TypeError, AttributeError):  # raised by any operation that `_LinearForm` does not define
        return None
    if not all(isinstance(term, _LinearForm) for term in terms):
        return None
    return terms[0].coefficients, terms[1].coefficients


class _LinearForm:
    """Σ coefficient·statistic, passed to a formula in place of a row statistic to find its coefficients.

    It defines only the operations that keep a formula linear; all others raise TypeError or AttributeError, as for any
    Python object.
    """

    def __init__(self, coefficients: dict[str, Any]):
        self.coefficients = coefficients

    def new_zeros(self, *args: Any) -> _LinearForm:
        return _LinearForm({})

    def __add__(self, other: Any) -> _LinearForm:
        if not isinstance(other, _LinearForm):
            return NotImplemented
        names = dict.fromkeys((*self.coefficients, *other.coefficients))
        return _LinearForm({name: self.coefficients.get(name, 0.0) + other.coefficients.get(name, 0.0) for name in names})

    def __mul__(self, other: Any) -> _LinearForm:
        if not isinstance(other, Real | Tensor):
            return NotImplemented
        return _LinearForm({name: coefficient * other for name, coefficient in self.coefficients.items()})

    __rmul__ = __mul__

    def __neg__(self) -> _LinearForm:
        return self * -1.0

    def __sub__(self, other: Any) -> _LinearForm:
        if not isinstance(other, _LinearForm):
            return NotImplemented
        return self + -other

    def __truediv__(self, other: Any) -> _LinearForm:
        if not isinstance(other, Real | Tensor):
            return NotImplemented
        return self * (1 / other)

    # Python defines these for every object, but here the answer would depend on the values of the statistics.
    def __bool__(self) -> bool:
        raise TypeError("a linear form has no truth value")

    def __eq__(self, other: object) -> bool:
        raise TypeError("a linear form cannot be compared")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.zeros_like:
            return _LinearForm({})
        return NotImplemented  # torch then raises TypeError
