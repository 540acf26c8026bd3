"""FineWeb's line statistics, over Arrow buffers.

UTF-8 buffers and their words -> counts of each document, int64 [documents, len(COUNTS)]. A line is what `\\n` alone separates, as it stands: white
space at its ends counts. Lines of nothing but white space do not count.

Source: huggingface/datatrove `filters/fineweb_quality_filter.py`, whose counts these are exactly, given the same words.
"""

import numba
import numpy as np

from dataplane.kernels import code_points
from dataplane.kernels.characters import count_between
from dataplane.kernels.gopher_repetition import _hash_spans, _number_spans
from dataplane.kernels.words import Words

COUNTS = (
    "lines",
    "punctuated_lines",  # their last character ends sentences, in any script
    "short_lines",
    "duplicate_characters",  # of lines that came before
    "characters",  # but newlines
    "newlines",
    "words",
)
NEWLINE = 0x0A


@numba.njit(cache=True)
def _cut_lines(data, start, end, words, first, last, starts, ends):  # type: ignore[no-untyped-def]
    """The lines with a word in them -> (lines, newlines)."""
    count, newlines, line, w = 0, 0, start, first
    for i in range(start, end + 1):
        if i < end and data[i] != NEWLINE:
            continue
        newlines += i < end
        if w < last and words.start[w] < i:
            starts[count], ends[count] = line, i
            count += 1
            while w < last and words.start[w] < i:
                w += 1
        line = i + 1
    return count, newlines


@numba.njit(cache=True)
def _count_lines(data, starts, ends, count, classes, short_length, room, out):  # type: ignore[no-untyped-def]
    table, hashes, members, numbers, positions = room
    _hash_spans(data, starts[:count], ends[:count], hashes)
    _number_spans(data, starts, ends, hashes, positions, count, table, members, numbers)
    out[0] = count
    for k in range(count):
        length = count_between(data, starts[k], ends[k])
        out[1] += classes[code_points.last(data, starts[k], ends[k])] & code_points.TERMINAL != 0
        out[2] += length <= short_length
        out[3] += length if members[1, numbers[k]] != k else 0


@numba.njit(cache=True)
def _most_lines(offsets, words):  # type: ignore[no-untyped-def]
    most = 1
    for document in range(len(offsets) - 1):
        most = max(most, words.first[document + 1] - words.first[document])
    return most


@numba.njit(cache=True)
def _count_documents(offsets, data, words, classes, short_length, out):  # type: ignore[no-untyped-def]
    most = _most_lines(offsets, words)
    starts, ends = np.empty(most, np.int64), np.empty(most, np.int64)
    table, hashes, members = np.empty(4 * most + 16, np.int32), np.empty(most, np.uint64), np.empty((2, most), np.int64)
    room = table, hashes, members, np.empty(most, np.int32), np.arange(most, dtype=np.int32)
    for document in range(len(offsets) - 1):
        start, end = offsets[document], offsets[document + 1]
        first, last = words.first[document], words.first[document + 1]
        lines, newlines = _cut_lines(data, start, end, words, first, last, starts, ends)
        _count_lines(data, starts, ends, lines, classes, short_length, room, out[document])
        out[document, 4] = count_between(data, start, end) - newlines
        out[document, 5], out[document, 6] = newlines, last - first


def count(offsets: np.ndarray, data: np.ndarray, words: Words, short_line_characters: int) -> np.ndarray:
    """The counts of each document -> int64 [documents, len(COUNTS)]. offsets int64 [documents + 1], data uint8."""
    out = np.zeros((len(offsets) - 1, len(COUNTS)), np.int64)
    _count_documents(offsets, data, words, code_points.table(), short_line_characters, out)
    return out
