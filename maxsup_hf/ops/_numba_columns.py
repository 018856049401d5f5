# mypy: ignore-errors
"""The row operation where classes lie far apart and rows lie side by side, as in logits (N, K, H, W) of an image.

`LANES` rows go through memory together, class after class, so that vector instructions work on rows instead of classes
and nothing is transposed. Where one of them has a masked class or NaN, each is copied out and treated as
`maxsup_hf.ops._numba_kernels` treats any row.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numba import carray

from maxsup_hf.ops._numba_arithmetic import exp, from_order, order, pointer
from maxsup_hf.ops._numba_kernels import (
    MASK_DISTANCE,
    gradient_factors,
    row,
    whole_row,
    write_stats,
)
from maxsup_hf.ops._numba_memory import inlined, narrow, widen

LANES = 64  # with a constant number of rows the loops over them need no remainder
BUFFER_ROWS = 2 * LANES + 2  # in the buffer of a kernel: `z` and `e` of all lanes, and of one row


@inlined
def load_columns(z, source, offset, row_step, class_step, source_dtype, rows, classes):
    """Copy `rows` rows to `z`, (classes, LANES) flat. Lanes beyond them repeat the last row."""
    for k in range(classes):
        column = carray(pointer(source, offset + k * class_step, source_dtype), (rows - 1) * row_step + 1)
        line = z[k * LANES : (k + 1) * LANES]
        for j in range(np.uint64(rows)):
            line[j] = widen(column[j * np.uint64(row_step)])
        for j in range(rows, LANES):
            line[j] = line[rows - 1]


@inlined
def store_columns(g, out, offset, row_step, class_step, out_dtype, rows, classes):
    """The opposite of `load_columns`."""
    for k in range(classes):
        column = carray(pointer(out, offset + k * class_step, out_dtype), (rows - 1) * row_step + 1)
        line = g[k * LANES : (k + 1) * LANES]
        for j in range(np.uint64(rows)):
            column[j * np.uint64(row_step)] = narrow(line[j], out_dtype)


@inlined
def column_extremes(z, classes, highest, lowest, index):
    """The maxima of each lane as `order` has them, their first indices, and the minima."""
    for j in range(LANES):
        highest[j] = lowest[j] = order(z[j])
        index[j] = 0
    for k in range(classes):
        line = z[k * LANES : (k + 1) * LANES]
        for j in range(LANES):
            key = order(line[j])
            higher = key > highest[j]
            highest[j] = key if higher else highest[j]
            index[j] = k if higher else index[j]
            lowest[j] = min(lowest[j], key)


@inlined
def column_sums(z, e, classes, top, total, shifted, squares, products, moments):
    """`maxsup_hf.ops._numba_kernels.sums` of each lane."""
    for j in range(LANES):
        total[j] = shifted[j] = squares[j] = products[j] = 0
    for k in range(classes):
        line, exps = z[k * LANES : (k + 1) * LANES], e[k * LANES : (k + 1) * LANES]
        for j in range(LANES):
            x = line[j] - top[j]
            p = exp(x)
            total[j] += p
            shifted[j] += x
            exps[j] = p
            if moments:
                squares[j] += line[j] * line[j]
                products[j] += p * x


@inlined
def column_gradient(z, e, classes, top, by_softmax, by_expected, by_mean, by_square, moments):
    """Where `e` holds exp(z − top), make it the part of the gradient that falls on all classes."""
    for k in range(classes):
        line, g = z[k * LANES : (k + 1) * LANES], e[k * LANES : (k + 1) * LANES]
        for j in range(LANES):
            if moments:
                factor = by_softmax[j] + by_expected[j] * (line[j] - top[j])
                g[j] = g[j] * factor + by_mean[j] + by_square[j] * line[j]
            else:
                g[j] = g[j] * by_softmax[j] + by_mean[j]


def make_column_kernel(
    name: str, dtypes: tuple[type, type], moments: bool, with_stats: bool, with_gradient: bool
) -> Callable[..., None]:
    """As `maxsup_hf.ops._numba_kernels.make_kernel`, for class indices. `dtypes`: of the logits, and of all arithmetic."""
    logits_dtype, number = dtypes
    key = np.int64 if number is np.float64 else np.int32

    def kernel(
        logits, target, out, slopes, stats, index, slopes_step, ignore_index, classes, inner,
        z_outer, z_inner, z_class, g_outer, g_inner, g_class, buffer, first, last,
    ):  # fmt: skip
        all_stats = carray(pointer(stats, 0, number), (last, 8))
        all_index = carray(pointer(index, 0, np.int64), last)
        all_slopes = carray(pointer(slopes, 0, number), (last if slopes_step else 1, 7))
        labels = carray(pointer(target, 0, np.int64), last)
        z = carray(pointer(buffer, 0, number), classes * LANES)
        e = carray(pointer(buffer, classes * LANES, number), classes * LANES)
        one_z = carray(pointer(buffer, 2 * classes * LANES, number), classes)
        one_g = carray(pointer(buffer, (2 * LANES + 1) * classes, number), classes)
        highest, lowest, at = np.empty(LANES, key), np.empty(LANES, key), np.empty(LANES, key)
        top, total, shifted = np.empty(LANES, number), np.empty(LANES, number), np.empty(LANES, number)
        squares, products = np.empty(LANES, number), np.empty(LANES, number)
        by_softmax, by_expected = np.empty(LANES, number), np.empty(LANES, number)
        by_mean, by_square = np.empty(LANES, number), np.empty(LANES, number)

        start = first
        while start < last:
            outer, i = start // inner, start % inner
            rows = min(LANES, inner - i, last - start)
            load_columns(z, logits, outer * z_outer + i * z_inner, z_inner, z_class, logits_dtype, rows, classes)
            column_extremes(z, classes, highest, lowest, at)
            usual = True
            for j in range(LANES):
                high, low = from_order(highest[j]), from_order(lowest[j])
                top[j] = high if with_stats else all_stats[start + min(j, rows - 1), 2]
                usual &= abs(high) < math.inf and low - top[j] >= -MASK_DISTANCE
            if usual:
                column_sums(z, e, classes, top, total, shifted, squares, products, moments)
            for j in range(rows):
                r, y = start + j, labels[start + j]
                ignored = y == ignore_index
                row_slopes = all_slopes[r if slopes_step else 0]
                if not usual:
                    for k in range(classes):
                        one_z[k] = z[k * LANES + j]
                    row(
                        one_z, one_g, one_z, y, ignored, row_slopes, all_stats, all_index, r,
                        False, moments, with_stats, with_gradient,
                    )  # fmt: skip
                    for k in range(classes):
                        e[k * LANES + j] = one_g[k]
                    continue
                by_softmax[j] = by_expected[j] = by_mean[j] = by_square[j] = 0
                if ignored:
                    if with_stats:
                        all_stats[r] = 0
                        all_index[r] = 0
                    continue
                one_total, shifted_expected = total[j], products[j] / total[j]
                if with_stats:
                    label = z[y * LANES + j] if 0 <= y < classes else number(0)
                    write_stats(
                        all_stats[r], top[j], classes, one_total, shifted[j], squares[j], shifted_expected,
                        number(1), label, label - top[j], moments,
                    )  # fmt: skip
                    all_index[r] = at[j]
                else:
                    one_total, shifted_expected = whole_row(one_total, shifted_expected, all_stats[r])
                by_softmax[j], by_expected[j], by_mean[j], by_square[j] = gradient_factors(
                    row_slopes, all_stats[r, 7], one_total, shifted_expected, number(1)
                )
            if with_gradient and usual:
                column_gradient(z, e, classes, top, by_softmax, by_expected, by_mean, by_square, moments)
                for j in range(rows):
                    r, y = start + j, labels[start + j]
                    row_slopes = all_slopes[r if slopes_step else 0]
                    if y != ignore_index and 0 <= y < classes:
                        e[y * LANES + j] += row_slopes[4] - row_slopes[0]
                    if y != ignore_index and 0 <= all_index[r] < classes:
                        e[all_index[r] * LANES + j] += row_slopes[2]
            if with_gradient:
                store_columns(e, out, outer * g_outer + i * g_inner, g_inner, g_class, logits_dtype, rows, classes)
            start += rows

    kernel.__name__ = kernel.__qualname__ = name
    return kernel
