"""The Gopher quality statistics, over Arrow buffers.

UTF-8 buffers and their words -> counts of each document, int64 [documents, len(COUNTS)]. A word is a whitespace word, its length is in characters.

Sources: Rae et al. 2021 (arXiv 2112.11446, table A1); huggingface/datatrove `filters/gopher_quality_filter.py`, whose counts these are exactly, given
the same words.
"""

import numba
import numpy as np

from dataplane.kernels import characters, masks
from dataplane.kernels.borrowing import borrowing
from dataplane.kernels.code_points import decode, has_at
from dataplane.kernels.words import Words, up_to_8, word_characters

COUNTS = (
    "words",
    "plain_words",  # those with a character that is not punctuation
    "plain_word_characters",
    "alphabetic_words",
    "hashes",
    "ellipses",
    "bullet_lines",
    "ellipsis_lines",
    "stop_words",  # distinct ones
)
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
BULLET = np.frombuffer("•".encode(), np.uint8)
ELLIPSIS = np.frombuffer("…".encode(), np.uint8)
DOTS = np.frombuffer(b"...", np.uint8)


PLAIN = characters.SYMBOL  # the bit of a class says "is punctuation", that of a word "has something else"
BOTH = characters.ALPHABETIC | PLAIN
STOP_SLOTS = 16


def _stop_table() -> tuple[np.ndarray, np.uint64]:
    """A table without collisions, uint64 [STOP_SLOTS, 3] of (word as an integer, length, bit), and the multiplier that hashes into it."""
    packed = [int.from_bytes(word.encode(), "little") for word in STOP_WORDS]
    multiplier = 0x9E3779B97F4A7C15
    while len({multiplier * word % 2**64 >> 60 for word in packed}) < len(packed):
        multiplier = multiplier * 6364136223846793005 % 2**64
    table = np.zeros((STOP_SLOTS, 3), np.uint64)
    for number, word in enumerate(packed):
        table[multiplier * word % 2**64 >> 60] = word, len(STOP_WORDS[number]), 1 << number
    return table, np.uint64(multiplier)


STOP_TABLE, STOP_MULTIPLIER = _stop_table()


@borrowing
def _word_classes(data, start, end, classes):  # type: ignore[no-untyped-def]
    """The bits ALPHABETIC (it has a letter) and PLAIN (it has a character that is not punctuation); most first characters settle both."""
    found = np.uint8(0)
    i = start
    while i < end and found != BOTH:
        code, length = decode(data, i)
        found |= classes[code] ^ np.uint8(characters.SYMBOL)
        i += length
    return np.int64(found)


@borrowing
def _count_dots(data, i, end, run):  # type: ignore[no-untyped-def]
    """`...` without overlaps between i and end, `run` dots before i not yet counted -> (how many, dots left over at the end)."""
    found = 0
    for k in range(i, end):
        run = run + 1 if data[k] == 0x2E else 0
        if run == 3:
            found, run = found + 1, 0
    return found, run


@borrowing
def _count_marks(data, start, end):  # type: ignore[no-untyped-def]
    """`#`, `...` (without overlaps) or `…`, and characters, in a document -> (hashes, ellipses, characters)."""
    hashes, ellipses, run, continued = 0, 0, np.int64(0), 0
    for i in range(start, end, masks.BLOCK):
        inside = masks.below(end - i)
        hashes += masks.ones(masks.hashes(data, i) & inside)
        continued += masks.ones(masks.continuations(data, i) & inside)
        dots = masks.dots(data, i) & inside
        if dots & (dots << np.uint64(1) | np.uint64(run > 0)) == 0:  # no two side by side
            run = np.int64(dots >> np.uint64(63))
        else:
            found, run = _count_dots(data, i, min(end, i + masks.BLOCK), run)
            ellipses += found
        leads = masks.three_byte_marks(data, i) & inside
        while leads != 0:
            ellipses += has_at(data, i + masks.lowest(leads), start, end, ELLIPSIS)
            leads &= leads - np.uint64(1)
    return hashes, ellipses, end - start - continued


@numba.njit(cache=True, inline="always")
def _stop_word_bit(data, start, end, stop_table, multiplier):  # type: ignore[no-untyped-def]
    packed = up_to_8(data, start, min(end, start + 8))
    slot = stop_table[packed * multiplier >> np.uint64(60)]
    is_stop_word = (slot[0] == packed) & (slot[1] == np.uint64(end - start))
    return slot[2] * np.uint64(is_stop_word)


@borrowing
def _count_words(data, words, first, last, is_ascii, classes, stop_table, multiplier, out):  # type: ignore[no-untyped-def]
    """The statistics of the words first..last of one document."""
    plain, plain_characters, alphabetic, stops = 0, 0, 0, np.uint64(0)
    for w in range(first, last):
        start, end = words.start[w], words.end[w]
        is_letter = np.uint8((data[start] | np.uint8(0x20)) - np.uint8(0x61)) < 26
        found = BOTH if is_letter else _word_classes(data, start, end, classes)
        alphabetic += found & characters.ALPHABETIC != 0
        if found & PLAIN:
            plain += 1
            plain_characters += end - start if is_ascii else word_characters(data, start, end)
        if words.begins_line[w]:
            out[6] += data[start] == 0x2D or has_at(data, start, start, end, BULLET)
            if w > first:
                out[7] += _ends_with_ellipsis(data, words.start[w - 1], words.end[w - 1])
        stops |= _stop_word_bit(data, start, end, stop_table, multiplier)
    if last > first:
        out[7] += _ends_with_ellipsis(data, words.start[last - 1], words.end[last - 1])
    out[1], out[2], out[3] = plain, plain_characters, alphabetic
    out[8] = masks.ones(stops)


@borrowing
def _ends_with_ellipsis(data, start, end):  # type: ignore[no-untyped-def]
    return has_at(data, end - 3, start, end, DOTS) or has_at(data, end - 3, start, end, ELLIPSIS)


@borrowing
def _count_documents(offsets, data, words, classes, stop_table, multiplier, out):  # type: ignore[no-untyped-def]
    for document in range(len(offsets) - 1):
        first, last = words.first[document], words.first[document + 1]
        start, end = offsets[document], offsets[document + 1]
        out[document, 0] = last - first
        out[document, 4], out[document, 5], length = _count_marks(data, start, end)
        is_ascii = length == end - start
        _count_words(data, words, first, last, is_ascii, classes, stop_table, multiplier, out[document])


def count(offsets: np.ndarray, data: np.ndarray, words: Words) -> np.ndarray:
    """The counts of each document -> int64 [documents, len(COUNTS)]. offsets int64 [documents + 1], data uint8."""
    out = np.zeros((len(offsets) - 1, len(COUNTS)), np.int64)
    _count_documents(offsets, masks.at_least_64(data), words, characters.table(), STOP_TABLE, STOP_MULTIPLIER, out)
    return out
