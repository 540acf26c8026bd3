"""The repeated n-gram rule: token ids -> how many times in a row the most repeated n-gram of 1 to 13 tokens occurs.

OLMo 2 drops a document, and masks a training instance, in which one n-gram occurs 32 or more times in succession. The
tagger and the loader call this one implementation.

Source: `find_periodic_sequences` (OLMo, OLMo-core, dolma), arXiv 2501.00656 section 3.1. Equal to it wherever it reports
anything (three times or more): a stretch of period p is a run of L positions with ids[i] == ids[i + p], and holds
(L + p) // p n-grams.
"""

import numba
import numpy as np

MAX_PERIOD = 13
MAX_TIMES = 32


def longest_repeats(
    ids: np.ndarray, offsets: np.ndarray, max_period: int = MAX_PERIOD
) -> tuple[np.ndarray, np.ndarray]:
    """The longest repetition of each document, exactly.

    ids: uint32 [n]. offsets: int64 [docs + 1]. Returns times, int64 [docs]: 0 for an empty document, 1 where nothing
    repeats; and period, int64 [docs]: the shortest n-gram that repeats that often, 0 where nothing repeats.
    """
    times = np.empty(len(offsets) - 1, np.int64)
    periods = np.empty(len(offsets) - 1, np.int64)
    _longest_repeats(
        np.ascontiguousarray(ids, np.uint32), np.ascontiguousarray(offsets, np.int64), max_period, times, periods
    )
    return times, periods


def instance_is_repetitive(tokens_NT: np.ndarray, max_times: int = MAX_TIMES) -> np.ndarray:
    """Which instances the loader masks: bool [N], True where an n-gram of 1 to 13 tokens occurs max_times in a row.

    tokens_NT: uint32 [N, T]. All labels of such an instance are ignored; it stays in the batch.
    """
    flags = np.empty(len(tokens_NT), np.bool_)
    _flag_instances(np.ascontiguousarray(tokens_NT, np.uint32), max_times, flags)
    return flags


@numba.njit(cache=True, nogil=True)
def _more_than(ids: np.ndarray, start: int, end: int, period: int, times: int) -> int:
    """The n-grams of the longest repetition with this period if there are more than `times`, else `times`.

    Only a run of at least `times * period` equal pairs can win, so look at the pair where such a run would end and walk
    back to the last mismatch: most probes fail at once and skip the whole stretch (as Boyer and Moore do in text).
    """
    pairs = end - period
    mismatch = start - 1
    probe = mismatch + times * period
    while probe < pairs:
        back = probe
        while back > mismatch and ids[back] == ids[back + period]:
            back -= 1
        if back > mismatch:
            mismatch = back
        else:
            stop = probe + 1
            while stop < pairs and ids[stop] == ids[stop + period]:
                stop += 1
            times = (stop - mismatch - 1 + period) // period
            mismatch = stop
        probe = mismatch + times * period
    return times


@numba.njit(cache=True, nogil=True)
def _longest_repeats(
    ids: np.ndarray, offsets: np.ndarray, max_period: int, times: np.ndarray, periods: np.ndarray
) -> None:
    for document in range(len(offsets) - 1):
        start, end = offsets[document], offsets[document + 1]
        best = 1 if end > start else 0
        best_period = 0
        if best:
            for period in range(1, max_period + 1):
                found = _more_than(ids, start, end, period, best)
                if found > best:
                    best, best_period = found, period
        times[document] = best
        periods[document] = best_period


@numba.njit(cache=True, nogil=True)
def _flag_instances(tokens_NT: np.ndarray, max_times: int, flags: np.ndarray) -> None:
    for row in range(len(tokens_NT)):
        ids = tokens_NT[row]
        flags[row] = False
        for period in range(1, MAX_PERIOD + 1):
            if _more_than(ids, 0, len(ids), period, max_times - 1) >= max_times:
                flags[row] = True
                break
