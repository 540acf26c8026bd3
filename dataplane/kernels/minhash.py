"""MinHash signatures and band hashes of word shingles, over Arrow buffers.

UTF-8 buffers -> uint64 band hashes [documents, bands]; documents that share a band hash are candidates for near duplicates.
A word is a maximal run of ASCII letters and digits (lower-cased) and non-ASCII bytes; a shingle is `shingle_words` words in a row, or all the words
of a shorter document. The hash family is a*x + b mod 2^32 on 32-bit shingle hashes: its Jaccard error equals the binomial limit.

Sources: Broder 1997; banding as huggingface/datatrove `pipeline/dedup/minhash.py` (14 x 8) and allenai/duplodocus (26 x 11).
"""

from dataclasses import dataclass

import numba
import numpy as np

from triplane.hashing import GOLDEN, mix

FNV_OFFSET = np.uint64(14695981039346656037)
FNV_PRIME = np.uint64(1099511628211)


@dataclass(frozen=True)
class MinhashParams:
    """`bands` x `rows` hash functions; two documents of Jaccard similarity s share a band with probability 1 - (1 - s^rows)^bands."""

    bands: int
    rows: int
    shingle_words: int
    seed: int

    def share_probability(self, similarity: float) -> float:
        return float(1.0 - (1.0 - similarity**self.rows) ** self.bands)


def permutations(params: MinhashParams) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers (odd) and addends of the hash family -> two uint32 [bands * rows], from the seed alone."""
    counter = np.arange(1, 2 * params.bands * params.rows + 1, dtype=np.uint64) * GOLDEN + np.uint64(params.seed)
    values = (mix.py_func(counter) >> np.uint64(32)).astype(np.uint32)
    half = params.bands * params.rows
    return values[:half] | np.uint32(1), values[half:]


@numba.njit(cache=True)
def _word_classes():  # type: ignore[no-untyped-def]
    """The byte that stands for each byte inside a word; 0 = between words."""
    classes = np.zeros(256, np.uint8)
    for byte in range(256):
        if 48 <= byte <= 57 or 97 <= byte <= 122 or byte >= 128:
            classes[byte] = byte
        elif 65 <= byte <= 90:
            classes[byte] = byte + 32
    return classes


@numba.njit(cache=True)
def _hash_words(data, start, end, classes, words):  # type: ignore[no-untyped-def]
    count, k = 0, start
    while k < end:
        if classes[data[k]] == 0:
            k += 1
            continue
        h = FNV_OFFSET
        while k < end and classes[data[k]] != 0:
            h = (h ^ np.uint64(classes[data[k]])) * FNV_PRIME
            k += 1
        words[count] = h
        count += 1
    return count


@numba.njit(cache=True)
def _hash_shingles(words, count, shingle_words, shingles):  # type: ignore[no-untyped-def]
    width = min(shingle_words, count)
    for i in range(count - width + 1):
        h = np.uint64(width)
        for j in range(width):
            h = h * GOLDEN + words[i + j]
        shingles[i] = np.uint32(mix(h) >> np.uint64(32))
    return count - width + 1


@numba.njit(cache=True)
def _minima(shingles, count, multipliers, addends, signature):  # type: ignore[no-untyped-def]
    for p in range(len(multipliers)):  # shingles in the inner loop, so that LLVM makes vectors of it
        a, b = multipliers[p], addends[p]
        least = np.uint32(0xFFFFFFFF)
        for i in range(count):
            value = np.uint32(a * shingles[i] + b)
            least = value if value < least else least
        signature[p] = least


@numba.njit(cache=True)
def _signatures(offsets, data, shingle_words, multipliers, addends, classes, out, num_shingles):  # type: ignore[no-untyped-def]
    words, shingles = np.empty(4096, np.uint64), np.empty(4096, np.uint32)
    for document in range(len(offsets) - 1):
        start, end = offsets[document], offsets[document + 1]
        most = (end - start) // 2 + 1
        if most > len(words):
            words, shingles = np.empty(most, np.uint64), np.empty(most, np.uint32)
        count = _hash_words(data, start, end, classes, words)
        if count > 0:
            num_shingles[document] = _hash_shingles(words, count, shingle_words, shingles)
            _minima(shingles, num_shingles[document], multipliers, addends, out[document])


def signatures(offsets: np.ndarray, data: np.ndarray, params: MinhashParams) -> tuple[np.ndarray, np.ndarray]:
    """MinHash signatures -> (uint32 [documents, bands * rows], number of shingles int64 [documents]).

    offsets int64 [documents + 1], data uint8. A document without words has no shingle; its signature means nothing.
    """
    multipliers, addends = permutations(params)
    out = np.full((len(offsets) - 1, params.bands * params.rows), 0xFFFFFFFF, np.uint32)
    num_shingles = np.zeros(len(offsets) - 1, np.int64)
    _signatures(offsets, data, params.shingle_words, multipliers, addends, _word_classes(), out, num_shingles)
    return out, num_shingles


@numba.njit(cache=True)
def _bands(signature, bands, rows, out):  # type: ignore[no-untyped-def]
    for document in range(len(signature)):
        for band in range(bands):
            h = np.uint64(band + 1)
            for row in range(rows):
                h = mix(h * GOLDEN + np.uint64(signature[document, band * rows + row]))
            out[document, band] = h


def band_hashes(signature: np.ndarray, params: MinhashParams) -> np.ndarray:
    """uint32 signatures [documents, bands * rows] -> uint64 [documents, bands]; the band's number is part of its hash."""
    out = np.empty((len(signature), params.bands), np.uint64)
    _bands(signature, params.bands, params.rows, out)
    return out
