"""A formula evaluated on the statistics of all rows, and reduced."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maxsup_hf.losses._reduction import reduce, summed_weight
from maxsup_hf.losses._spec import Formula, LossSpec
from maxsup_hf.ops.autograd import can_be_read, is_plain, linear_loss, loss_in_one_call, serves_loss, statistics
from maxsup_hf.ops.formula import linear_coefficients
from maxsup_hf.ops.row_stats import MOMENTS, SLOPES, STATISTICS, row_count


class Reduction(NamedTuple):
    """How values of rows become a loss; see `maxsup_hf.losses._reduction.reduce`.

    Attributes:
        kind: `"mean"`, `"sum"` or `"none"`.
        valid: (N,) bool, `None` if it is known that no row is ignored.
        row_weight: (N,) factor of the target term, or `None`.
        items: what the sum is divided by, instead of the number of valid rows.
        weight_in_batch: what the sum of the target term is divided by, instead of `items`.
    """

    kind: str
    valid: Tensor | None = None
    row_weight: Tensor | None = None
    items: Tensor | float | None = None
    weight_in_batch: Tensor | float | None = None

    def __call__(self, target_term: Tensor, penalty: Tensor | None = None) -> Tensor:
        """What the target term becomes, plus what the penalty does."""
        if penalty is not None and self.row_weight is None:
            target_term, penalty = target_term + penalty, None
        divisor = self.items if self.weight_in_batch is None else self.weight_in_batch
        total = reduce(target_term, self.valid, self.kind, divisor, self.row_weight)
        return total if penalty is None else total + reduce(penalty, self.valid, self.kind, self.items)

    def factors(self, count: int, like: Tensor) -> tuple[Any, Any]:
        """What the sums of target term and penalty over `count` rows are multiplied by: numbers on a CPU, elsewhere perhaps
        0-dim tensors of the device and dtype of `like`, for which nobody waits."""
        if self.kind == "sum":
            return 1.0, 1.0
        of_penalty = self.items
        if of_penalty is None:
            of_penalty = count if self.valid is None else self.valid.sum()
        of_term = of_penalty if self.weight_in_batch is None else self.weight_in_batch
        if self.row_weight is not None and self.items is None and self.weight_in_batch is None:
            of_term = summed_weight(self.row_weight, self.valid)
        return _one_over(of_term, like), _one_over(of_penalty, like)


def _one_over(divisor: Any, like: Tensor) -> Any:
    """1/divisor, or 1 for a divisor of 0."""
    if isinstance(divisor, Tensor):
        if like.device.type != "cpu":
            divisor = divisor.to(like.device, like.dtype)
            return 1 / torch.where(divisor == 0, 1, divisor)
        divisor = divisor.item()
    return 1 / (float(divisor) or 1.0)


def evaluate(
    formula: Formula,
    arguments: tuple[str, ...],
    values: Mapping[str, Any],
    rows: Tensor,
    target: Tensor,
    reduction: Reduction,
    *,
    inputs: Mapping[str, Any],
    summands: Mapping[str, Formula],
    ignore_index: int,
    backend: str,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss, cross-entropy and the penalties of `summands`, reduced.

    Args:
        formula, arguments, values: what is computed of each row.
        rows: (N, K) or (outer, K, inner).
        target: (N,) class indices, or class probabilities of the shape of `rows`.
        inputs: what the formula may take beside row statistics.
        summands: name -> formula on `arguments` of the penalty: what class weights scale, and what they do not.
        backend: as `maxsup_hf.ops.backends.choose` returns it.
    """
    if not inputs:  # as numbers: a schedule may have filled its tensors anew when the backward comes
        values = {name: _as_number(value) for name, value in values.items()}
    if not summands and _serves_at_once(rows, target, values, reduction, inputs, backend):
        terms = _coefficients(formula, arguments, tuple(values.items()))
        if terms is not None:
            return *_at_once(terms, rows, target, reduction, ignore_index, backend), {}
    names = tuple(dict.fromkeys(("cross_entropy", *(name for name in arguments if name in STATISTICS))))
    stats = statistics(rows, target, names, ignore_index=ignore_index, backend=backend)
    if reduction.valid is not None and target.is_floating_point():  # the operation ignores rows by their class index only
        stats = {name: torch.where(reduction.valid, value, 0) for name, value in stats.items()}
    have = {**inputs, **stats}
    given = [have[name] for name in arguments]
    entropy = stats["cross_entropy"]

    def reduced(formula: Formula) -> Tensor:  # of a term that is 0 everywhere a formula may return one number
        return reduction(*(term.expand(entropy.shape) for term in formula(*given, **values)))

    loss = reduced(formula)
    with torch.no_grad():
        return loss, reduction(entropy.detach()), {name: reduced(of) for name, of in summands.items()}


def _as_number(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.device.type != "cpu" or value.requires_grad or not can_be_read(value):
        return value
    return value.item()


def _serves_at_once(
    rows: Tensor, target: Tensor, values: Mapping[str, Any], reduction: Reduction, inputs: Any, backend: str
) -> bool:
    """Whether the gradient may be made in the forward. Not in float16, in which α/(K·N) is 0 before a gradient scaler has
    scaled it."""
    if inputs or backend == "reference" or reduction.kind == "none" or not is_plain(rows, target):
        return False
    if not (rows.requires_grad and torch.is_grad_enabled()) or rows.dtype == torch.float16 or target.requires_grad:
        return False
    if target.is_floating_point() and reduction.valid is not None:
        return False
    others = (*reduction[2:], *values.values())
    return not any(isinstance(value, Tensor) and value.requires_grad for value in others)


def _coefficients(formula: Formula, arguments: tuple[str, ...], values: tuple[tuple[str, Any], ...]) -> Any:
    """As `linear_coefficients`, each a tuple in the order of `SLOPES`."""
    terms = linear_coefficients(formula, arguments, dict(values))
    return terms and tuple(tuple(found.get(name, 0.0) for name in SLOPES) for found in terms)


def _slopes(formula: Formula, arguments: tuple[str, ...], values: tuple[tuple[str, Any], ...]) -> Any:
    """The coefficients of target term + penalty, for values that are numbers."""
    terms = _coefficients(formula, arguments, values)
    return terms and tuple(a + b for a, b in zip(*terms, strict=True))


# Asking anew costs more than a small batch. Only for formulas of this package: another's may read what changes.
_remembered_slopes = lru_cache(maxsize=64)(_slopes)


def _at_once(
    terms: tuple[tuple[Any, ...], tuple[Any, ...]],
    rows: Tensor,
    target: Tensor,
    reduction: Reduction,
    ignore_index: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    count = row_count(rows)
    weight = reduction.row_weight
    number = torch.promote_types(rows.dtype, torch.float32)
    slopes = rows.new_zeros((1 if weight is None else count, len(SLOPES)), dtype=number)
    by_term, by_penalty = reduction.factors(count, slopes)
    if weight is not None:
        by_term = weight * by_term
    moments = False
    for name, column, of_term, of_penalty in zip(SLOPES, slopes.unbind(1), *terms, strict=True):
        if isinstance(of_term, Tensor) or isinstance(of_penalty, Tensor) or of_term or of_penalty:
            column += of_term * by_term + of_penalty * by_penalty
            moments |= name in MOMENTS
    by: Any = {"ignore_index": ignore_index, "moments": moments, "backend": backend}
    return linear_loss(rows, target, slopes, by_term, **by)


def in_one_call(
    spec: LossSpec, values: Mapping[str, Any], logits: Tensor, labels: Tensor, items: Any, reduction: str, ignore_index: int
) -> tuple[Tensor, Tensor] | None:
    """Loss and cross-entropy with little overhead, or `None` where that does not serve. Only `reduction` has been
    checked before."""
    if not (is_plain(logits, labels) and serves_loss(logits, labels) and logits.requires_grad and torch.is_grad_enabled()):
        return None
    if reduction == "none" or len(spec.parts) > 1 or spec.needs_logits:
        return None
    items = _as_number(items)
    numbers = tuple([(name, _as_number(x)) for name, x in values.items()])
    if isinstance(items, Tensor) or any([isinstance(x, Tensor) for _, x in numbers]):
        return None
    slopes_of = _remembered_slopes if spec.formula.__module__.startswith("maxsup_hf.losses.") else _slopes
    slopes = slopes_of(spec.formula, spec.arguments, numbers)
    if slopes is None:
        return None
    divisor = 1.0 if reduction == "sum" else 0.0 if items is None else items or 1.0
    return loss_in_one_call(logits, labels, slopes, divisor, ignore_index=ignore_index)
