"""Row statistics and their gradient on an NVIDIA GPU, with one Triton program per row; see `maxsup_hf.ops.rows_numba`.

With up to `IN_REGISTERS` classes a program holds its row in registers; with more it passes over the row several times, and
finds it in the L2 cache after the first. There are no atomics and the host never waits: results are the same in every run,
and a CUDA graph can capture the kernel.

TRITON_INTERPRET=1, set before Triton is imported, runs the same kernel on the CPU. The tests do this, and they also compile
it for GPUs that the machine does not have.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from maxsup_hf.ops import row_stats
from maxsup_hf.ops.row_stats import as_rows, empty_stats

IN_REGISTERS = 16384  # classes; with 32,768 the assembler would spill the row to memory
BLOCK = 8192  # classes processed at a time in a longer row
MASK_DISTANCE = tl.constexpr(row_stats.MASK_DISTANCE)


@triton.jit
def _row(
    logits, target, slopes, stats, index, grad,
    classes, row_step, slopes_step, ignore_index,
    SOFT: tl.constexpr, MOMENTS: tl.constexpr, STATS: tl.constexpr, WRITE: tl.constexpr,
    BLOCK: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    # From here on the pointers are those of this program's row.
    logits += row * row_step
    target += row * (classes if SOFT else 1)
    grad += row * classes
    stats += row * 10
    column = tl.arange(0, BLOCK)
    y = classes.to(tl.int64)
    counted = True
    if not SOFT:
        y = tl.load(target).to(tl.int64)
        counted = y != ignore_index
    z = tl.zeros((BLOCK,), tl.float32)
    t = tl.zeros((BLOCK,), tl.float32)
    mass = 1.0
    if SOFT and not STATS:  # not among the given statistics
        mass = 0.0
        for start in tl.range(0, BLOCK if ONE else classes, BLOCK):
            t = tl.load(target + start + column, mask=start + column < classes, other=0.0).to(tl.float32)
            mass += tl.sum(t, axis=0)

    if STATS:
        # The top comes first, because all other sums are measured from it. The row is then in registers, or in the cache.
        top = -float("inf")
        where = classes * 0
        for start in tl.range(0, BLOCK if ONE else classes, BLOCK):
            k = start + column
            z = tl.load(logits + k, mask=k < classes, other=-float("inf")).to(tl.float32)
            here = tl.max(z, axis=0)
            first = tl.min(tl.where((z == here) & (k < classes), k, classes), axis=0)
            where = tl.where(here > top, first, where)
            top = tl.maximum(top, here)
        total = 0.0
        shifted = 0.0
        square = 0.0
        product = 0.0
        count = 0.0
        label = 0.0
        shifted_label = 0.0
        if SOFT:
            mass = 0.0
        for start in tl.range(0, BLOCK if ONE else classes, BLOCK):
            k = start + column
            if not ONE:
                z = tl.load(logits + k, mask=k < classes, other=-float("inf")).to(tl.float32)
            x = z - top
            unmasked = ~(x < -MASK_DISTANCE) & (k < classes)  # written so that NaN is not masked, but reaches the loss
            e = tl.where(unmasked, tl.exp(x), 0.0)
            total += tl.sum(e, axis=0)
            shifted += tl.sum(tl.where(unmasked, x, 0.0), axis=0)
            if MOMENTS:
                square += tl.sum(tl.where(unmasked, z * z, 0.0), axis=0)
                product += tl.sum(tl.where(unmasked, e * x, 0.0), axis=0)
            count += tl.sum(unmasked.to(tl.float32), axis=0)
            if SOFT:
                t = tl.load(target + k, mask=k < classes, other=0.0).to(tl.float32)
                mass += tl.sum(t, axis=0)
                label += tl.sum(tl.where(t == 0.0, 0.0, t * z), axis=0)
                shifted_label += tl.sum(tl.where(t == 0.0, 0.0, t * x), axis=0)
        if not SOFT:
            label = tl.load(logits + y, mask=(y >= 0) & (y < classes), other=0.0).to(tl.float32)
            shifted_label = label - top
        log_sum = tl.log(total)
        shifted_expected = product / total
        tl.store(stats + 0, tl.where(counted, mass * log_sum - shifted_label, 0.0))
        tl.store(stats + 1, tl.where(counted, log_sum + top, 0.0))
        tl.store(stats + 2, tl.where(counted, top, 0.0))
        tl.store(stats + 3, tl.where(counted, top + shifted / tl.maximum(count, 1.0), 0.0))
        tl.store(stats + 4, tl.where(counted, label, 0.0))
        tl.store(stats + 5, tl.where(counted, square, 0.0))
        tl.store(stats + 6, tl.where(counted & MOMENTS, top + shifted_expected, 0.0))
        tl.store(stats + 7, tl.where(counted & MOMENTS, log_sum - shifted_expected, 0.0))
        tl.store(stats + 8, tl.where(counted, count, 0.0))
        tl.store(stats + 9, tl.where(counted, total, 0.0))
        tl.store(index + row, tl.where(counted, where, 0).to(tl.int64))
    else:
        top = tl.load(stats + 2)
        total = tl.load(stats + 9)
        shifted_expected = tl.log(total) - tl.load(stats + 7)
        count = tl.load(stats + 8)
        where = tl.load(index + row)

    if WRITE:
        slopes += row * slopes_step
        by_entropy = tl.load(slopes + 0)
        by_lse = tl.load(slopes + 1)
        by_top = tl.load(slopes + 2)
        by_mean = tl.load(slopes + 3)
        by_label = tl.load(slopes + 4)
        by_square = tl.load(slopes + 5)
        by_expected = tl.load(slopes + 6)
        by_x = by_expected - tl.load(slopes + 7)
        # If the loss does not depend on a row, its gradient is 0 even if its logits are NaN. A slope of NaN is not 0.
        used = (by_entropy != 0) | (by_lse != 0) | (by_top != 0) | (by_mean != 0) | (by_label != 0)
        used = (used | (by_square != 0) | (by_expected != 0) | (by_x != 0)) & counted
        by_softmax = by_entropy * mass + by_lse + by_expected
        by_softmax = tl.where(by_x == 0, by_softmax, by_softmax - by_x * shifted_expected)
        by_mean = by_mean / tl.maximum(count, 1.0)
        by_target = by_label - by_entropy
        # q·(by_softmax + by_x·x) + by_mean + 2·by_square·z for every unmasked class, then the top's and the target's share.
        for start in tl.range(0, BLOCK if ONE else classes, BLOCK):
            k = start + column
            if not ONE or not STATS:
                z = tl.load(logits + k, mask=k < classes, other=-float("inf")).to(tl.float32)
            x = z - top
            q = tl.exp(x) / total
            g = q * by_softmax + by_mean
            if MOMENTS:
                g = tl.where(by_x == 0, g, g + by_x * q * x)
                g = tl.where(by_square == 0, g, g + 2.0 * by_square * z)
            g = tl.where(x < -MASK_DISTANCE, 0.0, g)
            g += tl.where(k == where, by_top, 0.0)
            if SOFT:
                t = tl.load(target + k, mask=k < classes, other=0.0).to(tl.float32)
                g += by_target * t
            else:
                g += tl.where(k == y, by_target, 0.0)
            g = tl.where(used, g, 0.0)
            tl.store(grad + k, g.to(grad.dtype.element_ty), mask=k < classes)


@triton.jit
def _scale(
    target, divisor, out, rows, ignore_index, fixed,
    by_entropy, by_lse, by_top, by_mean, by_label, by_square, by_expected, by_x,
    COUNT: tl.constexpr, READ: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the slopes, divided by the number of labels (COUNT), by `divisor` (READ) or by `fixed`, and 1/divisor."""
    by = fixed
    if READ:
        by = tl.load(divisor).to(tl.float32)
    if COUNT:
        counted = tl.zeros((BLOCK,), tl.int32)
        for start in tl.range(0, rows, BLOCK):
            i = start + tl.arange(0, BLOCK)
            counted += (tl.load(target + i, mask=i < rows, other=ignore_index) != ignore_index).to(tl.int32)
        by = tl.sum(counted, axis=0).to(tl.float32)
    by = 1.0 / tl.where(by == 0.0, 1.0, by)
    tl.store(out + 0, by_entropy * by)
    tl.store(out + 1, by_lse * by)
    tl.store(out + 2, by_top * by)
    tl.store(out + 3, by_mean * by)
    tl.store(out + 4, by_label * by)
    tl.store(out + 5, by_square * by)
    tl.store(out + 6, by_expected * by)
    tl.store(out + 7, by_x * by)
    tl.store(out + 8, by)


@triton.jit
def _sums(stats, slopes, out, rows, BLOCK: tl.constexpr):
    """Σ slope·statistic over all rows, in a fixed order, and the sum of the cross-entropies divided as the slopes are."""
    total = tl.zeros((BLOCK,), tl.float32)
    entropy = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, rows, BLOCK):
        i = start + tl.arange(0, BLOCK)
        row = stats + i.to(tl.int64) * 10
        entropy += tl.load(row, mask=i < rows, other=0.0)
        for k in tl.static_range(8):
            slope = tl.load(slopes + k)
            value = tl.load(row + k, mask=i < rows, other=0.0)
            # a statistic without a slope may be infinite, and 0 · ∞ is NaN
            total += tl.where(slope == 0.0, 0.0, slope * value)
    tl.store(out, tl.sum(total, axis=0))
    tl.store(out + 1, tl.sum(entropy, axis=0) * tl.load(slopes + 8))


@triton.jit
def _times(values, factor, size, BLOCK: tl.constexpr):
    """values *= factor, without touching memory if the factor is 1, as it is in a plain `loss.backward()`."""
    by = tl.load(factor).to(tl.float32)
    if by != 1.0:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        v = tl.load(values + i, mask=i < size)
        tl.store(values + i, (v.to(tl.float32) * by).to(v.dtype), mask=i < size)


def warps(block: int) -> int:
    """The number of warps of a program: each thread holds 16 elements of the row, or 32 of the longest rows."""
    return min(32, max(4, block // 512))


def rows(logits: Tensor, target: Tensor, *, ignore_index: int, moments: bool) -> tuple[Tensor, Tensor]:
    """See `maxsup_hf.ops.rows_numba.rows`."""
    stats, index = empty_stats(logits)
    _launch(logits, target, None, stats, index, None, ignore_index, moments)
    return stats, index


def rows_grad(
    logits: Tensor, target: Tensor, stats: Tensor, index: Tensor, slopes: Tensor, out: Tensor, *, ignore_index: int,
    moments: bool,
) -> None:  # fmt: skip
    """See `maxsup_hf.ops.rows_numba.rows_grad`."""
    _launch(logits, target, slopes, stats.contiguous(), index.contiguous(), out, ignore_index, moments, given=True)


def rows_and_grad(
    logits: Tensor, target: Tensor, slopes: Tensor, out: Tensor, *, ignore_index: int, moments: bool
) -> tuple[Tensor, Tensor]:
    """See `maxsup_hf.ops.rows_numba.rows_and_grad`."""
    stats, index = empty_stats(logits)
    _launch(logits, target, slopes, stats, index, out, ignore_index, moments)
    return stats, index


def loss_and_grad(
    logits: Tensor, target: Tensor, slopes: tuple[float, ...], out: Tensor, *, ignore_index: int, divisor: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `maxsup_hf.ops.rows_numba.loss_and_grad`; `divisor` may also be a 0-dim tensor of this device.

    Three launches, which take less time than the dozens of small torch operations that they replace.
    """
    stats, index = empty_stats(logits)
    scaled = torch.empty(9, dtype=torch.float32, device=logits.device)
    sums = torch.empty(2, dtype=torch.float32, device=logits.device)
    rows, classes = logits.shape
    given = isinstance(divisor, Tensor)
    fixed = 1.0 if given else float(divisor)
    one = classes <= IN_REGISTERS
    block = triton.next_power_of_2(classes) if one else BLOCK
    moments = any(slopes[5:])
    with torch.cuda.device_of(logits):
        _scale[(1,)](
            target, divisor if given else target, scaled, rows, ignore_index, fixed, *map(float, slopes),
            COUNT=not given and not fixed, READ=given, BLOCK=1024,
        )  # fmt: skip
        _row[(rows,)](
            logits, target, scaled, stats, index, out, classes, classes, 0, ignore_index,
            SOFT=False, MOMENTS=moments, STATS=True, WRITE=True, BLOCK=block, ONE=one, num_warps=warps(block),
        )  # fmt: skip
        _sums[(1,)](stats, scaled, sums, rows, BLOCK=1024)
    loss, entropy = sums.unbind()
    return loss, entropy, scaled[8]


def _launch(
    logits: Tensor,
    target: Tensor,
    slopes: Tensor | None,
    stats: Tensor,
    index: Tensor,
    out: Tensor | None,
    ignore_index: int,
    moments: bool,
    given: bool = False,
) -> None:
    """Run the kernel on all rows.

    Args:
        slopes, out: `None` if no gradient is needed.
        stats, index: inputs if `given`, otherwise outputs.
    """
    z = as_rows(logits)
    if z.stride(1) != 1:
        z = z.contiguous()
    soft = target.is_floating_point()
    t = (as_rows(target) if soft else target).contiguous()
    n, classes = z.shape
    if n == 0:
        return
    # The kernel writes contiguous rows. The classes of images are not adjacent: their gradient is copied afterwards.
    if out is None or (out.ndim == 2 and out.is_contiguous()):
        written = out
    else:
        written = torch.empty_like(z)
    slopes_step = 0
    if slopes is not None:
        slopes = slopes.float().contiguous()
        slopes_step = 0 if len(slopes) == 1 else slopes.stride(0)
    one = classes <= IN_REGISTERS
    block = triton.next_power_of_2(classes) if one else BLOCK
    with torch.cuda.device_of(logits):
        # Where no gradient is computed, any pointers will do for the slopes and the gradient.
        _row[(n,)](
            z, t, stats if slopes is None else slopes, stats, index, z if written is None else written,
            classes, z.stride(0), slopes_step, ignore_index,
            SOFT=soft, MOMENTS=moments, STATS=not given, WRITE=out is not None, BLOCK=block, ONE=one,
            num_warps=warps(block),
        )  # fmt: skip
    if out is None or written is None or written is out:
        return
    if out.ndim == 3:
        outer, classes, inner = out.shape
        out.copy_(written.view(outer, inner, classes).movedim(-1, 1))
    else:
        out.copy_(written)


def multiply(grad: Tensor, factor: Tensor) -> Tensor:
    """Multiply `grad` by a 0-dim factor, in place."""
    span = sum((size - 1) * step for size, step in zip(grad.shape, grad.stride(), strict=True)) + 1
    if span != grad.numel() or not grad.numel():  # a view with gaps, which must keep what is in them
        return grad.mul_(factor)
    block = 4096
    flat = torch.as_strided(grad, (grad.numel(),), (1,))  # all elements, whatever the order of the dimensions
    with torch.cuda.device_of(grad):
        _times[(triton.cdiv(grad.numel(), block),)](flat, factor.contiguous(), grad.numel(), BLOCK=block)
    return grad
