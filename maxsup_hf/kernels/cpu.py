"""Any loss on row numbers, on the CPU in eager mode: block after block, each while it is in cache.

Written out in tensor operations a loss walks over all logits five to ten times, and each walk goes to memory. Here a block
of rows that fits in the cache gets its numbers and, because a formula's coefficients are known or cheap to find, at once its
gradient, which waits for the backward. So the logits are read once and the gradient is written once. Nothing else of their
size exists: peak memory is 1 × the logits, or none with `inplace=True`.

Where the gradient is not made in the forward (`maxsup_hf.kernels.gradient` says when) the backward walks over the logits
again.

The twin is `maxsup_hf.kernels.problem.plain`, which also serves blocks with masked classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maxsup_hf.kernels import blocks, small
from maxsup_hf.kernels.formula import Formula, differentiate, linear_coefficients
from maxsup_hf.kernels.gradient import Engine
from maxsup_hf.kernels.problem import ALL, Problem, Rows, evaluate, plain_numbers


def walk(logits: Tensor, target: Tensor, problem: Problem, rows: Rows, grad: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `maxsup_hf.kernels.gradient.Engine`."""
    job = _Job(problem, logits, target)
    all_alike = rows is ALL and not problem.per_row
    if all_alike and small.serves(logits, target):
        terms = job.small(logits, target, grad)
        if terms is not None:
            return terms
    all_alike = all_alike and job.coefficients is not None
    # Whether classes are masked shows in the sums at the end, and then all is done again with a look at each block. But what
    # is overwritten cannot be done again, and float16's smallest number is not far from usual ones.
    if grad is not logits and logits.dtype != torch.float16:
        sums = _joined([job.block(*block) for block in blocks.cut(logits, target, rows, grad)])
        numbers = job.numbers(sums)
        if all_alike:
            of = job.summed(numbers, sums)
            if of is not None:
                return job.totals(of)
        elif not (job.sees_masks and _may_be_masked(sums["top"], sums["mean"])):
            return evaluate(numbers, problem, rows, logits.shape[:-1])
    numbers = _joined([job.careful_block(*block) for block in blocks.cut(logits, target, rows, grad)])
    return evaluate(numbers, problem, rows, logits.shape[:-1])


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name].flatten() for part in parts]) for name in parts[0]}


class _Job:
    """What stays the same from block to block: the problem, the formula's coefficients, and memory of a block's size.

    Everything that has one value a row has the shape of a block with 1 in place of K.
    """

    def __init__(self, problem: Problem, logits: Tensor, target: Tensor):
        self.problem, self.names = problem, problem.names
        self.classes = logits.shape[-1]
        self.wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        # A formula of the user's own may read variables outside of its arguments, which a cache would not see change.
        known = problem.formula.__module__.startswith("maxsup_hf.losses.") and problem.formula.__module__ != REGISTRY
        find = _cached_coefficients if known else _coefficients
        self.coefficients = find(problem.formula, problem.numbers, tuple(problem.values.items()), self.classes)
        self.soft = target.is_floating_point()
        self.keeps_z = self.soft or "square" in self.names or "expected" in self.names
        self.sees_masks = self.keeps_z or "mean" in self.names or "classes" in self.names
        self.size = logits.numel()
        self.memory: dict[int, Tensor] = {}

    def buffer(self, slot: int, like: Tensor) -> Tensor:
        """Memory of the shape of a block, whose content is lost when the slot is asked for again."""
        memory = self.memory.get(slot)
        if memory is None or memory.numel() < like.numel():
            memory = self.memory[slot] = torch.empty(like.shape, dtype=self.wide)
        return memory if memory.shape == like.shape else memory.view(-1)[: like.numel()].view(like.shape)

    def block(self, logits: Tensor, t: Tensor, rows: Rows, out: Tensor | None, careful: bool = False) -> dict[str, Tensor]:
        """Write the gradient of a block, as `cut` yields it, to `out`.

        Returns:
            What `numbers` makes the numbers of. If `careful`, nothing where a class may be masked; `out` is then untouched.
        """
        z, overwrites = logits, out is not None and out.data_ptr() == logits.data_ptr()
        if z.dtype != self.wide or (overwrites and self.keeps_z):
            z = self.buffer(0, z).copy_(z)
        top, index = _first_maximum(z) if "top" in self.names else (z.amax(1, keepdim=True), None)
        sums = {"top": top}
        if self.sees_masks:
            sums["mean"] = z.mean(1, keepdim=True)
            if careful and _may_be_masked(top, sums["mean"], logits):
                return {}
        if z is not logits and not self.keeps_z:
            e = z
        # A step on memory outside of the cache is saved by a buffer, if it is small beside the logits.
        elif out is not None and out.dtype == self.wide and (overwrites or self.size < 128 * z.numel()):
            e = out
        else:
            e = self.buffer(1, z)
        if self.soft:
            t, product = t.to(self.wide), self.buffer(2, z)
            sums["mass"] = t.sum(1, keepdim=True)
            sums["label"] = torch.mul(t, z, out=product).sum(1, keepdim=True)
            torch.sub(z, top, out=e)
            sums["shifted_label"] = torch.mul(t, e, out=product).sum(1, keepdim=True)
        else:
            t = t.long()
            sums["label"] = z.gather(1, t)
            torch.sub(z, top, out=e)
        sums["exp"] = e.exp_().sum(1, keepdim=True)
        if "square" in self.names:
            sums["square"] = torch.mul(z, z, out=self.buffer(2, z)).sum(1, keepdim=True)
        if "expected" in self.names:
            sums["product"] = torch.mul(e, z, out=self.buffer(2, z)).sum(1, keepdim=True)
        if out is not None:
            grad = self.gradient(z, t, index, sums, rows, e, out if out.dtype == self.wide else e)
            if grad is not out:
                out.copy_(grad)
        return sums

    def careful_block(self, logits: Tensor, t: Tensor, rows: Rows, out: Tensor | None) -> dict[str, Tensor]:
        """As `block`, also where classes are masked; returns the numbers."""
        sums = self.block(logits, t, rows, out, careful=True)
        return self.numbers(sums) if sums else self.plain_block(logits, t, rows, out)

    def plain_block(self, logits: Tensor, t: Tensor, rows: Rows, out: Tensor | None) -> dict[str, Tensor]:
        z = logits.detach().movedim(1, -1).requires_grad_(out is not None)
        target = t.movedim(1, -1)
        problem = self.problem._replace(per_row=False)
        with torch.enable_grad():
            numbers = plain_numbers(z, target if self.soft else target.squeeze(-1), problem)
            loss, _ = evaluate(numbers, problem, rows)
        if out is not None:
            out.copy_(torch.autograd.grad(loss, z)[0].movedim(-1, 1))
        return {name: x.detach() for name, x in numbers.items()}

    def numbers(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`problem.names` -> value, from what `block` returns."""
        top, log_sum = sums["top"], sums["exp"].log()
        found = {}
        for name in self.names:
            if name == "cross_entropy" and self.soft:
                found[name] = sums["mass"] * log_sum - sums["shifted_label"]
            elif name == "cross_entropy":
                found[name] = log_sum - (sums["label"] - top)
            elif name == "lse":
                found[name] = log_sum + top
            elif name == "expected":
                found[name] = sums["product"] / sums["exp"]
            elif name == "classes":
                found[name] = torch.full_like(top, self.classes)
            else:
                found[name] = sums[name]
        return found

    def summed(self, numbers: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> dict[str, float] | None:
        """Each number's sum over the rows; `None` if a class may be masked."""
        rows = {**numbers, "top": sums["top"], "mean": sums["mean"]} if self.sees_masks else numbers
        of = dict(zip(rows, torch.stack(list(rows.values())).flatten(1).sum(1).tolist(), strict=True))
        return None if self.sees_masks and not of["top"] - of["mean"] < _limit(self.wide) else of

    def small(self, logits: Tensor, target: Tensor, grad: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """All of `walk` for what `small` serves; `None` if a class may be masked."""
        if self.coefficients is not None:
            linear = {"cross_entropy": 0.0} | self.factors({}, ALL)
            found = small.walk(logits, target, linear, lambda _: linear, grad, _limit(self.wide))
            return None if found is None else self.totals({name: float(np.add.reduce(found[name])) for name in linear})
        terms: list[Tensor] = []

        def factors(numbers: small.Numbers) -> dict[str, Any]:
            given = {name: torch.from_numpy(numbers[name]) for name in self.problem.numbers}
            scales = self.problem.label_scale, self.problem.penalty_scale
            *terms[:], slopes = differentiate(self.problem.formula, given, self.problem.values, *scales)
            return {"cross_entropy": 0.0} | {name: x.numpy() for name, x in slopes.items() if name != "classes"}

        found = small.walk(logits, target, self.names, factors, grad, _limit(self.wide))
        if found is None:
            return None
        label_term, penalty = (float(np.add.reduce(term.expand(len(logits)).numpy())) for term in terms)
        return self.scalars(label_term, penalty, float(np.add.reduce(found["cross_entropy"])))

    def totals(self, of: Mapping[str, float]) -> tuple[Tensor, Tensor]:
        """`evaluate` for a linear formula on rows that all count alike, from sums of their numbers: in few operations, as
        small batches want it."""
        assert self.coefficients is not None
        by_label, by_penalty = self.coefficients
        label_term, penalty = (sum([c * of[name] for name, c in by.items()]) for by in (by_label, by_penalty))
        return self.scalars(label_term, penalty, of["cross_entropy"])

    def scalars(self, label_term: float, penalty: float, cross_entropy: float) -> tuple[Tensor, Tensor]:
        """Loss and cross-entropy from sums over the rows."""
        loss = self.problem.label_scale * label_term + self.problem.penalty_scale * penalty
        cross_entropy *= self.problem.label_scale
        return torch.scalar_tensor(loss, dtype=self.wide), torch.scalar_tensor(cross_entropy, dtype=self.wide)

    def gradient(
        self, z: Tensor, t: Tensor, index: Tensor | None, sums: Mapping[str, Tensor], rows: Rows, e: Tensor, out: Tensor
    ) -> Tensor:
        """Fill `out` with the gradient: what multiplies softmax_k, what falls on every class, what falls on single ones. `e`
        is exp(z − top), and is lost."""
        by = self.factors(sums, rows)
        by_softmax = by.get("cross_entropy", 0.0)
        by_target = by.get("label", 0.0) - by_softmax
        if self.soft:
            by_softmax = by_softmax * sums["mass"]
        by_softmax = by_softmax + by.get("lse", 0.0)
        factor = sums["exp"].reciprocal()
        if "expected" in by:
            slope = torch.mul(z, by["expected"], out=self.buffer(2, z))
            e.mul_(slope.add_(by_softmax + by["expected"] * (1 - sums["product"] * factor)))
        else:
            factor.mul_(by_softmax)
        # The last step that goes over all classes is the one that writes to memory outside of the cache.
        if "mean" in by:
            torch.add(e.mul_(factor), by["mean"] / self.classes, out=out)
        else:
            torch.mul(e, factor, out=out)
        if "square" in by:
            _add_product(out, z, 2 * by["square"])
        if self.soft:
            _add_product(out, t, by_target)
        else:
            _add_at(out, t, by_target)
        if index is not None and "top" in by:
            _add_at(out, index, by["top"])
        if rows.valid is not None:
            out.masked_fill_(~rows.valid, 0)
        return out

    def factors(self, sums: Mapping[str, Tensor], rows: Rows) -> dict[str, Any]:
        """A number -> the derivative of the loss with respect to it, a float or one value a row."""
        label_scale: Any = self.problem.label_scale
        penalty_scale: Any = self.problem.penalty_scale
        if rows.label_weight is not None:
            label_scale = rows.label_weight * label_scale
        if rows.penalty_weight is not None:
            penalty_scale = rows.penalty_weight * penalty_scale
        if self.coefficients is not None:
            by_label, by_penalty = self.coefficients
            by: dict[str, Any] = {name: c * label_scale for name, c in by_label.items()}
            for name, c in by_penalty.items():
                by[name] = by[name] + c * penalty_scale if name in by else c * penalty_scale
            return by
        numbers = self.numbers(sums)
        given = {name: numbers[name].flatten() for name in self.problem.numbers}
        if rows.valid is not None:
            given = {name: torch.where(rows.valid.flatten(), x, 0) for name, x in given.items()}
        scales = (x.flatten() if isinstance(x, Tensor) else x for x in (label_scale, penalty_scale))
        gradients = differentiate(self.problem.formula, given, self.problem.values, *scales)[2]
        return {name: x.view(sums["top"].shape) for name, x in gradients.items() if name != "classes"}


def _coefficients(
    formula: Formula, numbers: tuple[str, ...], values: tuple[tuple[str, Any], ...], classes: int
) -> tuple[dict[str, float], dict[str, float]] | None:
    """Of a formula that is linear where no class is masked, so that `classes` is K. They are found anew for new values only:
    on small batches that would take as long as all else."""
    names = [name for name in numbers if name != "classes"]

    def unmasked(*given: Any, **values: Any) -> Any:
        found = dict(zip(names, given, strict=True)) | {"classes": classes}
        return formula(*(found[name] for name in numbers), **values)

    found = linear_coefficients(unmasked, names, dict(values))
    if found is None:
        return None
    by_label, by_penalty = ({name: c for name, c in term.items() if c != 0} for term in found)
    return by_label, by_penalty


REGISTRY = "maxsup_hf.losses._registry"  # where formulas of sums are made, which may have a user's in them
_cached_coefficients = lru_cache(maxsize=64)(_coefficients)


def _limit(dtype: torch.dtype) -> float:
    return 1e300 if dtype == torch.float64 else 1e30


def _may_be_masked(top: Tensor, mean: Tensor, logits: Tensor | None = None) -> bool:
    """Whether any class could be masked, or any logit is not finite, told without a look at each: what is masked pulls the
    mean of its row down by at least 1e38/K."""
    if logits is not None and logits.dtype == torch.float16:
        return not logits.amin().item() > torch.finfo(torch.float16).min
    return not (top - mean).sum().item() < _limit(top.dtype)


def _first_maximum(z: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum over dimension 1 and its first index.

    `max` with indices and `argmax` look at one number at a time. So the maximum of each stretch of classes first, without
    indices, then the first best stretch, then the place in it.
    """
    classes, width = z.shape[1], 256
    if classes < 8 * width:
        top, index = z.max(1, keepdim=True)
        return top, index
    whole = classes // width
    best = z[:, : whole * width].unflatten(1, (whole, width)).amax(2)
    if whole * width < classes:
        best = torch.cat([best, z[:, whole * width :].amax(1, keepdim=True)], 1)
    top, stretch = best.max(1, keepdim=True)
    start = (stretch * width).clamp_max_(classes - width)  # the last stretch reaches back into numbers that are smaller
    place = torch.arange(width).view(-1, *[1] * (z.ndim - 2))
    return top, start + z.gather(1, start + place).max(1, keepdim=True).indices


def _add_product(total: Tensor, x: Tensor, factor: Any) -> None:
    if isinstance(factor, Tensor):
        total.addcmul_(x, factor)
    else:
        total.add_(x, alpha=factor)


def _add_at(total: Tensor, index: Tensor, amount: Any) -> None:
    if isinstance(amount, Tensor):
        total.scatter_add_(1, index, amount)
    else:
        total.scatter_(1, index, amount, reduce="add")


def _multiply(grad: Tensor, factor: float) -> Tensor:
    return grad if factor == 1 else grad.mul_(factor)


ENGINE = Engine(walk, Tensor.item, _multiply)
