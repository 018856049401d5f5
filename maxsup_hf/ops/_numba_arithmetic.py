# mypy: ignore-errors
"""What numba's own language lacks for the row operation, written in LLVM's instructions: an exp that becomes vector
instructions, an order of floats that does not depend on how NaN compares, 16-bit floats, and memory at an address.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_F32 = ir.FloatType()


class _Exp(NamedTuple):
    """Constants of exp for one width of float."""

    integer: ir.IntType  # of the same width
    mantissa: int  # bits
    one: int  # the bits of 1.0
    round: float  # adding it rounds to an integer, which then fills the lowest bits
    ln2_high: float  # so few digits that its product with an exponent is exact
    ln2_low: float
    lowest: float  # the result is 0 below this: it would be smaller than the smallest normal number
    polynomial: tuple[float, ...]  # highest power first


_EXP = {
    # Fitted to the smallest relative error on |r| ≤ ln(2)/2, which is 4e-9.
    types.float32: _Exp(
        *(_I32, 23, 0x3F800000, 1.5 * 2.0**23, 0.693359375, -2.12194440e-4, -87.3),
        (0.0013814539415761828, 0.00836874544620514, 0.04166838899254799, 0.1666652113199234, 0.4999999403953552, 1.0, 1.0),
    ),
    # Taylor's: the first term left out is below 1e-17.
    types.float64: _Exp(
        *(_I64, 52, 0x3FF0000000000000, 1.5 * 2.0**52, 0.693145751953125, 1.42860682030941723212e-6, -708.3),
        tuple(1 / math.factorial(power) for power in range(13, -1, -1)),
    ),
}


@intrinsic
def exp(typing_context, x):
    """exp(x) for x ≤ 0 to a relative error of 2e-7 (float32) or 1e-15 (float64), with 0 for subnormal results; NaN for NaN.
    The error of `x` itself is not counted."""
    constants = _EXP[x]

    def generate(context, builder, signature, arguments):
        (value,) = arguments
        number = value.type
        fused = {"flags": ("contract",)}
        shifted = builder.fadd(builder.fmul(value, number(1 / math.log(2)), **fused), number(constants.round), **fused)
        power = builder.fsub(shifted, number(constants.round))
        rest = builder.fsub(value, builder.fmul(power, number(constants.ln2_high), **fused), **fused)
        rest = builder.fsub(rest, builder.fmul(power, number(constants.ln2_low), **fused), **fused)
        result = number(constants.polynomial[0])
        for coefficient in constants.polynomial[1:]:
            result = builder.fadd(builder.fmul(result, rest, **fused), number(coefficient), **fused)
        exponent = builder.shl(builder.bitcast(shifted, constants.integer), constants.integer(constants.mantissa))
        scale = builder.bitcast(builder.add(exponent, constants.integer(constants.one)), number)
        underflow = builder.fcmp_ordered("<", value, number(constants.lowest))
        return builder.select(underflow, number(0.0), builder.fmul(result, scale))

    return x(x), generate


@intrinsic
def order(typing_context, x):
    """An integer that sorts as `x` does, with NaN at either end depending on its sign. Maxima of integers become vector
    instructions without a promise that there is no NaN, and NaN is not lost."""
    result = {types.float32: types.int32, types.float64: types.int64}[x]

    def generate(context, builder, signature, arguments):
        integer = context.get_value_type(result)
        bits = builder.bitcast(arguments[0], integer)
        sign = builder.ashr(bits, integer(result.bitwidth - 1))
        return builder.xor(bits, builder.and_(sign, integer(2 ** (result.bitwidth - 1) - 1)))

    return result(x), generate


@intrinsic
def from_order(typing_context, key):
    """The number whose `order` is `key`."""
    result = {types.int32: types.float32, types.int64: types.float64}[key]

    def generate(context, builder, signature, arguments):
        integer = arguments[0].type
        sign = builder.ashr(arguments[0], integer(key.bitwidth - 1))
        bits = builder.xor(arguments[0], builder.and_(sign, integer(2 ** (key.bitwidth - 1) - 1)))
        return builder.bitcast(bits, context.get_value_type(result))

    return result(key), generate


@intrinsic
def add(typing_context, total, x):
    """total + x, for sums over a row: in any order, so that the loop becomes vector instructions."""

    def generate(context, builder, signature, arguments):
        return builder.fadd(*arguments, flags=("reassoc", "nsz", "contract"))

    return x(x, x), generate


def _conversion(result: types.Type, argument: types.Type, generate: Callable[[Any, Any], Any]) -> Any:
    """An intrinsic from a function that appends instructions to a builder."""

    @intrinsic
    def convert(typing_context, value):
        return result(argument), lambda context, builder, signature, arguments: generate(builder, arguments[0])

    return convert


def _bfloat16_to_float32(builder: Any, bits: Any) -> Any:
    return builder.bitcast(builder.shl(builder.zext(bits, _I32), _I32(16)), _F32)


def _float32_to_bfloat16(builder: Any, value: Any) -> Any:
    bits = builder.bitcast(value, _I32)
    high = builder.lshr(bits, _I32(16))
    # Half of the last place, less one where the last place is even: rounds to the nearest, ties to even.
    rounded = builder.lshr(builder.add(builder.add(bits, _I32(0x7FFF)), builder.and_(high, _I32(1))), _I32(16))
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(is_nan, builder.or_(high, _I32(0x40)), rounded), _I16)


def _float16_to_float32(builder: Any, bits: Any) -> Any:
    bits = builder.zext(bits, _I32)
    sign = builder.shl(builder.and_(bits, _I32(0x8000)), _I32(16))
    magnitude = builder.shl(builder.and_(bits, _I32(0x7FFF)), _I32(13))
    # The exponents' offsets differ by 112; a product corrects this for subnormal numbers too.
    scaled = builder.fmul(builder.bitcast(magnitude, _F32), _F32(2.0**112))
    special = builder.icmp_unsigned(">=", magnitude, _I32(0x7C00 << 13))
    wide = builder.select(special, builder.or_(magnitude, _I32(0x7F800000)), builder.bitcast(scaled, _I32))
    return builder.bitcast(builder.or_(wide, sign), _F32)


def _float32_to_float16(builder: Any, value: Any) -> Any:
    bits = builder.bitcast(value, _I32)
    sign = builder.and_(builder.lshr(bits, _I32(16)), _I32(0x8000))
    magnitude = builder.and_(bits, _I32(0x7FFFFFFF))
    odd = builder.and_(builder.lshr(magnitude, _I32(13)), _I32(1))
    offset = builder.add(magnitude, _I32((0xFFF - (112 << 23)) & 0xFFFFFFFF))
    normal = builder.lshr(builder.add(offset, odd), _I32(13))
    # Adding 0.5 leaves as many bits of the mantissa as a subnormal result has, rounded by the addition.
    sum_ = builder.fadd(builder.bitcast(magnitude, _F32), _F32(0.5))
    subnormal = builder.sub(builder.bitcast(sum_, _I32), _I32(0x3F000000))
    is_nan = builder.icmp_unsigned(">", magnitude, _I32(0x7F800000))
    special = builder.select(is_nan, _I32(0x7E00), _I32(0x7C00))
    result = builder.select(builder.icmp_unsigned("<", magnitude, _I32(0x38800000)), subnormal, normal)
    result = builder.select(builder.icmp_unsigned(">=", magnitude, _I32(0x47800000)), special, result)
    return builder.trunc(builder.or_(result, sign), _I16)


bfloat16_to_float32 = _conversion(types.float32, types.uint16, _bfloat16_to_float32)
float32_to_bfloat16 = _conversion(types.uint16, types.float32, _float32_to_bfloat16)
float16_to_float32 = _conversion(types.float32, types.uint16, _float16_to_float32)
float32_to_float16 = _conversion(types.uint16, types.float32, _float32_to_float16)


BFLOAT16, FLOAT16 = np.uint16, np.int16  # the dtypes under which kernels see these in memory, to tell them apart


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


@intrinsic
def pointer(typing_context, address, offset, dtype):
    """Where the number at `offset` lies of those of a numpy `dtype` that begin at `address`, for `numba.carray`."""
    result = types.CPointer(dtype.dtype)

    def generate(context, builder, signature, arguments):
        start = builder.inttoptr(arguments[0], context.get_value_type(result))
        return builder.gep(start, [context.cast(builder, arguments[1], offset, types.int64)])

    return result(types.int64, offset, dtype), generate
