# mypy: ignore-errors
"""The row operation as numba kernels, compiled and called by `maxsup_hf.ops.rows_numba`.

Loops over classes contain no branches, so that they vectorise: masked classes are excluded by selecting 0 instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numba import carray, njit

from maxsup_hf.ops._numba_arithmetic import add, exp, from_order, narrow, order, pointer, widen

# As in row_stats; repeated here because the cache of compiled code depends only on the text of these files.
MASK_DISTANCE = 4096.0
_CHUNK = 512  # classes; the first maximum is then searched for only in the chunk that contains it

inlined = njit(forceinline=True, error_model="numpy")


@inlined
def array_at(memory, offset, dtype, shape):
    """An array of `dtype` that begins `offset` elements after the address `memory`."""
    return carray(pointer(memory, offset, dtype), shape)


@inlined
def maximum(z):
    """The maximum of a row and its first index. NaN may be taken for the maximum or not; either way it reaches the sums."""
    zero = z.dtype.type(0)  # adding it turns −0 into 0: the two must tie, but differ in `order`
    highest = order(z[0] + zero)
    chunk = 0
    for start in range(0, len(z), _CHUNK):
        high = highest
        # Unsigned, because numba adds a test for negative indices, and with it the loop does not vectorise.
        for k in range(np.uint64(start), np.uint64(min(start + _CHUNK, len(z)))):
            high = max(high, order(z[k] + zero))
        if high > highest:
            highest = high
            chunk = start
    top = from_order(highest)
    while chunk < len(z) - 1 and z[chunk] != top and top == top:
        chunk += 1
    return top, chunk


@inlined
def terms(z, top, moments):
    """What a class contributes to the sums of a row, with x = z − top: 1, exp(x), x and, if `moments`, z² and exp(x)·x. All
    are 0 for a masked class."""
    zero = type(z)(0)
    x = z - top
    p = exp(x)
    masked = x < -MASK_DISTANCE
    one = zero if masked else type(z)(1)
    if moments:
        return one, p, zero if masked else x, zero if masked else z * z, zero if masked else p * x
    return one, p, zero if masked else x, zero, zero


@inlined
def gradient(z, top, p, have_exp, a, b, c, d, used, moments):
    """The gradient that every unmasked class gets, exp(x)·(a + b·x) + c + d·z with x = z − top; see `factors`. `p` is exp(x)
    if `have_exp`."""
    x = z - top
    p = p if have_exp else exp(x)
    value = p * (a + b * x) + (c + d * z) if moments else p * a + c
    return value if used and not x < -MASK_DISTANCE else type(z)(0)


@inlined
def sums(z, top, e, store, moments):
    """The sums of `terms` over a row. If `store`, exp(x) is written to `e`."""
    classes = total = shifted = squares = products = z.dtype.type(0)
    for k in range(len(z)):
        one, p, x, square, product = terms(z[k], top, moments)
        classes = add(classes, one)
        total = add(total, p)
        shifted = add(shifted, x)
        if moments:
            squares = add(squares, square)
            products = add(products, product)
        if store:
            e[k] = p
    return classes, total, shifted, squares, products


@inlined
def soft_sums(z, top, t):
    """Σ t, Σ t·z and Σ t·(z − top); a class of probability 0 contributes 0 even if its logit is −inf."""
    mass = label = shifted = z.dtype.type(0)
    for k in range(len(z)):
        used = t[k] != 0
        mass = add(mass, t[k])
        label = add(label, t[k] * z[k] if used else z.dtype.type(0))
        shifted = add(shifted, t[k] * (z[k] - top) if used else z.dtype.type(0))
    return mass, label, shifted


@inlined
def write_stats(stats, top, classes, total, shifted, squares, products, mass, label, shifted_label, moments):
    """Compute the statistics of a row from its sums, and write them in the order of `maxsup_hf.ops.row_stats.COLUMNS`."""
    log_sum = math.log(total)
    shifted_expected = products / total
    stats[0] = mass * log_sum - shifted_label
    stats[1] = log_sum + top
    stats[2] = top
    stats[3] = top + shifted / max(classes, 1) if abs(top) < math.inf else top
    stats[4] = label
    stats[5] = squares if moments else 0
    stats[6] = top + shifted_expected if moments else 0
    stats[7] = log_sum - shifted_expected if moments else 0
    stats[8] = classes
    stats[9] = total


@inlined
def factors(slopes, stats, mass):
    """a, b, c, d of the gradient that every unmasked class gets: exp(x)·(a + b·x) + c + d·z with x = z − top."""
    cross_entropy, lse, _, mean, _, square, expected, entropy = slopes
    by_x = expected - entropy
    by_softmax = cross_entropy * mass + lse + expected
    if by_x != 0:
        by_softmax -= by_x * (math.log(stats[9]) - stats[7])  # lse − top − entropy = expected − top
    return by_softmax / stats[9], by_x / stats[9], mean / max(stats[8], 1), square + square


@inlined
def depends(slopes):
    """Whether the loss depends on a row. If not, its gradient is 0 even if its logits are NaN."""
    used = False
    for s in range(len(slopes)):
        used |= slopes[s] != 0
    return used


@inlined
def row(z, g, t, y, ignored, slopes, stats, index, r, soft, moments, with_stats, with_gradient):
    """The complete operation for row `r`, with logits `z`, gradient `g`, and target `t` (probabilities) or `y` (an index).

    Without `with_stats`, `stats` and `index` are inputs. A class index outside the row, as in a shard of the classes, counts
    as logit 0. Masked classes also get the target's part of the gradient.
    """
    mass = z.dtype.type(1)
    if with_stats:
        if ignored:
            stats[r] = 0
            index[r] = 0
        else:
            top, at = maximum(z)
            label = z[y] if not soft and 0 <= y < len(z) else z.dtype.type(0)
            shifted_label = label - top
            if soft:
                mass, label, shifted_label = soft_sums(z, top, t)
            classes, total, shifted, squares, products = sums(z, top, g, with_gradient, moments)
            write_stats(
                stats[r], top, classes, total, shifted, squares, products, mass, label, shifted_label, moments
            )  # fmt: skip
            index[r] = at
    elif soft:
        mass, _, _ = soft_sums(z, stats[r, 2], t)
    if not with_gradient:
        return
    if ignored or not depends(slopes):
        g[:] = 0
        return
    top = stats[r, 2]
    a, b, c, d = factors(slopes, stats[r], mass)
    for k in range(len(g)):
        g[k] = gradient(z[k], top, g[k], with_stats, a, b, c, d, True, moments)
    by_target = slopes[4] - slopes[0]
    if soft:
        for k in range(len(z)):
            g[k] += by_target * t[k]
    elif 0 <= y < len(z):
        g[y] += by_target
    if 0 <= index[r] < len(z):
        g[index[r]] += slopes[2]


@inlined
def load(memory, offset, dtype, z):
    """Copy a row from memory that holds `dtype` to `z`, converting it."""
    source = array_at(memory, offset, dtype, len(z))
    for k in range(len(z)):
        z[k] = widen(source[k])


@inlined
def store(memory, offset, dtype, g):
    """Copy a row from `g` to memory that holds `dtype`, converting it."""
    target = array_at(memory, offset, dtype, len(g))
    for k in range(len(g)):
        target[k] = narrow(g[k], dtype)


def make_kernel(
    name: str, memory: type, real: type, soft: bool, moments: bool, with_stats: bool, with_gradient: bool
) -> Callable[..., None]:
    """A function for numba to compile: the operation on rows `first` to `last` (exclusive), each of them contiguous.

    The flags are compile-time constants: as arguments they would double the running time. Arrays are passed as addresses,
    and `z_step`, `g_step`, `t_step` are the strides of rows.

    Args:
        name: name of the function, under which numba caches it.
        memory: dtype of logits and gradient. If it is not `real`, rows go through a buffer.
        real: dtype of class probabilities, statistics, slopes and all arithmetic.
        soft: whether the target holds class probabilities.
        moments: whether `square`, `expected` and `entropy` are needed.
        with_stats: whether to write `stats` and `index`, or to read them.
        with_gradient: whether to write `out`.
    """
    direct = memory is real

    def kernel(
        logits, target, out, slopes, stats, index, slopes_step, ignore_index, classes, z_step, g_step, t_step, first, last
    ):  # fmt: skip
        all_stats = array_at(stats, 0, real, (last, 10))
        all_index = array_at(index, 0, np.int64, last)
        all_slopes = array_at(slopes, 0, real, (last if slopes_step else 1, 8))
        labels = array_at(target, 0, np.int64, last)
        z, g = np.empty(0 if direct else classes, real), np.empty(0 if direct else classes, real)
        for r in range(first, last):
            t = array_at(target, r * t_step, real, classes)
            if direct:
                z = array_at(logits, r * z_step, real, classes)
                g = array_at(out, r * g_step, real, classes)
            else:
                load(logits, r * z_step, memory, z)
            y = 0 if soft else labels[r]
            ignored = not soft and y == ignore_index
            row_slopes = all_slopes[r if slopes_step else 0]
            row(z, g, t, y, ignored, row_slopes, all_stats, all_index, r, soft, moments, with_stats, with_gradient)
            if with_gradient and not direct:
                store(out, r * g_step, memory, g)

    kernel.__name__ = kernel.__qualname__ = name
    return kernel


def make_loss_kernel(name: str, memory: type, moments: bool) -> Callable[..., tuple[float, float, int]]:
    """A function for numba to compile: the gradient of rows `first` to `last` (exclusive), and their share of the loss.

    See `maxsup_hf.ops.rows_numba.loss_and_grad`.
    """
    direct = memory is np.float32

    def kernel(
        logits, target, out, rows, classes, ignore_index, divisor,
        cross_entropy, lse, top, mean, label, square, expected, entropy, first, last,
    ):  # fmt: skip
        labels = array_at(target, 0, np.int64, rows)
        z, g = np.empty(0 if direct else classes, np.float32), np.empty(0 if direct else classes, np.float32)
        counted = 0
        # Every thread counts all rows of the batch, for each needs the divisor.
        for r in range(rows):
            counted += labels[r] != ignore_index
            if labels[r] != ignore_index and not 0 <= labels[r] < classes:
                return math.nan, math.nan, -1
        scale = 1 / (divisor if divisor != 0 else max(counted, 1))
        slopes = np.empty(8, np.float32)
        of_all = (cross_entropy, lse, top, mean, label, square, expected, entropy)
        for s in range(8):
            slopes[s] = scale * of_all[s]
        loss = total = 0.0
        stats, index = np.empty((1, 10), np.float32), np.empty(1, np.int64)
        for r in range(first, last):
            y = labels[r]
            if direct:
                z = array_at(logits, r * classes, np.float32, classes)
                g = array_at(out, r * classes, np.float32, classes)
            else:
                load(logits, r * classes, memory, z)
            row(z, g, z, y, y == ignore_index, slopes, stats, index, 0, False, moments, True, True)
            if not direct:
                store(out, r * classes, memory, g)
            total += stats[0, 0]
            for s in range(8):
                if slopes[s] != 0:  # a statistic without a slope may be infinite, and 0 · ∞ is NaN
                    loss += slopes[s] * stats[0, s]
        return loss, scale * total, counted

    kernel.__name__ = kernel.__qualname__ = name
    return kernel
