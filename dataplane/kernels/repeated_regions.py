"""Where one n-gram is repeated 32 times or more: the stretches whose labels a trainer masks.

Token ids -> regions of each document, [start, end) in tokens; UTF-8 buffers -> which documents can have any, without their tokens. An
n-gram of 1 to 13 tokens that is repeated makes bytes that are repeated as often, whatever the tokenizer, as long as its tokens spell the
text's bytes: so a text without such bytes needs no tokens. Both walk as Boyer and Moore do: of each stretch that a repetition must cover,
one pair is looked at.

Source: `triplane/repetition.py`, whose rule this is: a stretch of period p with L equal pairs is L + p tokens, and holds (L + p) // p
n-grams.
"""

import numba
import numpy as np

from triplane.repetition import MAX_PERIOD, MAX_TIMES


@numba.njit(cache=True, nogil=True)
def _next_run(values, mismatch, end, period, times):  # type: ignore[no-untyped-def]
    """The first run behind `mismatch` of equal pairs (i, i + period) that makes `times` repeats -> (the mismatch before it, its end).

    (-1, -1) if there is none."""
    pairs = end - period
    wanted = (times - 1) * period
    probe = mismatch + wanted
    while probe < pairs:
        back = probe
        while back > mismatch and values[back] == values[back + period]:
            back -= 1
        if back > mismatch:
            mismatch = back
        else:
            stop = probe + 1
            while stop < pairs and values[stop] == values[stop + period]:
                stop += 1
            return mismatch, stop
        probe = mismatch + wanted
    return -1, -1


@numba.njit(cache=True, nogil=True)
def _find_in_document(ids, start, end, max_period, times, regions):  # type: ignore[no-untyped-def]
    """Appends the regions of every period, unsorted, relative to `start`."""
    for period in range(1, max_period + 1):
        mismatch = start - 1
        while True:
            before, stop = _next_run(ids, mismatch, end, period, times)
            if stop < 0:
                break
            regions.append((before + 1 - start, stop + period - start))
            mismatch = stop


@numba.njit(cache=True, nogil=True)
def _merged(regions):  # type: ignore[no-untyped-def]
    """Sorted, those that overlap or touch joined; a flat list of starts and ends."""
    flat = [np.int64(0) for _ in range(0)]
    for start, end in sorted(regions):
        if len(flat) > 0 and start <= flat[-1]:
            flat[-1] = max(flat[-1], end)
        else:
            flat.append(start)
            flat.append(end)
    return flat


@numba.njit(cache=True, nogil=True)
def _find(ids, offsets, max_period, times, bounds):  # type: ignore[no-untyped-def]
    everything = [np.int64(0) for _ in range(0)]
    for document in range(len(offsets) - 1):
        regions = [(np.int64(0), np.int64(0)) for _ in range(0)]
        _find_in_document(ids, offsets[document], offsets[document + 1], max_period, times, regions)
        everything.extend(_merged(regions))
        bounds[document + 1] = len(everything)
    return np.array(everything, np.int64)


def find(
    ids: np.ndarray, offsets: np.ndarray, max_period: int = MAX_PERIOD, times: int = MAX_TIMES
) -> tuple[np.ndarray, np.ndarray]:
    """The regions of each document -> (bounds int64 [documents + 1], flat int64: start, end, start, end, ..., in tokens of the document).

    ids uint32 [n], offsets int64 [documents + 1]. Regions are ascending and apart from each other."""
    bounds = np.zeros(len(offsets), np.int64)
    ids, offsets = np.ascontiguousarray(ids, np.uint32), np.ascontiguousarray(offsets, np.int64)
    return bounds, _find(ids, offsets, max_period, times, bounds)


@numba.njit(cache=True, nogil=True)
def _can_repeat(offsets, data, times, out):  # type: ignore[no-untyped-def]
    for document in range(len(offsets) - 1):
        start, end = offsets[document], offsets[document + 1]
        out[document] = False
        for period in range(1, (end - start) // times + 1):
            if _next_run(data, start - 1, end, period, times)[1] >= 0:
                out[document] = True
                break


def can_repeat(offsets: np.ndarray, data: np.ndarray, times: int = MAX_TIMES) -> np.ndarray:
    """Documents with a stretch of bytes that is repeated `times` times -> bool [documents]; the others have no region. data uint8."""
    out = np.empty(len(offsets) - 1, np.bool_)
    _can_repeat(np.ascontiguousarray(offsets, np.int64), data, times, out)
    return out
