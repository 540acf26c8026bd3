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

from dataplane.kernels import masks
from dataplane.kernels.borrowing import borrowing

WORD, SPACE, LINE_BREAK, MAYBE_SPACE = 0, 1, 2, 3
HIGH_BITS = np.uint64(0x8080808080808080)
ROOM = 72  # positions that `write_bits` may write beyond what it counts, and one word


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


@borrowing
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


@borrowing
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


@numba.njit(cache=True, inline="always")
def up_to_8(data, start, end):  # type: ignore[no-untyped-def]
    """At most eight bytes as one integer. `data` has eight or more. No loop for its last bytes: that made it ten times slower."""
    at = min(start, len(data) - 8)
    bytes8 = load8(data, at) >> np.uint64(min(63, 8 * (start - at)))  # type: ignore[call-arg]
    return bytes8 & masks.below(8 * (end - start))


@numba.njit(cache=True, inline="always")
def word_characters(data, start, end):  # type: ignore[no-untyped-def]
    """Code points of the bytes [start, end), eight at a time: those of a short word without a branch."""
    continued = 0
    for i in range(start, end, 8):
        bytes8 = up_to_8(data, i, end)
        continued += masks.ones(bytes8 & ~(bytes8 << np.uint64(1)) & HIGH_BITS)
    return end - start - continued


@borrowing
def _with_wide_spaces(data, i, end, leads, mask):  # type: ignore[no-untyped-def]
    """Adds the white space beyond ASCII of the block at i -> (mask, bits of it that reach into the next block)."""
    beyond = np.uint64(0)
    while leads != 0:
        bit = masks.lowest(leads)
        leads &= leads - np.uint64(1)
        length, _ = _wide_space(data, i + bit, end)
        if length > 0:
            mask |= masks.below(length) << np.uint64(bit)
            beyond |= masks.below(max(0, bit + length - masks.BLOCK))
    return mask, beyond


@numba.njit(cache=True, inline="always")
def write_bits(bits, i, out, count):  # type: ignore[no-untyped-def]
    """Writes the positions of the bits behind out[:count] -> the new count. Eight at a time, too many rather than one branch each."""
    total = count + masks.ones(bits)
    while count < total:
        for k in range(8):
            out[count + k] = i + masks.lowest(bits)
            bits &= bits - np.uint64(1)
        count += 8
    return total


@borrowing
def _find_words(data, start, end, starts, ends, count):  # type: ignore[no-untyped-def]
    """Writes where the words of a document start and end behind starts[:count], ends[:count] -> the new count."""
    before, beyond, num_ends = np.uint64(1), np.uint64(0), count
    for i in range(start, end, masks.BLOCK):
        inside = masks.below(end - i)
        mask = masks.spaces(data, i) | beyond | ~inside  # what lies behind the document is as good as white space
        beyond = np.uint64(0)
        leads = masks.wide_space_leads(data, i) & inside
        if leads != 0:
            mask, beyond = _with_wide_spaces(data, i, end, leads, mask)
        shifted = mask << np.uint64(1) | before
        before = mask >> np.uint64(63)
        count = write_bits(~mask & shifted, i, starts, count)
        num_ends = write_bits(mask & ~shifted, i, ends, num_ends)
    if num_ends < count:
        ends[num_ends] = end
    return count


@borrowing
def _find_lines(data, start, end, starts, ends, classes, begins_line):  # type: ignore[no-untyped-def]
    """Marks the words that begin a line -> lines of the document."""
    position, total, is_break = start, 0, False
    for w in range(len(begins_line)):
        gap_end = starts[w]
        if gap_end - position == 1 and data[position] == 32:
            begins_line[w] = False
        else:
            _, breaks, _ = _gap_end(data, position, gap_end, classes)
            total += breaks
            begins_line[w] = breaks > 0
        position = ends[w]
    if len(begins_line) > 0:
        begins_line[0] = True
    _, breaks, is_break = _gap_end(data, position, end, classes)
    return total + breaks + (end > start and not is_break)


@numba.njit(cache=True)
def _split(offsets, data, classes, first, lines):  # type: ignore[no-untyped-def]
    room = (offsets[-1] - offsets[0]) // 5 + ROOM
    starts, ends, count = np.empty(room, np.int64), np.empty(room, np.int64), 0
    for document in range(len(offsets) - 1):
        start, end = offsets[document], offsets[document + 1]
        if len(starts) - count < (end - start) // 2 + ROOM:
            starts = _with_room(starts, count, (end - start) // 2 + ROOM)
            ends = _with_room(ends, count, (end - start) // 2 + ROOM)
        count = _find_words(data, start, end, starts, ends, count)
        first[document + 1] = count
    begins_line = np.empty(count, np.bool_)
    for document in range(len(offsets) - 1):
        a, b = first[document], first[document + 1]
        lines[document] = _find_lines(
            data, offsets[document], offsets[document + 1], starts[a:b], ends[a:b], classes, begins_line[a:b]
        )
    return starts[:count], ends[:count], begins_line


def split(offsets: np.ndarray, data: np.ndarray) -> Words:
    """The words of each document. offsets int64 [documents + 1], data uint8."""
    first, lines = np.zeros(len(offsets), np.int64), np.zeros(len(offsets) - 1, np.int64)
    start, end, begins_line = _split(offsets, masks.at_least_64(data), CLASSES, first, lines)
    return Words(first, start, end, begins_line, lines)
