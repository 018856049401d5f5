# mypy: ignore-errors
"""Rows in memory of any layout and dtype, for the row operation in numba's language. mypy does not know that language."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import overload

from maxsup_hf.ops._numba_arithmetic import (
    bfloat16_to_float32,
    float16_to_float32,
    float32_to_bfloat16,
    float32_to_float16,
    pointer,
)

BFLOAT16, FLOAT16 = np.uint16, np.int16  # the dtypes under which kernels see these, to tell them apart

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
