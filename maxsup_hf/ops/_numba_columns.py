# mypy: ignore-errors
"""The row operation for rows that are adjacent in memory, as in logits (N, K, H, W) of images; see `_numba_kernels`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from maxsup_hf.ops._numba_kernels import array_at, depends, factors, gradient, terms, write_stats

LANES = 64  # rows that are processed at a time


def make_column_kernel(name: str, real: type, moments: bool, with_stats: bool, with_gradient: bool) -> Callable[..., None]:
    """As `_numba_kernels.make_kernel`, for rows that are adjacent in memory, and class indices.

    Loops run over up to `LANES` rows instead of over classes, so that they vectorise without a transposition. `inner` rows
    are adjacent; `z_class`, `z_outer`, `g_class`, `g_outer` are the strides of classes and of blocks of `inner` rows.
    """
    TOP, INDEX, CLASSES, TOTAL, SHIFTED, SQUARES, PRODUCTS, USED = range(8)  # the lines of `lane`

    def kernel(
        logits, target, out, slopes, stats, index, slopes_step, ignore_index, classes, inner,
        z_class, z_outer, g_class, g_outer, first, last,
    ):  # fmt: skip
        all_stats = array_at(stats, 0, real, (last, 10))
        all_index = array_at(index, 0, np.int64, last)
        all_slopes = array_at(slopes, 0, real, (last if slopes_step else 1, 8))
        labels = array_at(target, 0, np.int64, last)
        zero, one = real(0), real(1)
        lane = np.empty((8, LANES), real)  # one array, so that the compiler knows that its lines do not overlap
        of_all = np.zeros((4, LANES), real)  # what `factors` returns for each row
        start = first
        while start < last:
            outer, i = start // inner, start % inner
            rows = np.uint64(min(LANES, inner - i, last - start))
            z_offset, g_offset = outer * z_outer + i, outer * g_outer + i
            if with_stats:  # a pass for the tops, and one for the sums
                line = array_at(logits, z_offset, real, rows)
                lane[:] = zero
                for j in range(rows):
                    lane[TOP, j] = line[j]
                for k in range(1, classes):
                    line = array_at(logits, z_offset + k * z_class, real, rows)
                    for j in range(rows):
                        higher = line[j] > lane[TOP, j]
                        lane[TOP, j] = line[j] if higher else lane[TOP, j]
                        lane[INDEX, j] = real(k) if higher else lane[INDEX, j]
                for k in range(classes):
                    line = array_at(logits, z_offset + k * z_class, real, rows)
                    exps = array_at(out, g_offset + k * g_class, real, rows)
                    for j in range(rows):
                        unmasked, p, x, square, product = terms(line[j], lane[TOP, j], moments)
                        lane[CLASSES, j] += unmasked
                        lane[TOTAL, j] += p
                        lane[SHIFTED, j] += x
                        if moments:
                            lane[SQUARES, j] += square
                            lane[PRODUCTS, j] += product
                        if with_gradient:
                            exps[j] = p
            for j in range(np.int64(rows)):  # what is done once for each row
                r, y = start + j, labels[start + j]
                if with_stats and y == ignore_index:
                    all_stats[r] = 0
                    all_index[r] = 0
                elif with_stats:
                    label = zero
                    if 0 <= y < classes:
                        label = array_at(logits, z_offset + y * z_class, real, rows)[j]
                    write_stats(
                        all_stats[r], lane[TOP, j], lane[CLASSES, j], lane[TOTAL, j], lane[SHIFTED, j], lane[SQUARES, j],
                        lane[PRODUCTS, j], one, label, label - lane[TOP, j], moments,
                    )  # fmt: skip
                    all_index[r] = np.int64(lane[INDEX, j])
                if with_gradient:
                    row_slopes = all_slopes[r if slopes_step else 0]
                    used = depends(row_slopes) and y != ignore_index
                    lane[TOP, j], lane[USED, j] = all_stats[r, 2], one if used else zero
                    if used:
                        of_all[0, j], of_all[1, j], of_all[2, j], of_all[3, j] = factors(row_slopes, all_stats[r], one)
            if with_gradient:
                for k in range(classes):
                    line = array_at(logits, z_offset + k * z_class, real, rows)
                    g = array_at(out, g_offset + k * g_class, real, rows)
                    for j in range(rows):
                        g[j] = gradient(
                            line[j], lane[TOP, j], g[j], with_stats,
                            of_all[0, j], of_all[1, j], of_all[2, j], of_all[3, j], lane[USED, j] != 0, moments,
                        )  # fmt: skip
                for j in range(np.int64(rows)):  # what falls on the label and on the top only
                    r, y = start + j, labels[start + j]
                    row_slopes = all_slopes[r if slopes_step else 0]
                    if lane[USED, j] != 0 and 0 <= y < classes:
                        array_at(out, g_offset + y * g_class, real, rows)[j] += row_slopes[4] - row_slopes[0]
                    if lane[USED, j] != 0 and 0 <= all_index[r] < classes:
                        array_at(out, g_offset + all_index[r] * g_class, real, rows)[j] += row_slopes[2]
            start += np.int64(rows)

    kernel.__name__ = kernel.__qualname__ = name
    return kernel
