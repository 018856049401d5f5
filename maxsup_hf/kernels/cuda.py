"""Row numbers and gradients on a GPU: a Triton kernel that reads each logit and writes each gradient once.

Up to `IN_REGISTERS` classes a program holds its row in registers; above it passes over the row twice, and finds it in the
L2 cache the second time. Where the formula is linear in the row numbers its gradient needs none of them, so that one launch
does everything; otherwise a first launch gives the numbers, the formula is differentiated on these N values, and a second
launch writes the gradient. Nothing is added up by atomics and the host waits for nothing: results do not change from run to
run, and a CUDA graph can capture it.

TRITON_INTERPRET=1, set before this module is imported, runs the same kernel on the CPU; that is how the tests run it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from maxsup_hf.kernels.formula import differentiate, linear_coefficients
from maxsup_hf.logit_stats import NUMBERS

IN_REGISTERS = 32768
BLOCK = 8192  # of a pass over a longer row
SLOPES = tuple(name for name in NUMBERS if name != "classes")  # the numbers that have a gradient, in the kernel's order


@triton.jit
def _row(
    logits, target, slopes, numbers, grad,
    classes, row_stride, masked,
    SOFT: tl.constexpr, WRITE: tl.constexpr, BLOCK: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    grad += row * classes
    column = tl.arange(0, BLOCK)

    # ---- the numbers of the row ----
    top = -float("inf")
    where = classes
    scale = 0.0  # Σ exp(z − top)
    weighted = 0.0  # Σ exp(z − top)·z
    total = 0.0
    square = 0.0
    count = 0.0
    label = 0.0
    mass = 1.0
    if SOFT:
        mass = 0.0
    z = tl.zeros((BLOCK,), tl.float32)
    taken = column < 0
    for start in tl.range(0, classes, BLOCK):
        k = start + column
        z = tl.load(logits + k, mask=k < classes, other=-float("inf")).to(tl.float32)
        taken = z > masked  # not a masked class, and inside the row
        inside = tl.where(taken, z, 0.0)
        here = tl.max(z, axis=0)
        higher = tl.maximum(top, here)
        shrink = tl.where(top > -float("inf"), tl.exp(top - higher), 0.0)
        e = tl.where(taken, tl.exp(z - higher), 0.0)
        first = tl.min(tl.where((z == here) & (k < classes), k, classes), axis=0)
        where = tl.where(here > top, first, where)
        scale = scale * shrink + tl.sum(e, axis=0)
        weighted = weighted * shrink + tl.sum(e * inside, axis=0)
        total += tl.sum(inside, axis=0)
        square += tl.sum(inside * inside, axis=0)
        count += tl.sum(taken.to(tl.float32), axis=0)
        top = higher
        if SOFT:
            t = tl.load(target + row * classes + k, mask=k < classes, other=0.0).to(tl.float32)
            label += tl.sum(tl.where(t == 0.0, 0.0, t * z), axis=0)
            mass += tl.sum(t, axis=0)
    log_scale = tl.log(scale)
    count = tl.maximum(count, 1.0)
    expected = weighted / scale
    y = tl.zeros((), tl.int64)
    if SOFT:
        cross_entropy = mass * (log_scale + top) - label
    else:
        y = tl.load(target + row).to(tl.int64)
        label = tl.load(logits + y).to(tl.float32)
        cross_entropy = log_scale - (label - top)

    numbers += row * 8
    tl.store(numbers + 0, cross_entropy)
    tl.store(numbers + 1, log_scale + top)
    tl.store(numbers + 2, top)
    tl.store(numbers + 3, total / count)
    tl.store(numbers + 4, label)
    tl.store(numbers + 5, square)
    tl.store(numbers + 6, expected)
    tl.store(numbers + 7, count)

    # ---- the gradient ----
    if WRITE:
        slopes += row * 7
        by_entropy = tl.load(slopes + 0)
        by_lse = tl.load(slopes + 1)
        by_top = tl.load(slopes + 2)
        by_mean = tl.load(slopes + 3)
        by_label = tl.load(slopes + 4)
        by_square = tl.load(slopes + 5)
        by_expected = tl.load(slopes + 6)
        largest = tl.maximum(tl.abs(by_entropy), tl.maximum(tl.abs(by_lse), tl.abs(by_top)))
        largest = tl.maximum(largest, tl.maximum(tl.abs(by_mean), tl.abs(by_label)))
        used = tl.maximum(largest, tl.maximum(tl.abs(by_square), tl.abs(by_expected))) > 0
        for start in tl.range(0, classes, BLOCK):
            k = start + column
            if not ONE:
                z = tl.load(logits + k, mask=k < classes, other=-float("inf")).to(tl.float32)
                taken = z > masked
            inside = tl.where(taken, z, 0.0)
            q = tl.where(taken, tl.exp(z - top), 0.0) / scale
            g = q * (by_entropy * mass + by_lse + by_expected * (1.0 + inside - expected))
            g += tl.where(taken, by_mean / count + 2.0 * by_square * inside, 0.0)
            g += tl.where(k == where, by_top, 0.0)
            if SOFT:
                t = tl.load(target + row * classes + k, mask=k < classes, other=0.0).to(tl.float32)
                g += t * (by_label - by_entropy)
            else:
                g += tl.where(k == y, by_label - by_entropy, 0.0)
            g = tl.where(used, g, 0.0)  # a row that nothing depends on, even where its logits are NaN
            tl.store(grad + k, g.to(grad.dtype.element_ty), mask=k < classes)


@triton.jit
def _times(values, factor, size, BLOCK: tl.constexpr):
    """values *= factor, without touching memory where the factor is 1, as it is after a plain `loss.backward()`."""
    by = tl.load(factor).to(tl.float32)
    if by != 1.0:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        v = tl.load(values + i, mask=i < size)
        tl.store(values + i, (v.to(tl.float32) * by).to(v.dtype), mask=i < size)


@triton_op("maxsup_hf::rows", mutates_args={})
def rows(logits: Tensor, target: Tensor, slopes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Numbers of each row, and where `slopes` are given the gradient of Σ slopes·numbers.

    Args:
        logits: (N, K) float32, bfloat16 or float16; each row contiguous.
        target: (N,) class indices, or (N, K) contiguous probabilities.
        slopes: (N, 7) float32, what each of `SLOPES` is multiplied by; or `None`.

    Returns:
        (N, 8) float32 in the order of `NUMBERS`, and (N, K) in the logits' dtype, or empty without slopes.
    """
    n, classes = logits.shape
    numbers = torch.empty(n, len(NUMBERS), dtype=torch.float32, device=logits.device)
    grad = torch.empty_like(logits, memory_format=torch.contiguous_format) if slopes is not None else logits.new_empty(0)
    if n == 0:
        return numbers, grad
    one = classes <= IN_REGISTERS
    block = triton.next_power_of_2(classes) if one else BLOCK
    dtype = torch.bfloat16 if logits.dtype == torch.float32 else logits.dtype  # see logit_stats.masked_classes
    wrap_triton(_row)[(n,)](
        logits, target, numbers if slopes is None else slopes, numbers, grad,
        classes, logits.stride(0), torch.finfo(dtype).min,
        SOFT=target.is_floating_point(), WRITE=slopes is not None, BLOCK=block, ONE=one,
        num_warps=min(32, max(4, block // 512)),
    )  # fmt: skip
    return numbers, grad


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, label_scale: Tensor, penalty_scale: Tensor,
        formula: Callable[..., Any], names: Sequence[str], values: Mapping[str, Any],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        wanted = ctx.needs_input_grad[0]
        coefficients = linear_coefficients(formula, names, values)

        def stacked(gradients: Mapping[str, Tensor]) -> Tensor:
            none = torch.zeros_like(label_scale)
            return torch.stack([gradients.get(name, none).expand_as(none) for name in SLOPES], 1)

        if coefficients is not None:
            of_label, of_penalty = coefficients
            slopes = {
                name: label_scale * of_label.get(name, 0.0) + penalty_scale * of_penalty.get(name, 0.0)
                for name in (*of_label, *of_penalty)
            }
            found, grad = rows(logits, target, stacked(slopes) if wanted else None)
            numbers = dict(zip(NUMBERS, found.unbind(1), strict=True))
            terms = [sum(c * numbers[name] for name, c in part.items()) for part in coefficients]
            label_term, penalty = (term if isinstance(term, Tensor) else torch.zeros_like(label_scale) for term in terms)
        else:
            found, grad = rows(logits, target, None)
            numbers = dict(zip(NUMBERS, found.unbind(1), strict=True))
            # ignored rows may hold NaN, and NaN times a scale of 0 is NaN
            counted = {name: torch.where(label_scale.abs() + penalty_scale.abs() > 0, numbers[name], 0) for name in names}
            label_term, penalty, gradients = differentiate(formula, counted, values, label_scale, penalty_scale)
            if wanted:
                grad = rows(logits, target, stacked(gradients))[1]
        ctx.save_for_backward(grad)
        ctx.spent = False
        loss = _sum(label_term, label_scale) + _sum(penalty, penalty_scale)
        cross_entropy = _sum(numbers["cross_entropy"], label_scale)
        ctx.mark_non_differentiable(cross_entropy)
        return loss, cross_entropy

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the gradient of this kernel cannot be differentiated again (create_graph=True): use the plain path"
            )
        if ctx.spent:
            raise RuntimeError(
                "backward ran twice through one loss, whose gradient is scaled in place: compute the loss again"
            )
        ctx.spent = True
        (grad,) = ctx.saved_tensors
        if grad.numel():
            block = 4096
            _times[(triton.cdiv(grad.numel(), block),)](grad, grad_loss.contiguous(), grad.numel(), BLOCK=block)
        return grad, None, None, None, None, None, None


def _sum(term: Tensor, scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0, term * scale).sum()


def loss_of_rows(
    logits: Tensor,
    target: Tensor,
    label_scale: Tensor,
    penalty_scale: Tensor,
    formula: Callable[..., Any],
    names: Sequence[str],
    values: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """Σ label_scale·label_term + penalty_scale·penalty over the rows, differentiable once.

    Args:
        logits: (N, K) float32, bfloat16 or float16.
        target: (N,) class indices (any valid one in ignored rows), or (N, K) probabilities. No gradient flows to it.
        label_scale, penalty_scale: (N,) float32: what ignore_index, class weights and the divisor of the mean make of a
            row, 0 for one that does not count. No gradient flows to them.
        formula, names, values: of the loss, see `maxsup_hf.kernels.formula.differentiate`.

    Returns:
        The loss, and the same sum of the cross-entropy without a gradient, both 0-dim float32.

    Raises:
        TypeError: float64 logits, which the plain path serves.
        RuntimeError: (from backward) a second backward through the same loss, or one of second order.
    """
    if logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"logits must be float32, bfloat16 or float16, got {logits.dtype}: use the plain path")
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    return _Rows.apply(logits, target.contiguous(), label_scale, penalty_scale, formula, tuple(names), dict(values))
