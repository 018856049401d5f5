"""The row operation in numba's language. `maxsup_hf.ops.rows_numba` compiles and calls what `make_kernel` and `small_kernel` give.

The loops over the classes of a row have no branches, which makes them vector instructions. Masked classes are found by the minimum that
is taken along with the maximum, and only rows that have any are gone over again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import overload

from maxsup_hf.ops._numba_arithmetic import (
    add,
    bfloat16_to_float32,
    exp,
    float16_to_float32,
    float32_to_bfloat16,
    float32_to_float16,
    from_order,
    order,
    pointer,
)

BFLOAT16, FLOAT16 = np.uint16, np.int16  # the dtypes under which kernels see these, to tell them apart
MASK_DISTANCE = 4096.0  # a class is masked where its logit lies more than this below the row's top
EPSILON_32, EPSILON_64 = 2.0**-23, 2.0**-52
_CHUNK = 512  # the first maximum is looked for in the chunk in which the maximum was reached,
_STEP = 64  # and there in steps of this size

inlined = njit(forceinline=True, error_model="numpy")


def widen(value: Any) -> Any:
    """A number as it lies in memory as a float of at least 32 bits."""


def narrow(value: Any, dtype: Any) -> Any:
    """The opposite of `widen`, rounded to the nearest, for memory that holds `dtype`."""


@overload(widen)
def _widen(value):
    if value == types.uint16:
        return lambda value: bfloat16_to_float32(value)
    if value == types.int16:
        return lambda value: float16_to_float32(value)
    return lambda value: value


@overload(narrow)
def _narrow(value, dtype):
    if dtype.dtype == types.uint16:
        return lambda value, dtype: float32_to_bfloat16(value)
    if dtype.dtype == types.int16:
        return lambda value, dtype: float32_to_float16(value)
    return lambda value, dtype: value


@inlined
def extremes(z):
    """The maximum of a row, its first index, and the minimum. If a class is NaN so is the maximum, at the first such class."""
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
    """Where `g` holds exp(x), x = z − top, make it exp(x)·(by_softmax + by_expected·x) + by_mean + by_square·z, and 0 for masked
    classes."""
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
def row_stats(z, e, t, y, soft, store, moments):
    """The eight statistics of a row, and what its gradient needs besides: index of the top, minimum, Σ exp(z − top), mass."""
    number = z.dtype.type
    top, index, low = extremes(z)
    total, shifted, squares, products = sums(z, top, e, store, moments)
    classes = len(z)
    if low - top < -MASK_DISTANCE or not abs(top) < math.inf:
        classes, shifted, squares, products = careful_sums(z, top)
    mean = top + shifted / number(classes)
    if not abs(top) < math.inf:
        mean = top
    log_sum = math.log(total)
    mass = number(1)
    if soft:
        mass, label, shifted_label = soft_sums(z, top, t)
        cross_entropy = mass * log_sum - shifted_label
    elif 0 <= y < len(z):
        label = z[y]
        cross_entropy = log_sum - (label - top)
    else:
        label = number(0)
        cross_entropy = log_sum + top
    expected = top + products / total
    if not moments:
        squares = expected = number(0)
    stats = (cross_entropy, log_sum + top, top, mean, label, squares, expected, number(classes))
    return stats, index, low, total, products / total, mass


@inlined
def row_gradient(z, g, t, y, soft, slopes, top, index, low, classes, total, shifted_expected, mass):
    """Write the gradient of a row to `g`, which holds exp(z − top). `total` is the sum of that, and `shifted_expected` is expected − top."""
    number = z.dtype.type
    cross_entropy, lse, by_top, mean, label, square, expected = slopes
    by_target = label - cross_entropy
    by_softmax = cross_entropy * mass + lse + expected * (number(1) - shifted_expected)
    factor, by_mean = number(by_softmax / total), number(mean / classes)
    write_gradient(z, g, top, low, factor, number(expected / total), by_mean, number(2 * square))
    if soft:
        for k in range(len(z)):
            g[k] += by_target * t[k]
    elif 0 <= y < len(z):
        g[y] += by_target
    if 0 <= index < len(z):
        g[index] += by_top


@inlined
def all_zero(slopes):
    """Whether nothing depends on a row. Its gradient is then 0 even if its logits are NaN."""
    for s in range(len(slopes)):
        if slopes[s] != 0:
            return False
    return True


@inlined
def whole_row_total(total, lse, top, epsilon):
    """The Σ exp(z − top) of a whole row, where `total` is the sum over what may be a shard of it.

    exp(lse − top) has lost the digits that `lse` lacks where it is large. Where the sum at hand agrees with it to within these, the
    classes of other shards, if any, are below rounding errors, and the sum is the more exact of the two.
    """
    from_stats = math.exp(lse - top)
    tolerance = 4 * epsilon * (1 + abs(lse))
    return total if abs(total - from_stats) <= tolerance * from_stats else from_stats


@inlined
def shard_sums(z, e, t, soft, low, stats, by_expected):
    """What `row_gradient` needs of a row whose statistics are known: `total`, `shifted_expected` and `mass`."""
    top, products = stats[2], z.dtype.type(0)
    if by_expected != 0:
        total, _, _, products = sums(z, top, e, True, True)
        if low - top < -MASK_DISTANCE:
            products = careful_sums(z, top)[3]
    else:
        total = sums(z, top, e, True, False)[0]
    mass = z.dtype.type(1)
    if soft:
        mass = soft_sums(z, top, t)[0]
    whole = z.dtype.type(whole_row_total(total, stats[1], top, EPSILON_32 if z.itemsize == 4 else EPSILON_64))
    shifted_expected = products / total if whole == total else stats[6] - top
    return whole, z.dtype.type(shifted_expected), mass


@inlined
def load(source, offset, row_step, class_step, source_dtype, buffer, rows, classes, dtype):
    """Copy `rows` rows from memory to a contiguous buffer. Offsets and steps count numbers."""
    if class_step == 1:
        for j in range(rows):
            row = carray(pointer(source, offset + j * row_step, source_dtype), classes)
            line = carray(pointer(buffer, j * classes, dtype), classes)
            for k in range(classes):
                line[k] = widen(row[k])
    else:
        for k in range(classes):
            column = carray(pointer(source, offset + k * class_step, source_dtype), rows * row_step)
            place = carray(pointer(buffer, k, dtype), rows * classes)
            for j in range(rows):
                place[j * classes] = widen(column[j * row_step])


@inlined
def store(source, offset, row_step, class_step, source_dtype, buffer, rows, classes, dtype):
    """The opposite of `load`."""
    if class_step == 1:
        for j in range(rows):
            row = carray(pointer(source, offset + j * row_step, source_dtype), classes)
            line = carray(pointer(buffer, j * classes, dtype), classes)
            for k in range(classes):
                row[k] = narrow(line[k], source_dtype)
    else:
        for k in range(classes):
            column = carray(pointer(source, offset + k * class_step, source_dtype), rows * row_step)
            place = carray(pointer(buffer, k, dtype), rows * classes)
            for j in range(rows):
                column[j * row_step] = narrow(place[j * classes], source_dtype)


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

    Memory is passed as addresses. Rows are ordered outer-major, inner-minor; the steps are strides of (outer, inner, class). What is
    not of the dtype of all arithmetic, or not contiguous, goes through `buffer`, which holds three times `tile` rows.
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
                if not soft and y == ignore_index:
                    if with_stats:
                        all_stats[r] = 0
                        all_index[r] = 0
                    if with_gradient:
                        g[:] = 0
                    continue
                row_slopes = all_slopes[r if slopes_step else 0]
                if with_stats:
                    found, at, low, total, shifted_expected, mass = row_stats(z, g, t, y, soft, with_gradient, moments)
                    for s in range(8):
                        all_stats[r, s] = found[s]
                    all_index[r] = at
                    top, unmasked = found[2], found[7]
                else:
                    top, unmasked, at = all_stats[r, 2], all_stats[r, 7], all_index[r]
                    low = extremes(z)[2]
                    total, shifted_expected, mass = shard_sums(z, g, t, soft, low, all_stats[r], row_slopes[6])
                if with_gradient:
                    if all_zero(row_slopes):
                        g[:] = 0
                    else:
                        row_gradient(z, g, t, y, soft, row_slopes, top, at, low, unmasked, total, shifted_expected, mass)
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
        for r in range(rows):
            z, g, y = z_rows[r], g_rows[r], labels[r]
            if y == ignore_index:
                g[:] = 0
                continue
            found, at, low, total, shifted_expected, mass = row_stats(z, g, z, y, False, True, moments)
            row_gradient(z, g, z, y, False, slopes, found[2], at, low, found[7], total, shifted_expected, mass)
            for s in range(8):
                totals[s] += found[s]
        return (
            totals[0], totals[1], totals[2], totals[3], totals[4], totals[5], totals[6], totals[7], float(counted)
        )  # fmt: skip

    kernel.__name__ = kernel.__qualname__ = name
    return kernel
