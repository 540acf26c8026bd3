"""How much of a document its two commonest words are, over Arrow buffers.

UTF-8 buffers and words (whitespace ones, or `identifiers`) -> counts of each document, int64 [documents, 3]: words, times of the commonest,
of the next.
"""

import numba
import numpy as np

from dataplane.kernels.gopher_repetition import _hash_spans, _number_spans


def _identifier_bytes() -> np.ndarray:
    table = np.zeros(256, np.bool_)
    table[[*range(48, 58), *range(65, 91), 95, *range(97, 123), *range(128, 256)]] = True
    return table


IDENTIFIER = _identifier_bytes()


@numba.njit(cache=True)
def _identifiers(offsets, data, is_identifier, first):  # type: ignore[no-untyped-def]
    most = (offsets[-1] - offsets[0] + 1) // 2 + len(offsets)
    starts, ends, count = np.empty(most, np.int64), np.empty(most, np.int64), 0
    for document in range(len(offsets) - 1):
        inside = False
        for i in range(offsets[document], offsets[document + 1]):
            if is_identifier[data[i]] != inside:
                inside = not inside
                if inside:
                    starts[count] = i
                else:
                    ends[count] = i
                    count += 1
        if inside:
            ends[count] = offsets[document + 1]
            count += 1
        first[document + 1] = count
    return starts[:count].copy(), ends[:count].copy()


def identifiers(offsets: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of ASCII letters, digits and `_`, and of all that is not ASCII -> first int64 [documents + 1], start, end int64 [words]."""
    first = np.zeros(len(offsets), np.int64)
    starts, ends = _identifiers(np.ascontiguousarray(offsets), data, IDENTIFIER, first)
    return first, starts, ends


@numba.njit(cache=True)
def _count(data, first, starts, ends, out):  # type: ignore[no-untyped-def]
    most = 1
    for document in range(len(first) - 1):
        most = max(most, first[document + 1] - first[document])
    table, hashes, members = np.empty(4 * most + 16, np.int32), np.empty(most, np.uint64), np.empty((2, most), np.int64)
    numbers, positions = np.empty(most, np.int32), np.arange(most, dtype=np.int32)
    for document in range(len(first) - 1):
        a, b = first[document], first[document + 1]
        _hash_spans(data, starts[a:b], ends[a:b], hashes)
        distinct = _number_spans(data, starts[a:b], ends[a:b], hashes, positions, b - a, table, members, numbers)
        top, second = 0, 0
        for number in range(distinct):
            times = members[0, number]
            second = max(second, min(times, top))
            top = max(top, times)
        out[document, 0], out[document, 1], out[document, 2] = b - a, top, second


def count(data: np.ndarray, first: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The counts of each document -> int64 [documents, 3]. data uint8; first int64 [documents + 1]; starts, ends int64 [words]."""
    out = np.zeros((len(first) - 1, 3), np.int64)
    _count(data, first, starts, ends, out)
    return out
