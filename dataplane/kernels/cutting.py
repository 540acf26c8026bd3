"""Texts without some of their bytes, over Arrow buffers.

UTF-8 buffers and spans to cut, in bytes of each document -> buffers of the same number of documents, copied. Spans may come in any order and
may overlap: what is in any of them goes.
"""

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def _is_edge(data, i, end):  # type: ignore[no-untyped-def]
    """Whether a character starts at i, or the document ends there."""
    return i == end or data[i] & 0xC0 != 0x80


@numba.njit(cache=True, nogil=True)
def _copy(data, start, end, out, at):  # type: ignore[no-untyped-def]
    for i in range(end - start):
        out[at + i] = data[start + i]
    return at + end - start


@numba.njit(cache=True, nogil=True)
def _cut_document(data, start, end, spans, out, at):  # type: ignore[no-untyped-def]
    """Copies what is in no span -> (the new length of out, whether every span lies within the document and between characters)."""
    position = start
    pairs = [(start + spans[k], start + spans[k + 1]) for k in range(0, len(spans), 2)]
    for k in range(1, len(pairs)):
        if pairs[k][0] < pairs[k - 1][0]:
            pairs.sort()
            break
    for low, high in pairs:
        if low < start or high < low or high > end or not _is_edge(data, low, end) or not _is_edge(data, high, end):
            return at, False
        at = _copy(data, position, max(position, low), out, at)
        position = max(position, high)
    return _copy(data, position, end, out, at), True


@numba.njit(cache=True, nogil=True)
def _cut(offsets, data, bounds, flat, cut_offsets, out):  # type: ignore[no-untyped-def]
    at = 0
    for document in range(len(offsets) - 1):
        a, b = bounds[document], bounds[document + 1]
        if a == b:
            at = _copy(data, offsets[document], offsets[document + 1], out, at)
        else:
            spans = flat[a : b - (b - a) % 2]
            at, is_right = _cut_document(data, offsets[document], offsets[document + 1], spans, out, at)
            if not is_right or (b - a) % 2:
                return document
        cut_offsets[document + 1] = at
    return -1


def cut(offsets: np.ndarray, data: np.ndarray, bounds: np.ndarray, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(offsets int64 [documents + 1], data uint8) of the texts without their spans.

    offsets int64 [documents + 1], data uint8; document d has the spans flat[bounds[d] : bounds[d + 1]], int64: start, end, start, end, ...
    ValueError with the number of the first document whose spans do not lie within it, between characters.
    """
    cut_offsets, out = np.zeros(len(offsets), np.int64), np.empty(int(offsets[-1] - offsets[0]), np.uint8)
    for array in (bounds, flat):
        array.flags.writeable = False  # kernels are compiled once more for writable arrays
    wrong = _cut(offsets, data, bounds, flat, cut_offsets, out)
    if wrong >= 0:
        raise ValueError(wrong)
    return cut_offsets, out[: cut_offsets[-1]]
