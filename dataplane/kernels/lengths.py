"""Characters of documents, over Arrow buffers: UTF-8 buffers -> code points, int64 [documents]."""

import numba
import numpy as np

from dataplane.kernels.characters import count_between


@numba.njit(cache=True)
def _count(offsets, data, out):  # type: ignore[no-untyped-def]
    for document in range(len(offsets) - 1):
        out[document] = count_between(data, offsets[document], offsets[document + 1])


def count_characters(offsets: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Code points of each document -> int64 [documents]. offsets int64 [documents + 1], data uint8."""
    out = np.empty(len(offsets) - 1, np.int64)
    _count(offsets, data, out)
    return out
