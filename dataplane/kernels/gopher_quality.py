"""The Gopher quality statistics, over Arrow buffers.

UTF-8 buffers and their words -> counts of each document, int64 [documents, len(COUNTS)]. A word is a whitespace word, its length is in characters.

Sources: Rae et al. 2021 (arXiv 2112.11446, table A1); huggingface/datatrove `filters/gopher_quality_filter.py`, whose counts these are exactly, given
the same words.
"""

import numba
import numpy as np

from dataplane.kernels import characters
from dataplane.kernels.words import Words

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


def _packed(word: str) -> int:
    return int.from_bytes(word.encode(), "big")


PACKED_STOP_WORDS = np.array([_packed(word) for word in STOP_WORDS], np.int64)
LONGEST_STOP_WORD = max(len(word) for word in STOP_WORDS)


@numba.njit(cache=True)
def _code_point(data, i):  # type: ignore[no-untyped-def]
    """The character at i -> (code point, bytes)."""
    lead = np.int64(data[i])
    if lead < 0x80:
        return lead, 1
    if lead < 0xE0:
        return (lead & 0x1F) << 6 | np.int64(data[i + 1] & 0x3F), 2
    if lead < 0xF0:
        return (lead & 0x0F) << 12 | np.int64(data[i + 1] & 0x3F) << 6 | np.int64(data[i + 2] & 0x3F), 3
    high = (lead & 0x07) << 18 | np.int64(data[i + 1] & 0x3F) << 12
    return high | np.int64(data[i + 2] & 0x3F) << 6 | np.int64(data[i + 3] & 0x3F), 4


@numba.njit(cache=True)
def _word_classes(data, start, end, classes):  # type: ignore[no-untyped-def]
    """Whether a word has a character that is not punctuation, and whether it has a letter; most first characters settle both."""
    is_plain, is_alphabetic = False, False
    i = start
    while i < end and not (is_plain and is_alphabetic):
        code, length = _code_point(data, i)
        kind = classes[code]
        is_plain = is_plain or kind & characters.SYMBOL == 0
        is_alphabetic = is_alphabetic or kind & characters.ALPHABETIC != 0
        i += length
    return is_plain, is_alphabetic


@numba.njit(cache=True)
def _has_at(data, i, start, end, mark):  # type: ignore[no-untyped-def]
    if i < start or i + len(mark) > end:
        return False
    for k in range(len(mark)):  # noqa: SIM110  (numba has no generators here)
        if data[i + k] != mark[k]:
            return False
    return True


@numba.njit(cache=True)
def _count_marks(data, start, end):  # type: ignore[no-untyped-def]
    """`#`, and `...` (without overlaps) or `…`, in a document -> (hashes, ellipses)."""
    hashes, ellipses, dots = 0, 0, 0
    for i in range(start, end):
        byte = data[i]
        if byte == 0x2E:
            dots += 1
            if dots == 3:
                ellipses, dots = ellipses + 1, 0
            continue
        dots = 0
        if byte == 0x23:
            hashes += 1
        elif byte == 0xE2:
            ellipses += _has_at(data, i, start, end, ELLIPSIS)
    return hashes, ellipses


@numba.njit(cache=True)
def _stop_word_bit(data, start, end, stop_words):  # type: ignore[no-untyped-def]
    packed = np.int64(0)
    for i in range(start, end):
        packed = packed << 8 | np.int64(data[i])
    for k in range(len(stop_words)):
        if packed == stop_words[k]:
            return 1 << k
    return 0


@numba.njit(cache=True)
def _count_words(data, words, first, last, classes, stop_words, longest, out):  # type: ignore[no-untyped-def]
    """The statistics of the words first..last of one document."""
    stops = 0
    for w in range(first, last):
        start, end = words.start[w], words.end[w]
        is_plain, is_alphabetic = _word_classes(data, start, end, classes)
        out[3] += is_alphabetic
        if is_plain:
            out[1] += 1
            out[2] += characters.count_between(data, start, end)
        if words.begins_line[w]:
            out[6] += data[start] == 0x2D or _has_at(data, start, start, end, BULLET)
        if w + 1 == last or words.begins_line[w + 1]:
            out[7] += _has_at(data, end - 3, start, end, DOTS) or _has_at(data, end - 3, start, end, ELLIPSIS)
        if end - start <= longest:
            stops |= _stop_word_bit(data, start, end, stop_words)
    while stops:
        out[8] += stops & 1
        stops >>= 1


@numba.njit(cache=True)
def _count_documents(offsets, data, words, classes, stop_words, longest, out):  # type: ignore[no-untyped-def]
    for document in range(len(offsets) - 1):
        first, last = words.first[document], words.first[document + 1]
        out[document, 0] = last - first
        _count_words(data, words, first, last, classes, stop_words, longest, out[document])
        out[document, 4], out[document, 5] = _count_marks(data, offsets[document], offsets[document + 1])


def count(offsets: np.ndarray, data: np.ndarray, words: Words) -> np.ndarray:
    """The counts of each document -> int64 [documents, len(COUNTS)]. offsets int64 [documents + 1], data uint8."""
    out = np.zeros((len(offsets) - 1, len(COUNTS)), np.int64)
    _count_documents(offsets, data, words, characters.table(), PACKED_STOP_WORDS, LONGEST_STOP_WORD, out)
    return out
