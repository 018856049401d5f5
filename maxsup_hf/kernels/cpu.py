"""Any loss on row numbers, on the CPU in eager mode: block after block, each while it is in cache.

Written out in tensor operations a loss walks over all logits five to ten times, and each walk goes to memory. Here a block
of rows that fits in the cache gets its numbers and, because a formula's coefficients are known or cheap to find, at once its
gradient, which waits for the backward. So the logits are read once and the gradient is written once. Nothing else of their
size exists: peak memory is 1 × the logits, or none with `inplace=True`.

Where the gradient cannot be made in the forward (float16, in which α/(K·N) is 0 before a gradient scaler has multiplied it; a
loss for each row; a second backward) the backward walks over the logits again.

A block is (outer, K, inner): inner is 1 where classes lie last in memory, and the pixels of an image (N, K, H, W), which is
not permuted.

The twin is `maxsup_hf.logit_stats` followed by the formula. `_plain` is that, and serves blocks with masked classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maxsup_hf.kernels.formula import Formula, coefficients, differentiate
from maxsup_hf.logit_stats import logit_stats, upcast

BLOCK = 2**18  # numbers in a block for each thread: 1 MiB of float32, so that logits and gradient stay in a level-2 cache

# A number -> the derivative of the loss with respect to it, a float or (outer, 1, inner).
Factors = dict[str, Any]


class Problem(NamedTuple):
    """What a loss is asked, beside logits and target. The loss is the sum over rows of label_scale·label_weight·(term on the
    label) + penalty_scale·penalty_weight·penalty.

    Attributes:
        formula: (row numbers, **values) -> (term on the label, penalty).
        numbers: its arguments, names of `maxsup_hf.logit_stats.NUMBERS`.
        values: its parameters and options; numbers may be 0-dim tensors.
        label_scale, penalty_scale: what the terms of all rows are multiplied by.
        per_row: return a value for each row, not the sum.
        inplace: the logits may be overwritten by their gradient.
    """

    formula: Formula
    numbers: tuple[str, ...]
    values: Mapping[str, Any]
    label_scale: float = 1.0
    penalty_scale: float = 1.0
    per_row: bool = False
    inplace: bool = False


class Rows(NamedTuple):
    """What differs between rows; each has the shape of the logits without the class dimension, and `None` is 1 everywhere.

    Attributes:
        valid: bool, False for rows that take no part, whatever they hold.
        label_weight, penalty_weight: factors of the two terms.
    """

    valid: Tensor | None = None
    label_weight: Tensor | None = None
    penalty_weight: Tensor | None = None


ALL = Rows()


def cpu_loss(logits: Tensor, target: Tensor, problem: Problem, rows: Rows = ALL) -> tuple[Tensor, Tensor]:
    """A loss on CPU logits.

    Args:
        logits: (..., K), floating, in any layout.
        target: (...) class indices in [0, K), also in rows that take no part; or (..., K) class probabilities.
        problem, rows: see there.

    Returns:
        The loss, 0-dim or (...), and the plain cross-entropy in it, which has no gradient. float32, or float64 for float64
        logits. Gradients arrive in the logits' dtype.

    Raises:
        ValueError: `inplace` together with `per_row`.
        RuntimeError: `inplace` on a leaf that requires a gradient, a second backward or a second derivative after it; and,
            by autograd, if the overwritten logits are needed elsewhere in the graph.
    """
    if problem.inplace:
        if problem.per_row:
            raise ValueError("inplace=True needs a loss that is summed: the gradient of each row's own loss is not kept")
        if logits.is_leaf and logits.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("inplace=True overwrites the logits, but a leaf that requires a gradient must stay as it is")
    loss, cross_entropy, *_ = _Loss.apply(logits, target, problem, rows)
    return loss, cross_entropy


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor, problem: Problem, rows: Rows) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.problem, ctx.rows = problem, rows
        ctx.save_for_backward(logits, target)
        # The gradient is there to be used up: the first backward takes it, a second one computes it again.
        ctx.gradient = None
        at_once = ctx.needs_input_grad[0] and not problem.per_row and logits.dtype != torch.float16
        ctx.overwritten = at_once and problem.inplace
        if ctx.overwritten:
            loss, cross_entropy = _walk(logits, target, problem, rows, logits)
            ctx.mark_dirty(logits)
            ctx.mark_non_differentiable(cross_entropy)
            return loss, cross_entropy, logits
        if at_once:
            ctx.gradient = torch.empty_like(logits)
        loss, cross_entropy = _walk(logits, target, problem, rows, ctx.gradient)
        ctx.mark_non_differentiable(cross_entropy)
        return loss, cross_entropy

    @staticmethod
    def backward(ctx, upstream: Tensor | None, _: None, used: Tensor | None = None) -> tuple[Tensor | None, ...]:
        if used is not None:
            raise RuntimeError("logits were used after a loss with inplace=True had overwritten them by their gradient")
        if upstream is None:
            return None, None, None, None
        logits, target = ctx.saved_tensors
        problem: Problem = ctx.problem
        if torch.is_grad_enabled():  # create_graph=True: the twin is differentiated again
            if problem.inplace:
                raise RuntimeError("inplace=True leaves no logits for a second derivative: use inplace=False")
            return _plain_gradient(logits, target, problem, ctx.rows, upstream), None, None, None
        grad, ctx.gradient = ctx.gradient, None
        if ctx.overwritten:
            if ctx.overwritten == "taken":
                raise RuntimeError("inplace=True leaves no logits for a second backward: use inplace=False")
            grad, ctx.overwritten = logits.detach(), "taken"
        if grad is not None:
            factor = upstream.item()
            return grad if factor == 1 else grad.mul_(factor), None, None, None
        grad = logits.detach() if problem.inplace else torch.empty_like(logits)
        _walk(logits.detach(), target, *_times(problem, ctx.rows, upstream), grad)
        return grad, None, None, None


def _times(problem: Problem, rows: Rows, upstream: Tensor) -> tuple[Problem, Rows]:
    """The same loss, multiplied by what comes from above: one number, or one for each row."""
    if not problem.per_row:
        factor = upstream.item()
        scales = problem.label_scale * factor, problem.penalty_scale * factor
        return problem._replace(label_scale=scales[0], penalty_scale=scales[1]), rows
    counts = upstream != 0  # a row that nothing depends on gives zeros even where its logits are NaN
    return problem, Rows(
        valid=counts if rows.valid is None else rows.valid & counts,
        label_weight=upstream if rows.label_weight is None else rows.label_weight * upstream,
        penalty_weight=upstream if rows.penalty_weight is None else rows.penalty_weight * upstream,
    )


def _walk(logits: Tensor, target: Tensor, problem: Problem, rows: Rows, grad: Tensor | None) -> tuple[Tensor, Tensor]:
    """Loss and cross-entropy; the gradient is written into `grad`, which may be the logits themselves."""
    job = _Job(problem, logits)
    blocks = list(_blocks(logits, target, rows, grad))
    if len(blocks) == 1:
        numbers = {name: x.reshape(-1) for name, x in job.numbers_of(*blocks[0][1:]).items()}
    else:
        numbers = {name: torch.empty(logits.shape[:-1].numel(), dtype=job.wide) for name in job.names}
        for where, *block in blocks:
            for name, x in job.numbers_of(*block).items():
                numbers[name][where] = x.reshape(-1)
    return _value(numbers, problem, rows, logits.shape[:-1])


def _blocks(logits: Tensor, target: Tensor, rows: Rows, grad: Tensor | None, start: int = 0) -> Iterator[tuple[Any, ...]]:
    """Cuts a batch into blocks that fit in the cache.

    Yields:
        Which rows these are (a slice of all), their logits, target, `Rows` and gradient, all (outer, K, inner), with 1 in
        place of K where there is a number a row. All are views.
    """
    images = logits.ndim > 1 and logits.stride(-1) > logits.stride(-2)
    soft = target.is_floating_point()
    views = [_as_block(x, images) for x in (logits, target if soft else None, grad) if x is not None]
    if any(x is None for x in views):  # a slice of something larger
        per = logits.shape[1:-1].numel()
        for k in range(len(logits)):
            part = Rows(*(None if x is None else x[k] for x in rows))
            yield from _blocks(logits[k], target[k], part, None if grad is None else grad[k], start + k * per)
        return
    z = views[0]
    outer, classes, inner = z.shape
    one = (outer, 1, inner)
    t = views[1] if soft else target.reshape(one)
    out = None if grad is None else views[-1]
    row = Rows(*(None if x is None else x.reshape(one) for x in rows))
    threads = torch.get_num_threads()
    if classes * inner <= BLOCK * threads:
        high, wide = max(1, BLOCK // (classes * inner)) * threads, max(1, inner)
    else:
        high, wide = 1, max(64, BLOCK * threads // classes)
    if outer <= high and inner <= wide:
        yield slice(start, None), z, t, row, out
        return
    for o in range(0, outer, high):
        for i in range(0, inner, wide):
            at = (slice(o, o + high), slice(None), slice(i, i + wide))
            first = start + o * inner + i
            where = slice(first, first + min(high, outer - o) * min(wide, inner - i))
            yield where, z[at], t[at], Rows(*(None if x is None else x[at] for x in row)), None if out is None else out[at]


def _as_block(x: Tensor, images: bool) -> Tensor | None:
    """(..., K) as (outer, K, inner), or `None` where that would be a copy."""
    shape, classes = x.shape[:-1], x.shape[-1]
    try:
        if not images:
            return x.view(shape.numel(), classes, 1)
        if x.ndim == 2:
            return x.t().view(1, classes, len(x))
        return x.movedim(-1, 1).view(shape[0], classes, shape[1:].numel())
    except RuntimeError:
        return None


def _value(numbers: dict[str, Tensor], problem: Problem, rows: Rows, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Loss and cross-entropy from the numbers of all rows."""
    valid, label_weight, penalty_weight = (None if x is None else x.reshape(-1) for x in rows)
    if valid is not None:  # what a row that takes no part holds must not reach the sum: NaN times 0 is NaN
        numbers = {name: torch.where(valid, x, 0) for name, x in numbers.items()}
    terms = problem.formula(*(numbers[name] for name in problem.numbers), **problem.values)
    scales = problem.label_scale, problem.penalty_scale, problem.label_scale
    weights = label_weight, penalty_weight, label_weight
    totals = []
    for term, scale, weight in zip((*terms, numbers["cross_entropy"]), scales, weights, strict=True):
        if valid is not None:
            term = torch.where(valid, term, 0)
        if weight is not None:
            term = term * weight
        if not problem.per_row:
            term = term.sum()
        totals.append(term * scale)
    loss, cross_entropy = totals[0] + totals[1], totals[2]
    return (loss.expand(shape.numel()).reshape(shape), cross_entropy.reshape(shape)) if problem.per_row else (loss, cross_entropy)


class _Job:
    """What stays the same from block to block: the problem, the formula's coefficients, and buffers of a block's size."""

    def __init__(self, problem: Problem, logits: Tensor):
        self.problem = problem
        self.names = tuple(dict.fromkeys(("cross_entropy", *problem.numbers)))
        self.wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        self.linear = coefficients(problem.formula, problem.numbers, problem.values, logits.shape[-1])
        self.keeps_z = not {"square", "expected"}.isdisjoint(self.names)
        self.sees_masks = self.keeps_z or not {"mean", "classes"}.isdisjoint(self.names)
        self.buffers: dict[int, Tensor] = {}

    def buffer(self, slot: int, like: Tensor) -> Tensor:
        """Memory of the shape of a block, whose content is lost when the slot is asked for again."""
        if slot not in self.buffers or self.buffers[slot].numel() < like.numel():
            self.buffers[slot] = torch.empty(like.numel(), dtype=self.wide)
        return self.buffers[slot][: like.numel()].view(like.shape)

    def numbers_of(self, z: Tensor, t: Tensor, rows: Rows, out: Tensor | None) -> dict[str, Tensor]:
        """The numbers of a block's rows, (outer, 1, inner) each; its gradient is written to `out`."""
        if rows.valid is not None and not rows.valid.any():
            if out is not None:
                out.zero_()
            return dict.fromkeys(self.names, torch.zeros(t[:, :1].shape, dtype=self.wide))
        soft, classes, logits = t.is_floating_point(), z.shape[1], z
        overwrites = out is not None and out.data_ptr() == z.data_ptr()
        if z.dtype != self.wide or (overwrites and (soft or self.keeps_z)):
            z = self.buffer(0, z).copy_(z)
        if soft:
            t = t.to(self.wide)
        top, index = _first_maximum(z)
        total = z.sum(1, keepdim=True) if soft or self.sees_masks else None
        if total is not None and self.may_be_masked(logits, top, total):
            return self.plainly(logits, t, rows, out)

        values = {"top": top, "classes": torch.full_like(top, classes)} if "classes" in self.names else {"top": top}
        if total is not None:
            values["mean"] = total / classes
        if soft:
            product, mass = self.buffer(2, z), t.sum(1, keepdim=True)
            values["label"] = torch.mul(t, z, out=product).sum(1, keepdim=True)
        else:
            values["label"] = z.gather(1, t.long())
        if "square" in self.names:
            values["square"] = torch.mul(z, z, out=self.buffer(2, z)).sum(1, keepdim=True)
        e = out if out is not None and out.dtype == self.wide else self.buffer(1, z)
        torch.sub(z, top, out=e)
        if soft:
            shifted_label = torch.mul(t, e, out=product).sum(1, keepdim=True)
        e.exp_()
        mass_of_e = e.sum(1, keepdim=True)
        log_sum = mass_of_e.log()
        values["lse"] = log_sum + top
        values["cross_entropy"] = mass * log_sum - shifted_label if soft else log_sum - (values["label"] - top)
        if "expected" in self.names:
            values["expected"] = torch.mul(e, z, out=self.buffer(2, z)).sum(1, keepdim=True) / mass_of_e
        numbers = {name: values[name] for name in self.names}
        if out is None:
            return numbers

        # e becomes the gradient: what multiplies softmax_k, what falls on every class, what falls on single ones.
        by = self.factors(numbers, rows)
        by_softmax = by.get("lse", 0.0) + by.get("cross_entropy", 0.0) * (mass if soft else 1.0)
        by_target = by.get("label", 0.0) - by.get("cross_entropy", 0.0)
        if "expected" in by:
            slope = torch.mul(z, by["expected"], out=self.buffer(2, z))
            e.mul_(slope.add_(by_softmax + by["expected"] * (1 - values["expected"])))
            e.mul_(1 / mass_of_e)
        else:
            e.mul_(by_softmax / mass_of_e)
        if "mean" in by:
            e.add_(by["mean"] / classes)
        if "square" in by:
            _add_product(e, z, 2 * by["square"])
        if soft:
            _add_product(e, t, by_target)
        else:
            _add_at(e, t.long(), by_target)
        if "top" in by:
            _add_at(e, index, by["top"])
        if e is not out:
            out.copy_(e)
        if rows.valid is not None:
            out.masked_fill_(~rows.valid, 0)
        return numbers

    def may_be_masked(self, logits: Tensor, top: Tensor, total: Tensor) -> bool:
        """Whether any class of the block could be masked, or any logit is not finite; without another walk over logits,
        except for float16, whose smallest number is not far from usual ones."""
        if logits.dtype == torch.float16:
            return not logits.amin().item() > torch.finfo(torch.float16).min
        limit = 1e300 if self.wide == torch.float64 else 1e30
        return not (top - total / logits.shape[1]).sum().item() < limit

    def factors(self, numbers: dict[str, Tensor], rows: Rows) -> Factors:
        """The derivative of the loss with respect to each number of each row."""
        label_scale, penalty_scale = self.scales(rows)
        if self.linear is not None:
            by: Factors = {name: c * label_scale for name, c in self.linear[0].items()}
            for name, c in self.linear[1].items():
                by[name] = by[name] + c * penalty_scale if name in by else c * penalty_scale
            return by
        given = {name: numbers[name] for name in self.problem.numbers}
        if rows.valid is not None:
            given = {name: torch.where(rows.valid, x, 0) for name, x in given.items()}
        flat = {name: x.reshape(-1) for name, x in given.items()}
        scales = (x.reshape(-1) if isinstance(x, Tensor) else x for x in (label_scale, penalty_scale))
        gradients = differentiate(self.problem.formula, flat, self.problem.values, *scales)[2]
        return {name: x.reshape(numbers[name].shape) for name, x in gradients.items() if name != "classes"}

    def scales(self, rows: Rows) -> tuple[Any, Any]:
        label_scale, penalty_scale = self.problem.label_scale, self.problem.penalty_scale
        return (
            label_scale if rows.label_weight is None else label_scale * rows.label_weight,
            penalty_scale if rows.penalty_weight is None else penalty_scale * rows.penalty_weight,
        )

    def plainly(self, z: Tensor, t: Tensor, rows: Rows, out: Tensor | None) -> dict[str, Tensor]:
        """`numbers_of` by the twin."""
        outer, _, inner = z.shape
        leaf = z.detach().movedim(1, -1).flatten(0, 1).requires_grad_(out is not None)
        target = t.movedim(1, -1).flatten(0, 1)
        with torch.enable_grad():
            numbers, loss, _ = _plain(leaf, target if t.is_floating_point() else target[:, 0], self.problem, rows)
            if out is not None:
                (grad,) = torch.autograd.grad(loss.sum(), leaf)
                out.copy_(grad.view(outer, inner, -1).movedim(-1, 1))
        return {name: x.detach().view(outer, 1, inner) for name, x in numbers.items()}


def _plain(logits: Tensor, target: Tensor, problem: Problem, rows: Rows) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The numbers of each row, loss and cross-entropy, by the twin; differentiable."""
    classes = logits.shape[-1]
    names = tuple(dict.fromkeys(("cross_entropy", *problem.numbers)))
    flat_target = target.reshape(-1, classes) if target.is_floating_point() else target.reshape(-1)
    numbers = logit_stats(logits.reshape(-1, classes), flat_target, names)
    return numbers, *_value(numbers, problem, rows, logits.shape[:-1])


def _plain_gradient(logits: Tensor, target: Tensor, problem: Problem, rows: Rows, upstream: Tensor) -> Tensor:
    loss = _plain(logits, target, problem, rows)[1]
    return torch.autograd.grad(loss, logits, upstream, create_graph=True)[0]


def _first_maximum(z: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum over dimension 1 and its first index, (outer, 1, inner) each.

    `max` with indices and `argmax` look at one number at a time. So the maximum of each stretch of classes first, without
    indices, then the first best stretch, then the place in it.
    """
    classes = z.shape[1]
    if classes < 2000:
        top, index = z.max(1, keepdim=True)
        return top, index
    width = 256
    whole = classes // width
    best = z[:, : whole * width].unflatten(1, (whole, width)).amax(2)
    if whole * width < classes:
        best = torch.cat([best, z[:, whole * width :].amax(1, keepdim=True)], 1)
    top, stretch = best.max(1, keepdim=True)
    start = (stretch * width).clamp_max_(classes - width)  # the last stretch reaches back into numbers that are smaller
    inside = z.gather(1, start + torch.arange(width)[:, None]).max(1, keepdim=True).indices
    return top, start + inside


def _add_product(total: Tensor, x: Tensor, factor: Any) -> None:
    if isinstance(factor, Tensor):
        total.addcmul_(x, factor)
    else:
        total.add_(x, alpha=factor)


def _add_at(total: Tensor, index: Tensor, amount: Any) -> None:
    """total[o, index, i] += amount"""
    if not isinstance(amount, Tensor):
        amount = total.new_full(index.shape, amount)
    total.scatter_add_(1, index, amount)
