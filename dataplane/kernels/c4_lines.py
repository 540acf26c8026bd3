"""The lines and citations that C4 cuts from a text, over Arrow buffers.

UTF-8 buffers and their words -> spans in bytes of each document. What stays is the kept lines without white space around them, one line break
between two, as datatrove joins them: a "\\n" from between them, or the first other break where there is none. Blank lines go.

Source: huggingface/datatrove `filters/c4_filters.py`; the judgement of a line is that of `kernels/c4.py`.
"""

import numba
import numpy as np

from dataplane.kernels import c4, code_points
from dataplane.kernels.words import Words

NEWLINE = 0x0A


@numba.njit(cache=True)
def _add(spans, start, end):  # type: ignore[no-untyped-def]
    if end > start:
        spans.append(start)
        spans.append(end)


@numba.njit(cache=True)
def _is_kept(data, words, a, b, options, classes, tables, line, counts):  # type: ignore[no-untyped-def]
    """Whether the line of the words a..b stays."""
    start, end = words.start[a], words.end[b - 1]
    if options.max_word_characters != -1 and c4._has_long_word(data, words, a, b, options.max_word_characters):
        return False
    if options.remove_citations:
        for i in range(start, end):
            if data[i] == c4.BRACKET:
                length = c4._without_citations(data, start, end, classes, line)
                return c4._judge_line(line, 0, length, b - a, options, tables, counts) == c4.KEPT
    return c4._judge_line(data, start, end, b - a, options, tables, counts) == c4.KEPT


@numba.njit(cache=True)
def _break_at(data, i):  # type: ignore[no-untyped-def]
    """Bytes of the line break at i, 0 if there is none; "\\n" aside. What follows is within the document: a line starts behind it."""
    byte = data[i]
    if 0x0B <= byte <= 0x0D or 0x1C <= byte <= 0x1E:
        return 1
    if byte == 0xC2 and data[i + 1] == 0x85:
        return 2
    return 3 if byte == 0xE2 and data[i + 1] == 0x80 and (data[i + 2] == 0xA8 or data[i + 2] == 0xA9) else 0


@numba.njit(cache=True)
def _cut_gap(data, start, end, base, spans):  # type: ignore[no-untyped-def]
    """Cuts what lies between two kept lines, but for one line break."""
    kept, length = -1, 0
    for i in range(start, end):
        if data[i] == NEWLINE:
            kept, length = i, 1
            break
        if kept < 0:
            length = _break_at(data, i)
            kept = i if length > 0 else -1
    _add(spans, start - base, kept - base)
    _add(spans, kept + length - base, end - base)


@numba.njit(cache=True)
def _cut_citations(data, start, end, base, is_first, classes, spans):  # type: ignore[no-untyped-def]
    """Cuts the citations of a line; of the first line also the white space that they leave before it."""
    at_start, i = is_first, start
    while i < end:
        code, length = code_points.decode(data, i)
        citation = c4._citation_bytes(data, i, end, classes) if data[i] == c4.BRACKET else 0
        if citation > 0 or (at_start and classes[code] & code_points.WHITE_SPACE != 0):
            length = max(length, citation)
            _add(spans, i - base, i + length - base)
        else:
            at_start = False
        i += length


@numba.njit(cache=True)
def _cut_document(data, base, end, words, a, last, options, classes, tables, line, spans):  # type: ignore[no-untyped-def]
    """Appends the spans of the document of the words a..last."""
    counts = np.zeros(len(c4.COUNTS), np.int64)
    position = base  # behind the last kept line
    while a < last:
        b = a + 1
        while b < last and not words.begins_line[b]:
            b += 1
        if _is_kept(data, words, a, b, options, classes, tables, line, counts):
            if position == base:
                _add(spans, 0, words.start[a] - base)
            else:
                _cut_gap(data, position, words.start[a], base, spans)
            if options.remove_citations:
                _cut_citations(data, words.start[a], words.end[b - 1], base, position == base, classes, spans)
            position = words.end[b - 1]
        a = b
    _add(spans, position - base, end - base)


@numba.njit(cache=True)
def _cut(offsets, data, words, options, classes, tables, bounds):  # type: ignore[no-untyped-def]
    spans = [np.int64(0) for _ in range(0)]
    line = np.empty(1, np.uint8)
    for document in range(len(offsets) - 1):
        base, end = offsets[document], offsets[document + 1]
        if len(line) < end - base:
            line = np.empty(end - base, np.uint8)
        first, last = words.first[document], words.first[document + 1]
        _cut_document(data, base, end, words, first, last, options, classes, tables, line, spans)
        bounds[document + 1] = len(spans)
    return np.array(spans, np.int64)


def find(offsets: np.ndarray, data: np.ndarray, words: Words, options: c4.Options) -> tuple[np.ndarray, np.ndarray]:
    """(bounds int64 [documents + 1], flat int64: start, end, start, end, ... in bytes of the document). offsets int64 [documents + 1], data uint8."""
    bounds = np.zeros(len(offsets), np.int64)
    tables = c4.STARTS, c4.PHRASE_BYTES, c4.PHRASE_LENGTHS, c4.LOWER
    return bounds, _cut(offsets, data, words, options, code_points.table(), tables, bounds)
