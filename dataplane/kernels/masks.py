"""64 bytes at a time: which of them are white space, line ends, a given byte; as the bits of one integer, the first byte the lowest.

uint8 array of 64 bytes or more (`at_least_64`), position in it -> uint64. Behind the end of the array there are zeros: the last 64 bytes are
read and the mask is shifted, so that no block needs a branch or a copy. One compare a byte class; AVX-512 gives the mask directly, AVX2 in two
halves.

Source: the technique is that of simdjson (Langdale and Lemire 2019, arXiv 1902.08318).
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

BLOCK = 64
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
VECTOR = ir.VectorType(ir.IntType(8), BLOCK)


def _constant(byte: int) -> ir.Constant:
    return ir.Constant(VECTOR, [byte] * BLOCK)


def _loaded(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    view = context.make_array(array_type)(context, builder, array)
    value = builder.load(builder.bitcast(builder.gep(view.data, [index]), VECTOR.as_pointer()))
    value.align = 1
    return value


def _nearest(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """The last position up to `index` from which 64 bytes can be read."""
    size = context.make_array(array_type)(context, builder, array).nitems
    last = builder.sub(size, ir.Constant(size.type, BLOCK))
    return builder.select(builder.icmp_signed("<", index, last), index, last)


def _between(builder: Any, vector: Any, low: int, high: int) -> Any:
    """low <= byte <= high, as one subtraction and one comparison."""
    return builder.icmp_unsigned("<=", builder.sub(vector, _constant(low)), _constant(high - low))


def _mask(*ranges: tuple[int, int]) -> Callable[..., Any]:
    """A function for kernels: (data, i) -> bits of the bytes that lie in one of the ranges, both ends included."""

    @intrinsic
    def mask(typing_context: Any, array: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            at = _nearest(context, builder, signature.args[0], *arguments)
            vector = _loaded(context, builder, signature.args[0], arguments[0], at)
            found = _between(builder, vector, *ranges[0])
            for low, high in ranges[1:]:
                found = builder.or_(found, _between(builder, vector, low, high))
            return builder.lshr(builder.bitcast(found, ir.IntType(BLOCK)), builder.sub(arguments[1], at))

        return types.uint64(array, types.int64), codegen

    return mask  # type: ignore[no-any-return]


spaces = _mask((0x20, 0x20), (0x09, 0x0D), (0x1C, 0x1F))  # the ASCII part of str.isspace
fasttext_spaces = _mask((0x00, 0x00), (0x09, 0x0D), (0x20, 0x20))
ascii_separators = _mask((0x1C, 0x1E))
wide_space_leads = _mask((0xC2, 0xC2), (0xE1, 0xE3))  # the first bytes of all other white space
newlines = _mask((0x0A, 0x0A))
continuations = _mask((0x80, 0xBF))  # bytes of UTF-8 that begin no character
not_plain = _mask((0x00, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x80, 0xFF))  # what a JSON string cannot hold as it is
dots = _mask((0x2E, 0x2E))
hashes = _mask((0x23, 0x23))
three_byte_marks = _mask((0xE2, 0xE2))
letters_and_digits = _mask((0x30, 0x39), (0x41, 0x5A), (0x61, 0x7A), (0x80, 0xFF))  # of words as MinHash has them


@intrinsic
def _copy64(typing_context: Any, source: Any, i: Any, target: Any, o: Any) -> Any:
    """Copies 64 bytes from source[i] to target[o]."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = _loaded(context, builder, signature.args[0], arguments[0], arguments[1])
        view = context.make_array(signature.args[2])(context, builder, arguments[2])
        stored = builder.store(value, builder.bitcast(builder.gep(view.data, [arguments[3]]), VECTOR.as_pointer()))
        stored.align = 1
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64), codegen


@intrinsic
def _lowest(typing_context, value):  # type: ignore[no-untyped-def]
    """The number of the lowest bit that is set, int64; 64 if there is none."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), codegen


@intrinsic
def _ones(typing_context, value):  # type: ignore[no-untyped-def]
    """How many bits are set, int64."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), codegen


copy64: Callable[..., Any] = _copy64
lowest: Callable[..., Any] = _lowest
ones: Callable[..., Any] = _ones


@numba.njit(cache=True, inline="always")
def below(count):  # type: ignore[no-untyped-def]
    """The lowest `count` bits; all from 64 on."""
    return ALL if count >= BLOCK else (np.uint64(1) << np.uint64(count)) - np.uint64(1)


def at_least_64(data: np.ndarray) -> np.ndarray:
    """uint8 [n] -> the same, or a copy with zeros behind it; read-only, since kernels are compiled once more for writable arrays."""
    if len(data) < BLOCK:
        data = np.concatenate([data, np.zeros(BLOCK, np.uint8)])
        data.flags.writeable = False
    return data
