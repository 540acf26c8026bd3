"""Whitespace words and lines of documents, over Arrow buffers.

UTF-8 buffers -> where each word starts and ends, which words begin a line, how many lines there are. Words are those of `str.split()`, lines
those of `str.splitlines()`: every character that ends a line is white space, so one pass finds both.

Sources: CPython `Objects/unicodetype_db.h` (_PyUnicode_IsWhitespace, _PyUnicode_IsLinebreak).
"""

from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

WORD, SPACE, LINE_BREAK, MAYBE_SPACE = 0, 1, 2, 3
ONES = np.uint64(0x0101010101010101)


def _byte_classes() -> np.ndarray:
    classes = np.full(256, WORD, np.uint8)
    classes[[0x09, 0x1F, 0x20]] = SPACE
    classes[[0x0A, 0x0B, 0x0C, 0x0D, 0x1C, 0x1D, 0x1E]] = LINE_BREAK
    classes[[0xC2, 0xE1, 0xE2, 0xE3]] = MAYBE_SPACE  # the first bytes of all other white space
    return classes


CLASSES = _byte_classes()


class Words(NamedTuple):
    """first: int64 [documents + 1], the number of the first word of each document; start, end: int64 [words], byte positions in the data;
    begins_line: bool [words], the word is the first of its line; lines: int64 [documents]."""

    first: np.ndarray
    start: np.ndarray
    end: np.ndarray
    begins_line: np.ndarray
    lines: np.ndarray


@numba.njit(cache=True)
def _wide_space(data, i, end):  # type: ignore[no-untyped-def]
    """White space of two or three bytes at i -> (its bytes, 0 if it is none; whether it ends a line)."""
    if data[i] == 0xC2:
        if i + 1 < end and (data[i + 1] == 0x85 or data[i + 1] == 0xA0):
            return 2, data[i + 1] == 0x85
        return 0, False
    if i + 2 >= end:
        return 0, False
    second, third = data[i + 1], data[i + 2]
    if data[i] == 0xE1:
        return (3 if second == 0x9A and third == 0x80 else 0), False  # U+1680
    if data[i] == 0xE3:
        return (3 if second == 0x80 and third == 0x80 else 0), False  # U+3000
    if second == 0x80 and (0x80 <= third <= 0x8A or third == 0xA8 or third == 0xA9 or third == 0xAF):
        return 3, third == 0xA8 or third == 0xA9  # U+2000-200A, 2028, 2029, 202F
    return (3 if second == 0x81 and third == 0x9F else 0), False  # U+205F


@numba.njit(cache=True)
def _gap_end(data, i, end, classes):  # type: ignore[no-untyped-def]
    """White space from i -> (position behind it, line breaks in it, whether its last character is one). CR LF is one."""
    breaks, is_break = 0, False
    while i < end:
        kind, length = classes[data[i]], 1
        is_space_break = kind == LINE_BREAK
        if kind == MAYBE_SPACE:
            length, is_space_break = _wide_space(data, i, end)
        if kind == WORD or length == 0:
            return i, breaks, is_break
        if kind == LINE_BREAK and data[i] == 0x0D and i + 1 < end and data[i + 1] == 0x0A:
            length = 2
        is_break = is_space_break
        breaks += is_break
        i += length
    return i, breaks, is_break


@numba.njit(cache=True)
def _with_room(array, used, more):  # type: ignore[no-untyped-def]
    larger = np.empty(used + max(more, used // 2), array.dtype)
    larger[:used] = array[:used]
    return larger


@intrinsic
def load8(typing_context: Any, array: Any, index: Any) -> Any:
    """Eight bytes of an uint8 array as one integer, wherever they start."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.bitcast(builder.gep(view.data, [arguments[1]]), ir.IntType(64).as_pointer())
        value = builder.load(pointer)
        value.align = 1
        return value

    return types.uint64(array, types.int64), codegen


@intrinsic
def _trailing_zeros(typing_context, value):  # type: ignore[no-untyped-def]
    """The number of the lowest bit that is set."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), codegen


@numba.njit(cache=True)
def _mark_spaces(data, start, end, classes):  # type: ignore[no-untyped-def]
    """1 for each byte of white space, 0 for others, uint8 [end - start + 8]. The first loop becomes vector code, the second is for the
    rest of Unicode."""
    space = np.ones(end - start + 8, np.uint8)
    highest = np.uint8(0)
    for i in range(end - start):
        byte = data[start + i]
        space[i] = (byte == 32) | (np.uint8(byte - np.uint8(9)) < 5) | (np.uint8(byte - np.uint8(28)) < 4)
        highest |= byte
    if highest < 0x80:
        return space
    for i in range(start, end):
        if classes[data[i]] == MAYBE_SPACE:
            length, _ = _wide_space(data, i, end)
            for k in range(i - start, i - start + length):
                space[k] = 1
    return space


@numba.njit(cache=True)
def _find_edges(space, start, end, edges, count):  # type: ignore[no-untyped-def]
    """Writes where white space ends and begins between start and end, eight bytes a step -> number of edges: two a word."""
    before, i = np.uint64(1), start
    while i < end:
        bytes8 = load8(space, i)  # type: ignore[call-arg, var-annotated]
        if end - i < 8:  # what lies behind the document is as good as white space
            bytes8 |= ONES << np.uint64(8 * (end - i))
        changes = bytes8 ^ (bytes8 << np.uint64(8) | before)
        before = bytes8 >> np.uint64(56)
        while changes != 0:
            edges[count] = i + np.int64(_trailing_zeros(changes) >> np.uint64(3))
            changes &= changes - np.uint64(1)
            count += 1
        i += 8
    if before == 0:
        edges[count] = end
        count += 1
    return count


@numba.njit(cache=True)
def _find_lines(data, start, end, edges, classes, begins_line):  # type: ignore[no-untyped-def]
    """Marks the words that begin a line -> lines of the document."""
    position, total, is_break = start, 0, False
    for w in range(len(begins_line)):
        gap_end = edges[2 * w]
        if gap_end - position == 1 and data[position] == 32:
            begins_line[w] = False
        else:
            _, breaks, _ = _gap_end(data, position, gap_end, classes)
            total += breaks
            begins_line[w] = breaks > 0
        position = edges[2 * w + 1]
    if len(begins_line) > 0:
        begins_line[0] = True
    _, breaks, is_break = _gap_end(data, position, end, classes)
    return total + breaks + (end > start and not is_break)


@numba.njit(cache=True)
def _split(offsets, data, classes, first, lines):  # type: ignore[no-untyped-def]
    base = offsets[0]
    space = _mark_spaces(data, base, offsets[-1], classes)
    edges, count = np.empty((offsets[-1] - base) // 3 + 64, np.int64), 0
    for document in range(len(offsets) - 1):
        start, end = offsets[document], offsets[document + 1]
        if len(edges) - count < end - start + 2:
            edges = _with_room(edges, count, end - start + 2)
        count = _find_edges(space, start - base, end - base, edges, count)
        first[document + 1] = count // 2
    start_end = edges[:count].copy() + base
    begins_line = np.empty(count // 2, np.bool_)
    for document in range(len(offsets) - 1):
        a, b = first[document], first[document + 1]
        lines[document] = _find_lines(
            data, offsets[document], offsets[document + 1], start_end[2 * a : 2 * b], classes, begins_line[a:b]
        )
    return start_end[0::2].copy(), start_end[1::2].copy(), begins_line


def split(offsets: np.ndarray, data: np.ndarray) -> Words:
    """The words of each document. offsets int64 [documents + 1], data uint8."""
    first, lines = np.zeros(len(offsets), np.int64), np.zeros(len(offsets) - 1, np.int64)
    start, end, begins_line = _split(offsets, data, CLASSES, first, lines)
    return Words(first, start, end, begins_line, lines)
