# mypy: ignore-errors
"""The row operation in numba's language, to be compiled and called by `maxsup_hf.ops.rows_numba`.

The loops over the classes of a row have no branches, which makes them vector instructions. Masked classes are found by the
minimum that is taken along with the maximum, and only rows that have any are gone over again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numba import carray

from maxsup_hf.ops._numba_arithmetic import add, exp, from_order, order, pointer
from maxsup_hf.ops._numba_memory import inlined, load, store

MASK_DISTANCE = 4096.0  # a class is masked where its logit lies more than this below the row's top
EPSILON_32, EPSILON_64 = 2.0**-23, 2.0**-52
_CHUNK = 512  # the first maximum is looked for in the chunk in which the maximum was reached,
_STEP = 64  # and there in steps of this size


@inlined
def extremes(z):
    """The maximum of a row, its first index, and the minimum. A class that is NaN counts as the maximum."""
    highest = lowest = order(z[0])
    chunk = 0
    for start in range(0, len(z), _CHUNK):
        high = highest
        # Unsigned, because for an index that may be negative numba adds a test that keeps the loop scalar.
        for k in range(np.uint64(start), np.uint64(min(start + _CHUNK, len(z)))):
            key = order(z[k])
            high = max(high, key)
            lowest = min(lowest, key)
        if high > highest:
            highest = high
            chunk = start
    top, low = from_order(highest), from_order(lowest)
    if top != top or low != low:
        index = 0
        while z[index] == z[index]:
            index += 1
        return z[index], index, low
    return top, first_index(z, top, chunk), low


@inlined
def first_index(z, value, start):
    """The first index from `start` on at which `value`, which occurs, stands."""
    found = False
    while not found:
        for k in range(np.uint64(start), np.uint64(min(start + _STEP, len(z)))):
            found |= z[k] == value
        start += _STEP
    index = start - _STEP
    while z[index] != value:
        index += 1
    return index


@inlined
def sums(z, top, e, store, moments):
    """Σ exp(x), Σ x, and with `moments` Σ z² and Σ exp(x)·x, where x = z − top; `e` receives exp(x) if `store`."""
    total = shifted = squares = products = z.dtype.type(0)
    for k in range(len(z)):
        x = z[k] - top
        p = exp(x)
        total = add(total, p)
        shifted = add(shifted, x)
        if moments:
            squares = add(squares, z[k] * z[k])
            products = add(products, p * x)
        if store:
            e[k] = p
    return total, shifted, squares, products


@inlined
def careful_sums(z, top):
    """The number of unmasked classes, and `sums` but the first over these alone."""
    zero = z.dtype.type(0)
    classes, shifted, squares, products = 0, zero, zero, zero
    for k in range(len(z)):
        x = z[k] - top
        if not x < -MASK_DISTANCE:
            classes += 1
            shifted += x
            squares += z[k] * z[k]
            products += exp(x) * x
    return classes, shifted, squares, products


@inlined
def soft_sums(z, top, t):
    """Σ t, Σ t·z and Σ t·(z − top), where a class of probability 0 counts nothing even if its logit is −inf."""
    mass = label = shifted = z.dtype.type(0)
    for k in range(len(z)):
        used = t[k] != 0
        mass = add(mass, t[k])
        label = add(label, t[k] * z[k] if used else z.dtype.type(0))
        shifted = add(shifted, t[k] * (z[k] - top) if used else z.dtype.type(0))
    return mass, label, shifted


@inlined
def write_gradient(z, g, top, low, by_softmax, by_expected, by_mean, by_square):
    """Make `g`, which holds exp(x) with x = z − top, exp(x)·(by_softmax + by_expected·x) + by_mean + by_square·z, and 0 for
    masked classes."""
    if by_expected == 0 and by_square == 0:
        for k in range(len(g)):
            g[k] = g[k] * by_softmax + by_mean
    else:
        for k in range(len(g)):
            g[k] = g[k] * (by_softmax + by_expected * (z[k] - top)) + by_mean + by_square * z[k]
    if low - top < -MASK_DISTANCE:
        for k in range(len(g)):
            if z[k] - top < -MASK_DISTANCE:
                g[k] = 0


@inlined
def write_stats(stats, top, classes, total, shifted, squares, shifted_expected, mass, label, shifted_label, moments):
    """Write the eight statistics of a row from its sums; `shifted…` are those of z − top."""
    log_sum = math.log(total)
    stats[0] = mass * log_sum - shifted_label
    stats[1] = log_sum + top
    stats[2] = top
    stats[3] = top + shifted / classes if abs(top) < math.inf else top
    stats[4] = label
    stats[5] = squares if moments else 0
    stats[6] = top + shifted_expected if moments else 0
    stats[7] = classes


@inlined
def gradient_factors(slopes, classes, total, shifted_expected, mass):
    """What `write_gradient` takes."""
    cross_entropy, lse, _, mean, _, square, expected = slopes
    by_softmax = cross_entropy * mass + lse + expected - expected * shifted_expected
    return by_softmax / total, expected / total, mean / classes, square + square


@inlined
def target_sums(z, top, t, y, soft):
    """Σ t, Σ t·z and Σ t·(z − top) of a row; a class index outside of it, as in a shard, counts as logit 0."""
    if soft:
        return soft_sums(z, top, t)
    label = z[y] if 0 <= y < len(z) else z.dtype.type(0)
    return z.dtype.type(1), label, label - top


@inlined
def row(z, g, t, y, ignored, slopes, stats, index, r, soft, moments, with_stats, with_gradient):
    """All of the operation for row `r`: logits `z`, gradient `g`, target `t` or `y`. Without `with_stats`, `stats` and
    `index` are given. The target's part of the gradient falls on masked classes too."""
    if ignored:
        if with_stats:
            stats[r] = 0
            index[r] = 0
        if with_gradient:
            g[:] = 0
        return
    top, at, low = extremes(z)
    if not with_stats:
        top, at = stats[r, 2], index[r]
    total, shifted, squares, products = sums(z, top, g, with_gradient, moments)
    classes = len(z)
    if low - top < -MASK_DISTANCE or not abs(top) < math.inf:
        classes, shifted, squares, products = careful_sums(z, top)
    mass, label, shifted_label = target_sums(z, top, t, y, soft)
    shifted_expected = products / total
    if with_stats:
        write_stats(stats[r], top, classes, total, shifted, squares, shifted_expected, mass, label, shifted_label, moments)
        index[r] = at
    else:
        total, shifted_expected = whole_row(total, shifted_expected, stats[r])
    if not with_gradient:
        return
    if all_zero(slopes):
        g[:] = 0
        return
    factors = gradient_factors(slopes, stats[r, 7], total, shifted_expected, mass)
    write_gradient(z, g, top, low, factors[0], factors[1], factors[2], factors[3])
    by_target = slopes[4] - slopes[0]
    if soft:
        for k in range(len(z)):
            g[k] += by_target * t[k]
    elif 0 <= y < len(z):
        g[y] += by_target
    if 0 <= at < len(z):
        g[at] += slopes[2]


@inlined
def all_zero(slopes):
    """Whether nothing depends on a row. Its gradient is then 0 even if its logits are NaN."""
    used = False
    for s in range(len(slopes)):
        used |= slopes[s] != 0
    return not used


@inlined
def whole_row(total, shifted_expected, stats):
    """Σ exp(z − top) and expected − top of a whole row, given its statistics and these two of what may be a shard of it.

    exp(lse − top) has lost the digits that `lse` lacks where it is large. Where the sum at hand agrees with it to within
    these, the classes of other shards, if any, are below rounding errors, and the sum is the more exact of the two.
    """
    lse, top = stats[1], stats[2]
    epsilon = EPSILON_32 if stats.itemsize == 4 else EPSILON_64
    from_stats = math.exp(lse - top)
    if abs(total - from_stats) <= 4 * epsilon * (1 + abs(lse)) * from_stats:
        return total, shifted_expected
    return from_stats, stats[6] - top


def make_kernel(
    name: str, dtypes: tuple[type, type, type], soft: bool, moments: bool, with_stats: bool, with_gradient: bool
) -> Callable[..., None]:
    """The operation over rows `first` to `last`, to be compiled with numba.

    Args:
        name: of the function, under which it is cached.
        dtypes: of the logits and `out`, of the target, and of all arithmetic.
        soft: whether the target holds class probabilities.
        moments: whether `square` and `expected` are needed.
        with_stats: write to `stats` and `index`, or read them.
        with_gradient: write to `out`.

    Memory is passed as addresses. Rows are ordered outer-major, inner-minor; steps are strides of (outer, inner, class).
    What is not of the dtype of all arithmetic, or not contiguous, goes through `buffer`, which holds 3·`tile` rows.
    """
    logits_dtype, target_dtype, number = dtypes
    size = np.dtype(number).itemsize
    in_place = logits_dtype is number
    target_in_place = target_dtype is number

    def kernel(
        logits, target, out, slopes, stats, index, slopes_step, ignore_index, classes, inner, tile,
        z_outer, z_inner, z_class, t_outer, t_inner, t_class, g_outer, g_inner, g_class, buffer, first, last,
    ):  # fmt: skip
        all_stats = carray(pointer(stats, 0, number), (last, 8))
        all_index = carray(pointer(index, 0, np.int64), last)
        all_slopes = carray(pointer(slopes, 0, number), (last if slopes_step else 1, 7))
        labels = carray(pointer(target, 0, np.int64), last)
        read_z = not (in_place and z_class == 1)
        read_t = soft and not (target_in_place and t_class == 1)
        write_g = with_gradient and not (in_place and g_class == 1)
        # Where row j of a tile is: in numbers from an address, and how far apart rows are.
        z_base, z_step = (buffer, classes) if read_z else (logits, z_inner)
        t_base, t_step = (buffer, classes) if read_t else (target, t_inner)
        g_base, g_step = (buffer, classes) if write_g else (out, g_inner)

        start = first
        while start < last:
            outer, i = start // inner, start % inner
            rows = min(tile, inner - i, last - start)
            z_first = z_offset = outer * z_outer + i * z_inner
            t_first = t_offset = outer * t_outer + i * t_inner
            g_first = g_offset = outer * g_outer + i * g_inner
            if read_z:
                z_first = 0
                load(logits, z_offset, z_inner, z_class, logits_dtype, buffer, rows, classes, number)
            if read_t:
                t_first = tile * classes
                load(target, t_offset, t_inner, t_class, target_dtype, buffer + t_first * size, rows, classes, number)
            if write_g:
                g_first = 2 * tile * classes
            for j in range(rows):
                r = start + j
                z = carray(pointer(z_base, z_first + j * z_step, number), classes)
                t = carray(pointer(t_base, t_first + j * t_step, number), classes)
                g = carray(pointer(g_base, g_first + j * g_step, number), classes)
                y = 0 if soft else labels[r]
                ignored = not soft and y == ignore_index
                row_slopes = all_slopes[r if slopes_step else 0]
                row(z, g, t, y, ignored, row_slopes, all_stats, all_index, r, soft, moments, with_stats, with_gradient)
            if write_g:
                store(out, g_offset, g_inner, g_class, logits_dtype, buffer + g_first * size, rows, classes, number)
            start += rows

    kernel.__name__ = kernel.__qualname__ = name
    return kernel


def make_small_kernel(name: str, moments: bool) -> Callable[..., tuple[float, ...]]:
    """All of a small batch in one call, to be compiled with numba; see `maxsup_hf.ops.rows_numba.small_rows_and_grad`."""

    def kernel(
        logits, target, out, rows, classes, ignore_index, averaged, cross_entropy, lse, top, mean, label, square, expected
    ):  # fmt: skip
        labels = carray(pointer(target, 0, np.int64), rows)
        z_rows = carray(pointer(logits, 0, np.float32), (rows, classes))
        g_rows = carray(pointer(out, 0, np.float32), (rows, classes))
        counted = 0
        for r in range(rows):
            counted += labels[r] != ignore_index
        scale = 1 / max(counted, 1) if averaged else 1.0
        slopes = np.empty(7, np.float32)
        for s, slope in enumerate((cross_entropy, lse, top, mean, label, square, expected)):
            slopes[s] = scale * slope
        totals = np.zeros(8)
        stats, index = np.empty((1, 8), np.float32), np.empty(1, np.int64)
        for r in range(rows):
            z, g, y = z_rows[r], g_rows[r], labels[r]
            row(z, g, z, y, y == ignore_index, slopes, stats, index, 0, False, moments, True, True)
            for s in range(8):
                totals[s] += stats[0, s]
        return (
            totals[0], totals[1], totals[2], totals[3], totals[4], totals[5], totals[6], totals[7], float(counted)
        )  # fmt: skip

    kernel.__name__ = kernel.__qualname__ = name
    return kernel
