"""fastText's words and their hashes, over Arrow buffers.

UTF-8 buffers -> where each word of a document's line starts and ends, and its FNV-1a hash, bytes sign-extended as the library has them. Words
are separated by fastText's white space; if lines are joined, by what `str.splitlines` cuts at too.

Source: facebookresearch/fastText `src/dictionary.cc`.
"""

import numba
import numpy as np

from dataplane.kernels import masks
from dataplane.kernels.words import up_to_8, write_bits

FNV_OFFSET, FNV_PRIME = np.uint64(2166136261), np.uint64(16777619)
LOW_32 = np.uint64(0xFFFFFFFF)


@numba.njit(cache=True)
def _wide_line_ends(data, i, end, leads, mask):  # type: ignore[no-untyped-def]
    """Adds U+0085, U+2028 and U+2029 of the block at i -> (mask, bits of it that reach into the next block)."""
    beyond = np.uint64(0)
    while leads != 0:
        bit = masks.lowest(leads)
        k, length = i + bit, 0
        leads &= leads - np.uint64(1)
        if data[k] == 0xC2 and k + 1 < end and data[k + 1] == 0x85:
            length = 2
        if data[k] == 0xE2 and k + 2 < end and data[k + 1] == 0x80 and (data[k + 2] == 0xA8 or data[k + 2] == 0xA9):
            length = 3
        mask |= masks.below(length) << np.uint64(bit)
        beyond |= masks.below(max(0, bit + length - masks.BLOCK))
    return mask, beyond


@numba.njit(cache=True)
def _find_words(data, start, end, joins_lines, starts, ends):  # type: ignore[no-untyped-def]
    """Writes where the words are -> how many."""
    before, beyond, count, num_ends = np.uint64(1), np.uint64(0), 0, 0
    for i in range(start, end, masks.BLOCK):
        inside = masks.below(end - i)
        mask = masks.fasttext_spaces(data, i) | beyond | ~inside
        beyond = np.uint64(0)
        if joins_lines:
            mask |= masks.ascii_separators(data, i)
            leads = masks.wide_space_leads(data, i) & inside
            if leads != 0:
                mask, beyond = _wide_line_ends(data, i, end, leads, mask)
        shifted = mask << np.uint64(1) | before
        before = mask >> np.uint64(63)
        count = write_bits(~mask & shifted, i, starts, count)
        num_ends = write_bits(mask & ~shifted, i, ends, num_ends)
    if num_ends < count:
        ends[num_ends] = end
    return count


@numba.njit(cache=True, inline="always")
def _hashed(h, byte):  # type: ignore[no-untyped-def]
    """One step of FNV-1a with a signed byte; only the low 32 bits mean anything."""
    return (h ^ (byte ^ np.uint64(0x80)) - np.uint64(0x80)) * FNV_PRIME


@numba.njit(cache=True)
def _hash_words(data, starts, ends, count, packed, lengths, hashes):  # type: ignore[no-untyped-def]
    """The first eight bytes of all words with the words in the inner loop, so that LLVM makes vectors of it; then the rest."""
    for w in range(count):
        packed[w] = up_to_8(data, starts[w], min(ends[w], starts[w] + 8))
        lengths[w] = np.uint64(ends[w] - starts[w])
        hashes[w] = FNV_OFFSET
    for k in range(8):
        for w in range(count):
            longer = _hashed(hashes[w], packed[w] >> np.uint64(8 * k) & np.uint64(0xFF))
            hashes[w] = longer if lengths[w] > np.uint64(k) else hashes[w]
    for w in range(count):
        h = hashes[w]
        for i in range(starts[w] + 8, ends[w]):
            h = _hashed(h, np.uint64(data[i]))
        hashes[w] = h & LOW_32


@numba.njit(cache=True)
def split_words(data, start, end, joins_lines, edges, values):  # type: ignore[no-untyped-def]
    """Writes the words of the line [start, end): edges int64 [2, room] where they start and end, values uint64 [3, room] whose row 2 is their
    hashes -> number of words. `data` has 64 bytes or more; room is for half as many words as bytes, and 8."""
    count = _find_words(data, start, end, joins_lines, edges[0], edges[1])
    _hash_words(data, edges[0], edges[1], count, values[0], values[1], values[2])
    return count
