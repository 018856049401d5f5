"""Evaluating a formula on the statistics of all rows, and reducing it to the loss."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maxsup_hf.losses._reduction import reduce, summed_weight
from maxsup_hf.losses._spec import Formula, LossSpec
from maxsup_hf.ops.autograd import can_be_read, is_plain, linear_loss, loss_in_one_call, statistics, supports_loss
from maxsup_hf.ops.formula import linear_coefficients
from maxsup_hf.ops.row_stats import MOMENTS, SLOPES, STATISTICS, row_count


class Reduction(NamedTuple):
    """How the values of rows become a loss; see `maxsup_hf.losses._reduction.reduce`.

    Attributes:
        kind: `"mean"`, `"sum"` or `"none"`.
        valid: (N,) bool, False for ignored rows; `None` if it is known that no row is ignored.
        row_weight: (N,) factor of the target term, or `None`.
        items: divides the sum, instead of the number of valid rows.
        weight_in_batch: divides the sum of the target term, instead of `items`.
    """

    kind: str
    valid: Tensor | None = None
    row_weight: Tensor | None = None
    items: Tensor | float | None = None
    weight_in_batch: Tensor | float | None = None

    def __call__(self, target_term: Tensor, penalty: Tensor | None = None) -> Tensor:
        """The reduced target term plus the reduced penalty."""
        if penalty is not None and self.row_weight is None:  # both are reduced alike
            target_term, penalty = target_term + penalty, None
        divisor = self.items if self.weight_in_batch is None else self.weight_in_batch
        total = reduce(target_term, self.valid, self.kind, divisor, self.row_weight)
        return total if penalty is None else total + reduce(penalty, self.valid, self.kind, self.items)

    def factors(self, count: int, like: Tensor) -> tuple[Any, Any]:
        """The factors of the sums of target term and penalty over `count` rows.

        Returns:
            Floats on a CPU; elsewhere they may be 0-dim tensors of the device and dtype of `like`, so that the host does
            not wait for their values.
        """
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
    """1/divisor, or 1 if the divisor is 0."""
    if isinstance(divisor, Tensor):
        if like.device.type != "cpu":
            divisor = divisor.to(like.device, like.dtype)
            return 1 / torch.where(divisor == 0, 1, divisor)
        divisor = divisor.item()
    return 1 / (float(divisor) or 1.0)


class Batch(NamedTuple):
    """A batch on which formulas are evaluated.

    Attributes:
        rows: logits (N, K) or (outer, K, inner).
        target: (N,) class indices, or class probabilities of the shape of `rows`.
        reduction: how the values of rows become the loss.
        inputs: what a formula may take besides row statistics, by the names in `maxsup_hf.losses._spec.INPUTS`.
        ignore_index: class index of ignored rows.
        backend: as returned by `maxsup_hf.ops.backends.choose`.
    """

    rows: Tensor
    target: Tensor
    reduction: Reduction
    inputs: Mapping[str, Any]
    ignore_index: int
    backend: str


def evaluate(
    formula: Formula,
    arguments: tuple[str, ...],
    values: Mapping[str, Any],
    batch: Batch,
    summands: Mapping[str, Formula],
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Evaluate a formula on all rows, and reduce it.

    Args:
        formula: `(arguments, **values) -> (target term, penalty)`.
        arguments: names of what the formula takes, in its order.
        values: its parameters and options.
        summands: for a sum of losses, name -> formula of the penalty of each, with the same arguments.

    Returns:
        The loss; detached, the cross-entropy; and detached, the penalty of each summand.
    """
    rows, target, reduction = batch.rows, batch.target, batch.reduction
    if not batch.inputs:  # copy the values: a schedule may overwrite its tensors before the backward
        values = {name: _as_float(value) for name, value in values.items()}
    if not summands and _allows_gradient_in_forward(batch, values):
        coefficients = _coefficients(formula, arguments, tuple(values.items()))
        if coefficients is not None:
            return *_with_gradient(coefficients, batch), {}
    names = tuple(dict.fromkeys(("cross_entropy", *(name for name in arguments if name in STATISTICS))))
    stats = statistics(rows, target, names, ignore_index=batch.ignore_index, backend=batch.backend)
    if reduction.valid is not None and target.is_floating_point():  # the row operation ignores rows by class index only
        stats = {name: torch.where(reduction.valid, value, 0) for name, value in stats.items()}
    have = {**batch.inputs, **stats}
    given = [have[name] for name in arguments]
    cross_entropy = stats["cross_entropy"]

    def reduced(formula: Formula) -> Tensor:  # a formula may return a 0-dim zero for a term that is always 0
        return reduction(*(term.expand(cross_entropy.shape) for term in formula(*given, **values)))

    loss = reduced(formula)
    with torch.no_grad():
        return loss, reduction(cross_entropy.detach()), {name: reduced(of) for name, of in summands.items()}


def _as_float(value: Any) -> Any:
    """A 0-dim CPU tensor as a float, if it may be read and needs no gradient; anything else unchanged."""
    if not isinstance(value, Tensor) or value.device.type != "cpu" or value.requires_grad or not can_be_read(value):
        return value
    return value.item()


def _allows_gradient_in_forward(batch: Batch, values: Mapping[str, Any]) -> bool:
    """Whether the forward may already compute the gradient of the reduced loss.

    Not in float16, in which α/(K·N) underflows to 0 before a gradient scaler can scale it.
    """
    rows, target, reduction = batch.rows, batch.target, batch.reduction
    if batch.inputs or batch.backend == "reference" or reduction.kind == "none" or not is_plain(rows, target):
        return False
    if not (rows.requires_grad and torch.is_grad_enabled()) or rows.dtype == torch.float16 or target.requires_grad:
        return False
    if target.is_floating_point() and reduction.valid is not None:
        return False
    others = (*reduction[2:], *values.values())  # a gradient with respect to these needs the statistics
    return not any(isinstance(value, Tensor) and value.requires_grad for value in others)


def _coefficients(formula: Formula, arguments: tuple[str, ...], values: tuple[tuple[str, Any], ...]) -> Any:
    """The `linear_coefficients` of target term and penalty, each a tuple in the order of `SLOPES`; `None` if not linear."""
    terms = linear_coefficients(formula, arguments, dict(values))
    return terms and tuple(tuple(found.get(name, 0.0) for name in SLOPES) for found in terms)


def _slopes(formula: Formula, arguments: tuple[str, ...], values: tuple[tuple[str, Any], ...]) -> Any:
    """The coefficients of target term + penalty, for values that are floats; `None` if not linear."""
    terms = _coefficients(formula, arguments, values)
    return terms and tuple(a + b for a, b in zip(*terms, strict=True))


# Finding the slopes takes longer than a small batch. Cached only for formulas of this package: a user's formula may depend
# on something besides its arguments.
_cached_slopes = lru_cache(maxsize=64)(_slopes)


def _with_gradient(coefficients: tuple[tuple[Any, ...], tuple[Any, ...]], batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss and cross-entropy of a linear formula, computing the gradient in the forward."""
    rows, reduction = batch.rows, batch.reduction
    count = row_count(rows)
    weight = reduction.row_weight
    dtype = torch.promote_types(rows.dtype, torch.float32)
    slopes = rows.new_zeros((1 if weight is None else count, len(SLOPES)), dtype=dtype)
    by_term, by_penalty = reduction.factors(count, slopes)
    if weight is not None:
        by_term = weight * by_term
    moments = False
    for name, column, of_term, of_penalty in zip(SLOPES, slopes.unbind(1), *coefficients, strict=True):
        # A coefficient on a GPU cannot be compared with 0 without waiting, so it counts as one that is not.
        if isinstance(of_term, Tensor) or isinstance(of_penalty, Tensor) or of_term or of_penalty:
            column += of_term * by_term + of_penalty * by_penalty
            moments |= name in MOMENTS
    by: Any = {"ignore_index": batch.ignore_index, "moments": moments, "backend": batch.backend}
    return linear_loss(rows, batch.target, slopes, by_term, **by)


def in_one_call(
    spec: LossSpec, values: Mapping[str, Any], logits: Tensor, labels: Tensor, items: Any, reduction: str, ignore_index: int
) -> tuple[Tensor, Tensor] | None:
    """Loss and cross-entropy with little overhead, or `None` if this fast path does not support them.

    Only `reduction` has been checked before.
    """
    if not (is_plain(logits, labels) and supports_loss(logits, labels) and logits.requires_grad and torch.is_grad_enabled()):
        return None
    if reduction == "none" or len(spec.parts) > 1 or spec.needs_logits:
        return None
    items = _as_float(items)
    on_device = isinstance(items, Tensor) and logits.is_cuda and items.dim() == 0 and not items.requires_grad
    # Lists, because they are faster than generators here.
    parameters = tuple([(name, _as_float(value)) for name, value in values.items()])
    if (isinstance(items, Tensor) and not on_device) or any([isinstance(value, Tensor) for _, value in parameters]):
        return None
    own_formula = spec.formula.__module__.startswith("maxsup_hf.losses.")
    slopes = (_cached_slopes if own_formula else _slopes)(spec.formula, spec.arguments, parameters)
    if slopes is None:
        return None
    divisor: Any = 0.0  # stands for the number of rows that are not ignored
    if reduction == "sum":
        divisor = 1.0
    elif items is not None:
        divisor = items if on_device else items or 1.0
    return loss_in_one_call(logits, labels, slopes, divisor, ignore_index=ignore_index)
