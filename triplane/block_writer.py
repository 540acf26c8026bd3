"""Documents -> a file and its sidecar of one xxh3-64 per 16 KiB block, through one small buffer: memory does not grow with what is written.

Values of all documents in one array, with where each starts and ends, in any order -> their bytes in that order, a tail behind each.
"""

from contextlib import ExitStack
from pathlib import Path

import numba
import numpy as np
from xxhash import xxh3_64_intdigest

BLOCK_BYTES = 16 * 1024
BUFFER_BYTES = 64 * BLOCK_BYTES  # stays in a core's cache between being filled, hashed and written


class BlockWriter:
    """Writes one file of a numpy type; `finish` before its files are closed."""

    def __init__(self, stack: ExitStack, path: Path, sidecar: Path, dtype: str) -> None:
        self._file = stack.enter_context(path.open("wb"))
        self._sidecar = stack.enter_context(sidecar.open("wb"))
        self._buffer = np.empty(BUFFER_BYTES // np.dtype(dtype).itemsize, dtype)
        self._filled = 0

    def write(self, values: np.ndarray, starts: np.ndarray, ends: np.ndarray, tail: np.ndarray) -> None:
        """Appends values[starts[d] : ends[d]] and then `tail`, for each d. starts, ends: int [docs]; tail: at most one value."""
        starts, ends = _read_only(starts, np.int64), _read_only(ends, np.int64)
        values, tail = (_read_only(array, self._buffer.dtype) for array in (values, tail))
        document, position = 0, int(starts[0]) if len(starts) else 0
        while document < len(starts):
            document, position, self._filled = _fill(
                values, starts, ends, tail, document, position, self._buffer, self._filled
            )
            if self._filled == len(self._buffer):
                self._flush()

    def finish(self) -> None:
        """Writes what is left; only this block may be shorter than the others."""
        if self._filled:
            self._flush()

    def _flush(self) -> None:
        data = self._buffer[: self._filled].view(np.uint8)
        self._sidecar.write(block_digests(data).data)
        self._file.write(data.data)
        self._filled = 0


def _read_only(array: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    """A read-only view: kernels are compiled once more for writable arrays."""
    view = np.ascontiguousarray(array, dtype).view()
    view.flags.writeable = False
    return view


@numba.njit(cache=True, nogil=True)
def _fill(values, starts, ends, tail, document, position, out, filled):  # type: ignore[no-untyped-def]
    """Copies from `position` of `document` on until `out` is full -> (document, position, filled) to go on from."""
    while document < len(starts) and filled < len(out):
        count = min(ends[document] - position, len(out) - filled)
        for i in range(count):
            out[filled + i] = values[position + i]
        filled, position = filled + count, position + count
        if position < ends[document] or len(out) - filled < len(tail):
            break
        for value in tail:
            out[filled] = value
            filled += 1
        document += 1
        if document < len(starts):
            position = starts[document]
    return document, position, filled


def block_digests(data: np.ndarray) -> np.ndarray:
    """xxh3-64 of each 16 KiB block, the last one possibly shorter. data: uint8 [n]. Returns uint64 [ceil(n / 16384)]."""
    blocks = range(0, len(data), BLOCK_BYTES)
    view = data.data
    return np.fromiter((xxh3_64_intdigest(view[i : i + BLOCK_BYTES]) for i in blocks), "<u8", len(blocks))
