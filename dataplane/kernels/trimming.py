"""Texts without the white space at their ends, over Arrow buffers: `str.strip`.

UTF-8 buffers and their words -> buffers of the same number of documents, copied.
"""

import numba
import numpy as np

from dataplane.kernels.words import Words


@numba.njit(cache=True)
def _trim(data, first, starts, ends, offsets, out):  # type: ignore[no-untyped-def]
    for document in range(len(first) - 1):
        at = offsets[document]
        if first[document + 1] > first[document]:
            start, end = starts[first[document]], ends[first[document + 1] - 1]
            out[at : at + end - start] = data[start:end]
            at += end - start
        offsets[document + 1] = at


def trim(offsets: np.ndarray, data: np.ndarray, words: Words) -> tuple[np.ndarray, np.ndarray]:
    """(offsets int64 [documents + 1], data uint8) of the trimmed texts. offsets int64 [documents + 1], data uint8."""
    trimmed, out = np.zeros(len(offsets), np.int64), np.empty(offsets[-1] - offsets[0], np.uint8)
    _trim(data, words.first, words.start, words.end, trimmed, out)
    return trimmed, out[: trimmed[-1]]
