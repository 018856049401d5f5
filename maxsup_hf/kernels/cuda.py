"""Row numbers and gradients on a GPU: a Triton kernel that reads each logit and writes each gradient once.

Up to `IN_REGISTERS` classes a program holds its row in registers; above it passes over the row twice, and finds it in the
L2 cache the second time. Where the formula is linear in the row numbers its gradient needs none of them, so that one launch
does everything; otherwise a first launch gives the numbers, the formula is differentiated on these N values, and a second
launch writes the gradient. Nothing is added up by atomics and the host waits for nothing: results do not change from run to
run, and a CUDA graph can capture it.

TRITON_INTERPRET=1, set before this module is imported, runs the same kernel on the CPU; so the tests run it. They also
compile it for GPUs that need not be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from maxsup_hf.kernels.gradient import Engine
from maxsup_hf.kernels.problem import Problem, Rows, evaluate
from maxsup_hf.ops.formula import differentiate, linear_coefficients
from maxsup_hf.ops.row_stats import STATISTICS as NUMBERS

IN_REGISTERS = 16384  # of 32,768 the assembler would spill a row into memory
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
    shifted = 0.0  # Σ t·(z − anchor), which keeps the digits that label − lse would lose where logits are large
    anchor = 0.0  # the top, once there is one
    mass = 1.0
    if SOFT:
        mass = 0.0
    z = tl.zeros((BLOCK,), tl.float32)
    taken = column < 0
    for start in tl.range(0, classes, BLOCK):
        k = start + column
        z = tl.load(logits + k, mask=k < classes, other=-float("inf")).to(tl.float32)
        taken = ~(z <= masked)  # neither masked nor outside of the row; NaN is taken, it must reach the loss
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
            nearer = tl.where(top > -float("inf"), top, 0.0)
            shifted += mass * (anchor - nearer) + tl.sum(tl.where(t == 0.0, 0.0, t * (z - nearer)), axis=0)
            mass += tl.sum(t, axis=0)
            anchor = nearer
    log_scale = tl.log(scale)
    count = tl.maximum(count, 1.0)
    expected = weighted / scale
    if SOFT:
        cross_entropy = mass * log_scale - shifted
    else:
        label = tl.load(logits + tl.load(target + row).to(tl.int64)).to(tl.float32)
        if WRITE:
            tl.debug_barrier()  # in place, a faster warp's gradient would stand where a slower one looks for the label
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
        # NaN is not 0: it must reach the gradient, where a gradient scaler looks for it
        used = (by_entropy != 0) | (by_lse != 0) | (by_top != 0) | (by_mean != 0)
        used = used | (by_label != 0) | (by_square != 0) | (by_expected != 0)
        y = tl.zeros((), tl.int64)
        if not SOFT:
            y = tl.load(target + row).to(tl.int64)
        for start in tl.range(0, classes, BLOCK):
            k = start + column
            if not ONE:
                z = tl.load(logits + k, mask=k < classes, other=-float("inf")).to(tl.float32)
                taken = ~(z <= masked)
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


def warps(block: int) -> int:
    """Of a program: a thread holds 16 numbers of the row, or 32 of the longest."""
    return min(32, max(4, block // 512))


@triton_op("maxsup_hf::triton_rows", mutates_args={"grad"})
def rows_of(logits: Tensor, target: Tensor, slopes: Tensor | None, grad: Tensor | None) -> Tensor:
    """Numbers of each row; where `slopes` are given, the gradient of Σ slopes·numbers is written into `grad`.

    Args:
        logits: (N, K) float32, bfloat16 or float16; each row contiguous.
        target: (N,) class indices, or (N, K) contiguous probabilities.
        slopes: (N, 7) float32, what each of `SLOPES` is multiplied by; or `None`.
        grad: (N, K) contiguous, in the logits' dtype, may be the logits; `None` as `slopes` are.

    Returns:
        (N, 8) float32 in the order of `NUMBERS`.
    """
    n, classes = logits.shape
    numbers = torch.empty(n, len(NUMBERS), dtype=torch.float32, device=logits.device)
    if n == 0:
        return numbers
    one = classes <= IN_REGISTERS
    block = triton.next_power_of_2(classes) if one else BLOCK
    dtype = torch.bfloat16 if logits.dtype == torch.float32 else logits.dtype
    with torch.cuda.device_of(logits):
        wrap_triton(_row)[(n,)](
            logits, target, numbers if slopes is None else slopes, numbers, logits if grad is None else grad,
            classes, logits.stride(0), torch.finfo(dtype).min,
            SOFT=target.is_floating_point(), WRITE=grad is not None, BLOCK=block, ONE=one,
            num_warps=warps(block),
        )  # fmt: skip
    return numbers


def walk(logits: Tensor, target: Tensor, problem: Problem, rows: Rows, grad: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `maxsup_hf.kernels.gradient.Engine`. The scales of `problem` may be 0-dim tensors."""
    classes = logits.shape[-1]
    z = logits.detach().reshape(-1, classes)
    z = z if z.stride(1) == 1 else z.contiguous()
    t = (target.reshape(-1, classes) if target.is_floating_point() else target.reshape(-1)).contiguous()
    whole = grad is not None and grad.is_contiguous()  # images hold their classes apart, and get their gradient by a copy
    out = None if grad is None else grad.detach().view(-1, classes) if whole else torch.empty_like(z)
    of_label = _scale(len(z), problem.label_scale, rows.valid, rows.label_weight, z.device)
    of_penalty = _scale(len(z), problem.penalty_scale, rows.valid, rows.penalty_weight, z.device)

    coefficients = linear_coefficients(problem.formula, problem.numbers, problem.values)
    if coefficients is not None:
        by_label, by_penalty = coefficients
        slopes = {name: of_label * c for name, c in by_label.items()}
        for name, c in by_penalty.items():
            slopes[name] = slopes[name] + of_penalty * c if name in slopes else of_penalty * c
        found = rows_of(z, t, None if out is None else _stacked(slopes, of_label), out)
    else:
        found = rows_of(z, t, None, None)
        if out is not None:
            given = dict(zip(NUMBERS, found.unbind(1), strict=True))
            if rows.valid is not None:  # rows that take no part may hold NaN, and NaN times a scale of 0 is NaN
                given = {name: torch.where(rows.valid.flatten(), x, 0) for name, x in given.items()}
            given = {name: given[name] for name in problem.numbers}
            slopes = differentiate(problem.formula, given, problem.values, of_label, of_penalty)[2]
            rows_of(z, t, _stacked(slopes, of_label), out)
    if grad is not None and not whole:
        grad.copy_(out.view(grad.shape))  # type: ignore[union-attr]
    numbers = dict(zip(NUMBERS, found.unbind(1), strict=True))
    return evaluate({name: numbers[name] for name in problem.names}, problem, rows, logits.shape[:-1])


def _scale(n: int, scale: Any, valid: Tensor | None, weight: Tensor | None, device: torch.device) -> Tensor:
    """(N,) float32: what a term of each row is multiplied by."""
    of_rows = torch.ones(n, device=device) if valid is None else valid.flatten().float()
    return of_rows * scale if weight is None else torch.where(of_rows > 0, weight.flatten().float() * scale, 0)


def _stacked(slopes: Mapping[str, Tensor], like: Tensor) -> Tensor:
    none = torch.zeros_like(like)
    return torch.stack([slopes.get(name, none).expand_as(none) for name in SLOPES], 1)


def _multiply(grad: Tensor, factor: Tensor) -> Tensor:
    if grad.numel():
        if sum((size - 1) * step for size, step in zip(grad.shape, grad.stride(), strict=True)) + 1 != grad.numel():
            return grad.mul_(factor)  # in place, between the gaps of something larger
        block = 4096
        dense = torch.as_strided(grad, (grad.numel(),), (1,))  # whatever the order of its dimensions
        with torch.cuda.device_of(grad):
            _times[(triton.cdiv(grad.numel(), block),)](dense, factor.contiguous(), grad.numel(), BLOCK=block)
    return grad


ENGINE = Engine(walk, lambda factor: factor, _multiply)
