"""MinHash signatures and band hashes of word shingles, over Arrow buffers.

UTF-8 buffers -> uint64 band hashes [documents, bands]; documents that share a band hash are candidates for near duplicates.
A word is a maximal run of ASCII letters and digits (lower-cased) and non-ASCII bytes; a shingle is `shingle_words` words in a row, or all the words
of a shorter document. The hash family is a*x + b mod 2^32 on 32-bit shingle hashes: its Jaccard error equals the binomial limit.

With `zero_numbers` a word of digits alone counts as `0`, as in datatrove: documents that differ in numbers only are then equal. That finds a little
more (`bench/minhash.py`), and takes all sums of one length for copies of each other.

Sources: Broder 1997; banding as huggingface/datatrove `pipeline/dedup/minhash.py` (14 x 8) and allenai/duplodocus (26 x 11).
"""

from dataclasses import dataclass

import numba
import numpy as np

from dataplane.kernels import masks
from dataplane.kernels.borrowing import borrowing
from dataplane.kernels.words import up_to_8, write_bits
from triplane.hashing import GOLDEN, mix

FNV_OFFSET = np.uint64(14695981039346656037)
FNV_PRIME = np.uint64(1099511628211)
EACH_BYTE = np.uint64(0x0101010101010101)
ZERO_HASH = np.uint64((int(FNV_OFFSET) ^ ord("0")) * int(FNV_PRIME) % 2**64)
CHUNK_BYTES = (
    256 << 10
)  # of a document at a time, so that its words never take more memory than this many bytes can have
LOW_BITS, HIGH_BITS = np.uint64(0x7F) * EACH_BYTE, np.uint64(0x80) * EACH_BYTE


@dataclass(frozen=True)
class MinhashParams:
    """`bands` x `rows` hash functions; two documents of Jaccard similarity s share a band with probability 1 - (1 - s^rows)^bands."""

    bands: int
    rows: int
    shingle_words: int
    seed: int
    zero_numbers: bool = False

    def share_probability(self, similarity: float) -> float:
        return float(1.0 - (1.0 - similarity**self.rows) ** self.bands)


def permutations(params: MinhashParams) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers (odd) and addends of the hash family -> two uint32 [bands * rows], from the seed alone."""
    counter = np.arange(1, 2 * params.bands * params.rows + 1, dtype=np.uint64) * GOLDEN + np.uint64(params.seed)
    values = (mix.py_func(counter) >> np.uint64(32)).astype(np.uint32)
    half = params.bands * params.rows
    return values[:half] | np.uint32(1), values[half:]


@borrowing
def _find_words(data, start, end, starts, ends):  # type: ignore[no-untyped-def]
    """Writes where words start and end -> how many."""
    before, count, num_ends = np.uint64(0), 0, 0
    for i in range(start, end, masks.BLOCK):
        mask = masks.letters_and_digits(data, i) & masks.below(end - i)
        shifted = mask << np.uint64(1) | before
        before = mask >> np.uint64(63)
        count = write_bits(mask & ~shifted, i, starts, count)
        num_ends = write_bits(~mask & shifted, i, ends, num_ends)
    if num_ends < count:
        ends[num_ends] = end
    return count


@numba.njit(cache=True, inline="always")
def _lower(bytes8):  # type: ignore[no-untyped-def]
    """Eight bytes with A to Z made lower case."""
    low7 = bytes8 & LOW_BITS
    above = (low7 + (np.uint64(0x80 - 0x41) * EACH_BYTE)) ^ (low7 + (np.uint64(0x80 - 0x5B) * EACH_BYTE))
    return bytes8 | (above & ~bytes8 & HIGH_BITS) >> np.uint64(2)


@borrowing
def _hash_words(data, starts, ends, count, packed, lengths, words):  # type: ignore[no-untyped-def]
    """FNV-1a of each word. Its first eight bytes with the words in the inner loop, so that LLVM makes vectors of it; then the rest."""
    for w in range(count):
        packed[w] = up_to_8(data, starts[w], min(ends[w], starts[w] + 8))
        lengths[w] = np.uint64(ends[w] - starts[w])
    for w in range(count):
        packed[w] = _lower(packed[w])
        words[w] = FNV_OFFSET
    for k in range(8):
        for w in range(count):
            byte = packed[w] >> np.uint64(8 * k) & np.uint64(0xFF)
            longer = (words[w] ^ byte) * FNV_PRIME
            words[w] = longer if lengths[w] > np.uint64(k) else words[w]
    for w in range(count):
        if lengths[w] > 8:
            h = words[w]
            for i in range(starts[w] + 8, ends[w]):
                byte = data[i]
                lower = byte | np.uint8(0x20) if np.uint8(byte - np.uint8(0x41)) < 26 else byte
                h = (h ^ np.uint64(lower)) * FNV_PRIME
            words[w] = h


@borrowing
def _zero_numbers(data, starts, ends, count, packed, words):  # type: ignore[no-untyped-def]
    """Gives every word of ASCII digits alone the hash of `0`. `packed`: the first eight bytes of each."""
    for w in range(count):
        length = ends[w] - starts[w]
        value = packed[w] ^ np.uint64(0x30) * EACH_BYTE
        above_9 = ((value & LOW_BITS) + np.uint64(0x76) * EACH_BYTE | value) & HIGH_BITS
        if above_9 & masks.below(8 * min(length, 8)) == 0:
            i = starts[w] + 8
            while i < ends[w] and np.uint8(data[i] - np.uint8(0x30)) < 10:
                i += 1
            if i >= ends[w]:
                words[w] = ZERO_HASH


@borrowing
def _hash_shingles(words, count, shingle_words, sums, shingles):  # type: ignore[no-untyped-def]
    width = min(shingle_words, count)
    num_shingles = count - width + 1
    sums[:num_shingles] = np.uint64(width)
    for j in range(width):
        for i in range(num_shingles):
            sums[i] = sums[i] * GOLDEN + words[i + j]
    for i in range(num_shingles):
        shingles[i] = np.uint32(mix(sums[i]) >> np.uint64(32))
    return num_shingles


@borrowing
def _minima(shingles, count, multipliers, addends, signature):  # type: ignore[no-untyped-def]
    for p in range(len(multipliers)):  # shingles in the inner loop, so that LLVM makes vectors of it
        a, b = multipliers[p], addends[p]
        least = signature[p]
        for i in range(count):
            value = np.uint32(a * shingles[i] + b)
            least = value if value < least else least
        signature[p] = least


@numba.njit(cache=True, inline="always")
def _is_of_word(byte):  # type: ignore[no-untyped-def]
    return (
        byte >= 0x80 or np.uint8((byte | np.uint8(0x20)) - np.uint8(0x61)) < 26 or np.uint8(byte - np.uint8(0x30)) < 10
    )


@borrowing
def _chunk_end(data, start, end):  # type: ignore[no-untyped-def]
    """`CHUNK_BYTES` behind `start`, or behind the word that reaches across."""
    at = min(start + CHUNK_BYTES, end)
    while at < end and _is_of_word(data[at - 1]) and _is_of_word(data[at]):
        at += 1
    return at


@numba.njit(cache=True)
def _signatures(offsets, data, shingle_words, zero_numbers, multipliers, addends, out, num_shingles):  # type: ignore[no-untyped-def]
    room = CHUNK_BYTES // 2 + shingle_words + 8
    starts, ends, shingles = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.uint32)
    packed, lengths, words = np.empty(room, np.uint64), np.empty(room, np.uint64), np.empty(room, np.uint64)
    for document in range(len(offsets) - 1):
        start, end, carried = offsets[document], offsets[document + 1], 0
        while start < end:
            stop = _chunk_end(data, start, end)
            count = _find_words(data, start, stop, starts, ends)
            _hash_words(data, starts, ends, count, packed, lengths, words[carried:])
            if zero_numbers:
                _zero_numbers(data, starts, ends, count, packed, words[carried:])
            start, carried = stop, carried + count
            if carried >= shingle_words or (start == end and carried > 0 and num_shingles[document] == 0):
                made = _hash_shingles(words, carried, shingle_words, packed, shingles)
                _minima(shingles, made, multipliers, addends, out[document])
                num_shingles[document] += made
                for i in range(shingle_words - 1):  # the last words begin the shingles that end in the next chunk
                    words[i] = words[carried - shingle_words + 1 + i]
                carried = shingle_words - 1


def signatures(offsets: np.ndarray, data: np.ndarray, params: MinhashParams) -> tuple[np.ndarray, np.ndarray]:
    """MinHash signatures -> (uint32 [documents, bands * rows], number of shingles int64 [documents]).

    offsets int64 [documents + 1], data uint8. A document without words has no shingle; its signature means nothing.
    """
    multipliers, addends = permutations(params)
    out = np.full((len(offsets) - 1, params.bands * params.rows), 0xFFFFFFFF, np.uint32)
    num_shingles = np.zeros(len(offsets) - 1, np.int64)
    scheme = (params.shingle_words, params.zero_numbers, multipliers, addends)
    _signatures(offsets, masks.at_least_64(data), *scheme, out, num_shingles)
    return out, num_shingles


@borrowing
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
