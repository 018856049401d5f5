"""What a kernel is asked, and the plain answer to it: the twin of every kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maxsup_hf.ops.autograd import statistics
from maxsup_hf.ops.formula import Formula


class Problem(NamedTuple):
    """A loss on row numbers: the sum over rows of label_scale·label_weight·(term on the label) +
    penalty_scale·penalty_weight·penalty, the weights being in `Rows`.

    Attributes:
        formula: `(row numbers, **values) -> (term on the label, penalty)`.
        numbers: its arguments, names of `maxsup_hf.ops.row_stats.STATISTICS`.
        values: its parameters and options; numbers may be 0-dim tensors.
        label_scale, penalty_scale: what the terms of all rows are multiplied by.
        per_row: a value for each row is wanted, not the sum.
    """

    formula: Formula
    numbers: tuple[str, ...]
    values: Mapping[str, Any]
    label_scale: float = 1.0
    penalty_scale: float = 1.0
    per_row: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All numbers to compute: the formula's, and the cross-entropy, which is reported."""
        return self.numbers if "cross_entropy" in self.numbers else ("cross_entropy", *self.numbers)


class Rows(NamedTuple):
    """What differs between rows; each has the shape of the logits without the class dimension, and `None` is 1 everywhere.

    Attributes:
        valid: bool, False for rows that take no part, whatever they hold.
        label_weight, penalty_weight: factors of the two terms.
    """

    valid: Tensor | None = None
    label_weight: Tensor | None = None
    penalty_weight: Tensor | None = None


ALL = Rows()  # every row counts alike


def evaluate(
    numbers: Mapping[str, Tensor], problem: Problem, rows: Rows = ALL, shape: tuple[int, ...] | None = None
) -> tuple[Tensor, Tensor]:
    """Loss and cross-entropy from the numbers of all rows, differentiable.

    Args:
        numbers: `problem.names` -> one value a row, of any shape.
        problem, rows: see there.
        shape: of the result if `problem.per_row`; `None` is (N,).
    """
    valid, label_weight, penalty_weight = (None if x is None else x.flatten() for x in rows)
    numbers = {name: x.flatten() for name, x in numbers.items()}
    if valid is not None:  # what a row that takes no part holds must not reach the sum: NaN times 0 is NaN
        numbers = {name: torch.where(valid, x, 0) for name, x in numbers.items()}
    label_term, penalty = problem.formula(*(numbers[name] for name in problem.numbers), **problem.values)

    def total(term: Tensor, scale: float, weight: Tensor | None) -> Tensor:
        term = term.expand(numbers["cross_entropy"].shape)  # of a term that is 0 everywhere a formula may return one
        if valid is not None:
            term = torch.where(valid, term, 0)
        if weight is not None:
            term = term * weight
        return scale * (term.reshape(term.shape if shape is None else shape) if problem.per_row else term.sum())

    loss = total(label_term, problem.label_scale, label_weight) + total(penalty, problem.penalty_scale, penalty_weight)
    return loss, total(numbers["cross_entropy"].detach(), problem.label_scale, label_weight)


def plain_numbers(logits: Tensor, target: Tensor, problem: Problem) -> dict[str, Tensor]:
    """`problem.names` -> (N,) for logits (..., K) and target (...) or (..., K), by `statistics`; differentiable."""
    classes = logits.shape[-1]
    target = target.reshape(-1, classes) if target.is_floating_point() else target.reshape(-1)
    return statistics(logits.reshape(-1, classes), target, problem.names)


def plain(logits: Tensor, target: Tensor, problem: Problem, rows: Rows = ALL) -> tuple[Tensor, Tensor]:
    """Loss and cross-entropy for logits (..., K) and target (...) or (..., K); differentiable as often as you like."""
    return evaluate(plain_numbers(logits, target, problem), problem, rows, logits.shape[:-1])
