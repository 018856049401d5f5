# mypy: ignore-errors
"""What the row operation needs and numba does not provide, written as LLVM instructions: an exp that vectorises, an ordering
of floats that is total even with NaN, conversions of 16-bit floats, and access to memory at an address.
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
    """The constants of `exp` for one float type."""

    integer: ir.IntType  # the integer type of the same width
    mantissa: int  # the number of mantissa bits
    one: int  # the bits of 1.0
    round: float  # adding this rounds to an integer, which then occupies the lowest bits
    ln2_high: float  # log 2, with so few digits that its product with an exponent is exact
    ln2_low: float  # the rest of log 2
    lowest: float  # below this the result would be subnormal, and is set to 0
    polynomial: tuple[float, ...]  # highest power first


_EXP = {
    # A minimax fit on |r| ≤ ln(2)/2, with a relative error of 4e-9.
    types.float32: _Exp(
        *(_I32, 23, 0x3F800000, 1.5 * 2.0**23, 0.693359375, -2.12194440e-4, -87.3),
        (0.0013814539415761828, 0.00836874544620514, 0.04166838899254799, 0.1666652113199234, 0.4999999403953552, 1.0, 1.0),
    ),
    # The Taylor series, whose first omitted term is below 1e-17.
    types.float64: _Exp(
        *(_I64, 52, 0x3FF0000000000000, 1.5 * 2.0**52, 0.693145751953125, 1.42860682030941723212e-6, -708.3),
        tuple(1 / math.factorial(power) for power in range(13, -1, -1)),
    ),
}


@intrinsic
def exp(typing_context, x):
    """exp(x) for x ≤ 0, which vectorises where a call of the C library does not.

    The relative error is 2e-7 (float32) or 1e-15 (float64), apart from that of `x` itself. Subnormal results become 0; NaN
    stays NaN.
    """
    constants = _EXP[x]

    def generate(context, builder, signature, arguments):
        # exp(x) = 2^n · exp(r) with n = round(x / log 2) and r = x − n·log 2, in two steps so that r loses no digits.
        (value,) = arguments
        real = value.type
        fused = {"flags": ("contract",)}
        shifted = builder.fadd(builder.fmul(value, real(1 / math.log(2)), **fused), real(constants.round), **fused)
        power = builder.fsub(shifted, real(constants.round))
        rest = builder.fsub(value, builder.fmul(power, real(constants.ln2_high), **fused), **fused)
        rest = builder.fsub(rest, builder.fmul(power, real(constants.ln2_low), **fused), **fused)
        result = real(constants.polynomial[0])
        for coefficient in constants.polynomial[1:]:
            result = builder.fadd(builder.fmul(result, rest, **fused), real(coefficient), **fused)
        # 2^n: n is in the lowest bits of `shifted`; moved to the exponent's place, it is added to the bits of 1.0.
        exponent = builder.shl(builder.bitcast(shifted, constants.integer), constants.integer(constants.mantissa))
        scale = builder.bitcast(builder.add(exponent, constants.integer(constants.one)), real)
        underflow = builder.fcmp_ordered("<", value, real(constants.lowest))
        return builder.select(underflow, real(0.0), builder.fmul(result, scale))

    return x(x), generate


@intrinsic
def order(typing_context, x):
    """An integer that sorts like the float `x`, with NaN at either end depending on its sign.

    A maximum of integers vectorises; that of floats would, too, only with flags that promise there is no NaN.
    """
    result = {types.float32: types.int32, types.float64: types.int64}[x]

    def generate(context, builder, signature, arguments):
        # Floats sort like their bits as sign and magnitude: for negative ones, flip all bits but the sign.
        integer = context.get_value_type(result)
        bits = builder.bitcast(arguments[0], integer)
        sign = builder.ashr(bits, integer(result.bitwidth - 1))
        return builder.xor(bits, builder.and_(sign, integer(2 ** (result.bitwidth - 1) - 1)))

    return result(x), generate


@intrinsic
def from_order(typing_context, key):
    """The float whose `order` is `key`."""
    result = {types.int32: types.float32, types.int64: types.float64}[key]

    def generate(context, builder, signature, arguments):
        integer = arguments[0].type
        sign = builder.ashr(arguments[0], integer(key.bitwidth - 1))
        bits = builder.xor(arguments[0], builder.and_(sign, integer(2 ** (key.bitwidth - 1) - 1)))
        return builder.bitcast(bits, context.get_value_type(result))

    return result(key), generate


@intrinsic
def add(typing_context, total, x):
    """total + x for sums over a row, which may be reordered: without this permission a loop of sums does not vectorise."""

    def generate(context, builder, signature, arguments):
        return builder.fadd(*arguments, flags=("reassoc", "nsz", "contract"))

    return x(x, x), generate


def _conversion(result: types.Type, argument: types.Type, generate: Callable[[Any, Any], Any]) -> Any:
    """An intrinsic that converts `argument` to `result` by the instructions that `generate` appends to a builder."""

    @intrinsic
    def convert(typing_context, value):
        return result(argument), lambda context, builder, signature, arguments: generate(builder, arguments[0])

    return convert


def _bfloat16_to_float32(builder: Any, bits: Any) -> Any:
    return builder.bitcast(builder.shl(builder.zext(bits, _I32), _I32(16)), _F32)


def _float32_to_bfloat16(builder: Any, value: Any) -> Any:
    bits = builder.bitcast(value, _I32)
    high = builder.lshr(bits, _I32(16))
    # Round to nearest, ties to even: add half of the last place, less one bit if the last place is even.
    rounded = builder.lshr(builder.add(builder.add(bits, _I32(0x7FFF)), builder.and_(high, _I32(1))), _I32(16))
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(is_nan, builder.or_(high, _I32(0x40)), rounded), _I16)


def _float16_to_float32(builder: Any, bits: Any) -> Any:
    bits = builder.zext(bits, _I32)
    sign = builder.shl(builder.and_(bits, _I32(0x8000)), _I32(16))
    magnitude = builder.shl(builder.and_(bits, _I32(0x7FFF)), _I32(13))
    # The exponent biases differ by 112; correcting this by a product is right for subnormals too.
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
    # A sum with 0.5 keeps exactly the mantissa bits of a subnormal result, and the addition rounds them.
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


BFLOAT16, FLOAT16 = np.uint16, np.int16  # numpy has no bfloat16: kernels see both as integers of 16 bits, told apart by sign


def widen(value: Any) -> Any:
    """A value as stored in memory, converted to a float of at least 32 bits."""


def narrow(value: Any, dtype: Any) -> Any:
    """The inverse of `widen`, rounded to the nearest, for memory that holds `dtype`."""


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
    """A pointer for `numba.carray` to element `offset` of an array of numpy type `dtype` that begins at `address`."""
    result = types.CPointer(dtype.dtype)

    def generate(context, builder, signature, arguments):
        start = builder.inttoptr(arguments[0], context.get_value_type(result))
        return builder.gep(start, [context.cast(builder, arguments[1], offset, types.int64)])

    return result(types.int64, offset, dtype), generate
