"""Whitespace words and lines of documents, over Arrow buffers.

UTF-8 buffers -> where each word starts and ends, which words begin a line, how many lines there are. Words are those of `str.split()`, lines
those of `str.splitlines()`: every character that ends a line is white space, so one pass finds both.

Sources: CPython `Objects/unicodetype_db.h` (_PyUnicode_IsWhitespace, _PyUnicode_IsLinebreak).
"""

from typing import NamedTuple

import numba
import numpy as np

WORD, SPACE, LINE_BREAK, MAYBE_SPACE = 0, 1, 2, 3


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
def _word_end(data, i, end, classes):  # type: ignore[no-untyped-def]
    while i < end:
        kind = classes[data[i]]
        if kind != WORD and (kind != MAYBE_SPACE or _wide_space(data, i, end)[0] > 0):
            return i
        i += 1
    return i


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
def _grown(array, size):  # type: ignore[no-untyped-def]
    larger = np.empty(size, array.dtype)
    larger[: len(array)] = array
    return larger


@numba.njit(cache=True)
def _split(offsets, data, classes, first, lines):  # type: ignore[no-untyped-def]
    capacity = (offsets[-1] - offsets[0]) // 6 + 64
    starts, ends, begins = np.empty(capacity, np.int64), np.empty(capacity, np.int64), np.empty(capacity, np.bool_)
    count = 0
    for document in range(len(offsets) - 1):
        end = offsets[document + 1]
        i, breaks, is_break = _gap_end(data, offsets[document], end, classes)
        total, is_first = breaks, True
        while i < end:
            if count == capacity:
                capacity = capacity * 3 // 2
                starts, ends, begins = _grown(starts, capacity), _grown(ends, capacity), _grown(begins, capacity)
            starts[count], begins[count] = i, is_first or breaks > 0
            i = _word_end(data, i, end, classes)
            ends[count] = i
            count += 1
            i, breaks, is_break = _gap_end(data, i, end, classes)
            total, is_first = total + breaks, False
        lines[document] = total + (end > offsets[document] and not is_break)
        first[document + 1] = count
    return starts[:count], ends[:count], begins[:count]


def split(offsets: np.ndarray, data: np.ndarray) -> Words:
    """The words of each document. offsets int64 [documents + 1], data uint8."""
    first, lines = np.zeros(len(offsets), np.int64), np.zeros(len(offsets) - 1, np.int64)
    start, end, begins_line = _split(offsets, data, CLASSES, first, lines)
    return Words(first, start, end, begins_line, lines)
