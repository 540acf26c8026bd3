"""The n-grams of evaluation texts as sorted arrays, and the look-up of a document's n-grams in them.

Words -> n-gram hashes; a hash -> the number of the n-gram, and from there the units (questions, or instances) that have it. Nearly every n-gram of a
document is in no evaluation text: a blocked Bloom filter (two bits of one 64-bit word) says so without a second cache miss.
Sources: Putze, Sanders and Singler 2007 (blocked Bloom filters); n-gram index and idf after allenai/decon `doc/simple-details.md`.
"""

from typing import NamedTuple

import numba
import numpy as np

from triplane.hashing import GOLDEN, mix

CHUNK = 2048
MANY = np.uint32(1 << 31)
NONE = np.uint32(0xFFFFFFFF)
KEYS_PER_WORD = 8
MIN_DISTINCT_WORDS = 3  # an n-gram of fewer ("0 0 0 0 0") says nothing and is in no table


class Table(NamedTuple):
    """One (normalisation, n). hashes: uint64 [grams], ascending; buckets: uint32 [2^k + 1], the first gram by the top k bits; bloom: uint64.
    direct: uint32 [grams], the unit of a gram that only one has; else MANY and where in post (uint32) stands how many have it, before them.
    weight: float32 [grams], idf (where a unit has a gram once). unit_first: uint32 [units + 1], unit_grams: uint32, the grams of each unit;
    unit_words: uint32 [units], how many words it has; unit_weight: float64 [units], the sum over its distinct grams."""

    hashes: np.ndarray
    buckets: np.ndarray
    bloom: np.ndarray
    direct: np.ndarray
    post: np.ndarray
    weight: np.ndarray
    unit_first: np.ndarray
    unit_grams: np.ndarray
    unit_words: np.ndarray
    unit_weight: np.ndarray


@numba.njit(cache=True)
def ngram_hashes(words, start, count, n, out):  # type: ignore[no-untyped-def]
    """Hashes of the n-grams that begin at words[start : start + count]."""
    for i in range(count):
        out[i] = np.uint64(n)
    for j in range(n):
        for i in range(count):
            out[i] = out[i] * GOLDEN + words[start + i + j]
    for i in range(count):
        out[i] = mix(out[i])


@numba.njit(cache=True, inline="always")
def _bits(h):  # type: ignore[no-untyped-def]
    one = np.uint64(1)
    return one << (h & np.uint64(63)) | one << (h >> np.uint64(6) & np.uint64(63))


@numba.njit(cache=True)
def _fill_bloom(hashes, bloom):  # type: ignore[no-untyped-def]
    for h in hashes:
        bloom[h >> np.uint64(12) & np.uint64(len(bloom) - 1)] |= _bits(h)


@numba.njit(cache=True)
def find(table, h):  # type: ignore[no-untyped-def]
    """The number of the gram with this hash; -1 if there is none."""
    bits = _bits(h)
    if table.bloom[h >> np.uint64(12) & np.uint64(len(table.bloom) - 1)] & bits != bits:
        return -1
    num_buckets = len(table.buckets) - 1
    bucket = np.int64((h >> np.uint64(32)) * np.uint64(num_buckets) >> np.uint64(32))
    for i in range(table.buckets[bucket], table.buckets[bucket + 1]):
        if table.hashes[i] == h:
            return np.int64(i)
    return -1


@numba.njit(cache=True)
def units_of(table, gram):  # type: ignore[no-untyped-def]
    """The units that have a gram, ascending -> (array, where they start and end in it)."""
    value = table.direct[gram]
    if value < MANY:
        return table.direct, np.int64(gram), np.int64(gram) + 1
    at = np.int64(value ^ MANY)
    return table.post, at + 1, at + 1 + np.int64(table.post[at])


@numba.njit(cache=True)
def hits(table, n, words, start, end, buffer, positions, grams):  # type: ignore[no-untyped-def]
    """Writes where the words [start, end) of a document have an n-gram of the table, and which -> how many. Hash all first, then probe."""
    count = 0
    for at in range(start, end - n + 1, CHUNK):
        size = min(CHUNK, end - n + 1 - at)
        ngram_hashes(words, at, size, n, buffer)
        for i in range(size):
            gram = find(table, buffer[i])
            if gram >= 0:
                positions[count], grams[count] = at + i, gram
                count += 1
    return count


@numba.njit(cache=True)
def _distinct(words, start, n):  # type: ignore[no-untyped-def]
    found = 0
    for i in range(start, start + n):
        is_new = True
        for j in range(start, i):
            is_new = is_new and words[j] != words[i]
        found += is_new
    return found


@numba.njit(cache=True)
def unit_ngrams(words, first, n, least_distinct):  # type: ignore[no-untyped-def]
    """The n-grams of each unit by place -> (hash uint64, unit uint32, whether it is to be indexed bool)."""
    total = 0
    for unit in range(len(first) - 1):
        total += max(0, first[unit + 1] - first[unit] - n + 1)
    hashes, units, is_used, at = np.empty(total, np.uint64), np.empty(total, np.uint32), np.empty(total, np.bool_), 0
    for unit in range(len(first) - 1):
        count = max(0, first[unit + 1] - first[unit] - n + 1)
        ngram_hashes(words, first[unit], count, n, hashes[at:])
        for i in range(count):
            units[at + i] = unit
            is_used[at + i] = _distinct(words, first[unit] + i, n) >= least_distinct
        at += count
    return hashes, units, is_used


def _postings(post: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Units by gram, and how many each gram has -> (direct, post)."""
    first = np.concatenate([[0], np.cumsum(counts)])
    is_many = counts > 1
    at = np.cumsum(np.where(is_many, counts + 1, 0)) - np.where(is_many, counts + 1, 0)
    direct = np.where(is_many, at | int(MANY), post[np.minimum(first[:-1], max(0, len(post) - 1))] if len(post) else 0)
    out = np.empty(int(np.sum(counts[is_many] + 1)), np.uint32)
    out[at[is_many]] = counts[is_many]
    of_many = np.repeat(is_many, counts)
    out[(np.repeat(at - first[:-1], counts) + np.arange(len(post)) + 1)[of_many]] = post[of_many]
    return direct.astype(np.uint32), out


def make(hashes: np.ndarray, units: np.ndarray, is_used: np.ndarray, unit_words: np.ndarray, by_place: bool) -> Table:
    """The table of n-grams: hash uint64 [n], unit uint32 [n], whether it counts bool [n], in the order of units and of places in them; unit_words
    uint32 [units]. `unit_grams` has every place (NONE: does not count), or each gram of a unit once, ascending."""
    num_units = len(unit_words)
    distinct, gram = np.unique(hashes[is_used], return_inverse=True)
    pairs = np.unique(gram.astype(np.uint64) << np.uint64(32) | units[is_used].astype(np.uint64))
    post_gram, post = (pairs >> np.uint64(32)).astype(np.int64), pairs.astype(np.uint32)
    counts = np.bincount(post_gram, minlength=len(distinct))
    weight = np.log((num_units + 1) / np.maximum(counts, 1)).astype(np.float32)
    order = np.lexsort((post_gram, post))
    held, grams = post[order], post_gram[order].astype(np.uint32)
    unit_weight = np.bincount(held, weight[grams].astype(np.float64), num_units)
    if by_place:
        held, grams = units, np.full(len(hashes), NONE)
        grams[is_used] = gram
    direct, many = _postings(post, counts)
    num_buckets = 1 << max(1, len(distinct).bit_length() - 2)  # two to four grams each
    bucket = ((distinct >> np.uint64(32)) * np.uint64(num_buckets) >> np.uint64(32)).astype(np.int64)
    bloom = np.zeros(1 << (len(distinct) // KEYS_PER_WORD).bit_length(), np.uint64)
    _fill_bloom(distinct, bloom)
    return Table(
        hashes=distinct,
        buckets=np.searchsorted(bucket, np.arange(num_buckets + 1)).astype(np.uint32),
        bloom=bloom,
        direct=direct,
        post=many,
        weight=weight[:0] if by_place else weight,
        unit_first=np.searchsorted(held, np.arange(num_units + 1)).astype(np.uint32),
        unit_grams=grams.astype(np.uint32),
        unit_words=unit_words.astype(np.uint32),
        unit_weight=unit_weight.astype(np.float64),
    )
