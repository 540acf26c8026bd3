"""The statistics of the RefinedWeb rules as DCLM applies them, over Arrow buffers.

UTF-8 buffers and their words -> counts of each document, int64 [documents, len(COUNTS)]. A line is what `\\n` alone separates.
`removed_words` is what the line rules on capitals, digits and length take; whether a document also holds a line for the rules on phrases
and counters ("3 likes", "Read more...") is `has_phrases`: such lines are rare and are left to regular expressions.

Source: mlfoundations/dclm `baselines/mappers/{modifiers,filters/content_filters}.py`, whose counts these are, with whitespace words in
place of fastText's and uniseg's.
"""

import numba
import numpy as np

from dataplane.kernels import code_points
from dataplane.kernels.characters import count_between
from dataplane.kernels.words import Words

COUNTS = (
    "words",
    "word_characters",
    "counted_words",  # their first character is a letter or a digit
    "symbols",  # "#", "...", ". . ." and "…"
    "lines",  # with more than white space
    "bullet_lines",
    "ellipsis_lines",
    "non_alphabetic_words",
    "stop_words",  # each time, in any case
    "removed_words",  # counted ones
    "has_phrases",
)
(
    WORDS,
    WORD_CHARACTERS,
    COUNTED,
    SYMBOLS,
    LINES,
    BULLETS,
    ELLIPSES,
    NON_ALPHABETIC,
    STOP_WORDS,
    REMOVED,
    PHRASES,
) = range(len(COUNTS))
STOP_WORD_LIST = ("the", "be", "to", "of", "and", "that", "have", "with")
COUNTERS = (
    "likes",
    "shares",
    "comments",
    "retweets",
    "reposts",
    "quotes",
    "bookmarks",
    "upvotes",
    "downvotes",
    "downloads",
    "views",
    "followers",
)
MAX_PHRASE_WORDS = 10  # phrases are looked for in lines of at most so many words
NEWLINE, DASH, STAR, HASH, DOT, SPACE = 0x0A, 0x2D, 0x2A, 0x23, 0x2E, 0x20
BULLET_MARKS = tuple(np.frombuffer(mark.encode(), np.uint8) for mark in "●•")
ELLIPSIS = np.frombuffer("…".encode(), np.uint8)
DOTS, SPACED_DOTS = np.frombuffer(b"...", np.uint8), np.frombuffer(b". . .", np.uint8)


def _packed(words: tuple[str, ...], width: int) -> np.ndarray:
    rows = np.zeros((len(words), width), np.uint8)
    for row, word in zip(rows, words, strict=True):
        row[: len(word)] = np.frombuffer(word.encode(), np.uint8)
    return rows


COUNTER_BYTES = _packed(COUNTERS, 12)
PACKED_STOP_WORDS = np.array([int.from_bytes(word.encode(), "big") for word in STOP_WORD_LIST], np.int64)
LONGEST_STOP_WORD = max(len(word) for word in STOP_WORD_LIST)
ITEMS_IN_CART, READ_MORE, SIGN_IN = (
    np.frombuffer(text, np.uint8) for text in (b"items in cart", b"read more", b"sign-in")
)
AFTER_READ_MORE = 12  # three characters of at most four bytes


@numba.njit(cache=True)
def _equals_any(data, start, end, rows):  # type: ignore[no-untyped-def]
    """Whether the bytes are one of `rows` (letters, zero-padded) in any ASCII case: | 0x20 makes letters of letters alone."""
    length = end - start
    if length <= 0 or length >= rows.shape[1]:
        return False
    for r in range(len(rows)):
        if rows[r, length] != 0 or rows[r, length - 1] == 0:
            continue
        k = 0
        while k < length and data[start + k] | 0x20 == rows[r, k]:
            k += 1
        if k == length:
            return True
    return False


@numba.njit(cache=True)
def _is_stop_word(data, start, end, stop_words):  # type: ignore[no-untyped-def]
    packed = np.int64(0)
    for i in range(start, end):
        packed = packed << 8 | np.int64(data[i] | 0x20)
    for word in stop_words:  # noqa: SIM110  (numba has no generators here)
        if packed == word:
            return True
    return False


@numba.njit(cache=True)
def _classify_word(data, start, end, classes):  # type: ignore[no-untyped-def]
    """(whether it begins with a letter or a digit, whether it has a letter)."""
    code, length = code_points.decode(data, start)
    kind, i = classes[code], start + length
    is_counted = kind & code_points.ALPHANUMERIC != 0
    while kind & code_points.ALPHABETIC == 0 and i < end:
        code, length = code_points.decode(data, i)
        kind, i = classes[code], i + length
    return is_counted, kind & code_points.ALPHABETIC != 0


@numba.njit(cache=True)
def _count_symbols(data, start, end):  # type: ignore[no-untyped-def]
    """As `str.count` of each, without overlaps."""
    total, dots, next_spaced = 0, 0, start
    for i in range(start, end):
        byte = data[i]
        if byte != DOT:
            dots = 0
            total += byte == HASH
            if byte == 0xE2:
                total += code_points.has_at(data, i, start, end, ELLIPSIS)
            continue
        dots += 1
        if dots == 3:
            total, dots = total + 1, 0
        if (
            i >= next_spaced
            and i + 1 < end
            and data[i + 1] == SPACE
            and code_points.has_at(data, i, start, end, SPACED_DOTS)
        ):
            total, next_spaced = total + 1, i + 5
    return total


@numba.njit(cache=True)
def _is_mostly_capitals(data, start, end, classes):  # type: ignore[no-untyped-def]
    capitals, characters, i = 0, 0, start
    while i < end:
        byte = data[i]
        if byte < 0x80:
            capitals += 65 <= byte <= 90
            i += 1
        else:
            code, length = code_points.decode(data, i)
            capitals += classes[code] & code_points.UPPERCASE != 0
            i += length
        characters += 1
    return capitals * 2 > characters


@numba.njit(cache=True)
def _matches_at(data, i, start, end, text):  # type: ignore[no-untyped-def]
    """Whether `text` is at i, within [start, end), in any ASCII case."""
    if i < start or i + len(text) > end:
        return False
    for k in range(len(text)):  # noqa: SIM110  (numba has no generators here)
        if data[i + k] | 0x20 != text[k]:
            return False
    return True


@numba.njit(cache=True)
def _has_phrase(data, words, a, b):  # type: ignore[no-untyped-def]
    """Whether a line could lose a phrase: all lines that the regular expressions match, and few more."""
    start, end = words.start[a], words.end[b - 1]
    if _matches_at(data, start, start, end, SIGN_IN):
        return True
    for i in range(max(start, end - len(READ_MORE) - AFTER_READ_MORE), end - len(READ_MORE) + 1):
        if _matches_at(data, i, start, end, READ_MORE):
            return True
    for w in range(a + 1, b - 1):  # noqa: SIM110  (the word "in"; numba has no generators here)
        if words.end[w] - words.start[w] == 2 and _matches_at(data, words.start[w] - 6, start, end, ITEMS_IN_CART):
            return True
    return False


@numba.njit(cache=True)
def _is_letter_or_digit(byte):  # type: ignore[no-untyped-def]
    return np.uint8((byte | 0x20) - np.uint8(97)) < 26 or np.uint8(byte - np.uint8(48)) < 10


@numba.njit(cache=True)
def _has_counter(data, words, a, b, counters):  # type: ignore[no-untyped-def]
    """Whether a line could be a counter: all lines that the regular expression matches, and few more.

    It has a counter's name behind its first word, and no word with letters or digits but that and a number."""
    named, found = 0, False
    for w in range(a, b):
        start, end = words.start[w], words.end[w]
        while start < end and not _is_letter_or_digit(data[start]):
            start += 1
        while end > start and not _is_letter_or_digit(data[end - 1]):
            end -= 1
        named += end > start
        if named > 2:
            return False
        found = found or (w > a and _equals_any(data, start, end, counters))
    return found


@numba.njit(cache=True)
def _count_line(data, start, end, words, a, b, counted, classes, counters, out):  # type: ignore[no-untyped-def]
    """A line [start, end) with the words a..b, `counted` of which count."""
    first, behind = words.start[a], words.end[b - 1]
    out[LINES] += 1
    is_bullet = data[first] == DASH or data[first] == STAR
    for mark in BULLET_MARKS:
        is_bullet = is_bullet or code_points.has_at(data, first, first, behind, mark)
    out[BULLETS] += is_bullet
    if data[behind - 1] == DOT:
        out[ELLIPSES] += code_points.has_at(data, behind - 3, first, behind, DOTS) or code_points.has_at(
            data, behind - 5, first, behind, SPACED_DOTS
        )
    else:
        out[ELLIPSES] += code_points.has_at(data, behind - 3, first, behind, ELLIPSIS)
    if b - a < 2 or _is_mostly_capitals(data, start, end, classes):
        out[REMOVED] += counted
    if b - a <= MAX_PHRASE_WORDS and out[PHRASES] == 0:
        out[PHRASES] = _has_phrase(data, words, a, b)
    if b - a >= 2 and out[PHRASES] == 0:
        out[PHRASES] = _has_counter(data, words, a, b, counters)


@numba.njit(cache=True)
def _line_end(data, i, end):  # type: ignore[no-untyped-def]
    while i < end and data[i] != NEWLINE:
        i += 1
    return i


@numba.njit(cache=True)
def _count_document(data, start, end, words, first, last, classes, stop_words, counters, out):  # type: ignore[no-untyped-def]
    out[WORDS] = last - first
    out[SYMBOLS] = _count_symbols(data, start, end)
    is_ascii = count_between(data, start, end) == end - start
    w, characters, stops = first, 0, 0
    while start < end:
        line_end = _line_end(data, start, end)
        a, counted = w, 0
        while w < last and words.start[w] < line_end:
            is_counted, is_alphabetic = _classify_word(data, words.start[w], words.end[w], classes)
            counted += is_counted
            out[NON_ALPHABETIC] += not is_alphabetic
            length = words.end[w] - words.start[w]
            characters += length if is_ascii else count_between(data, words.start[w], words.end[w])
            if length <= LONGEST_STOP_WORD:
                stops += _is_stop_word(data, words.start[w], words.end[w], stop_words)
            w += 1
        out[COUNTED] += counted
        if w > a:
            _count_line(data, start, line_end, words, a, w, counted, classes, counters, out)
        start = line_end + 1
    out[WORD_CHARACTERS], out[STOP_WORDS] = characters, stops


@numba.njit(cache=True)
def _count_documents(offsets, data, words, classes, stop_words, counters, out):  # type: ignore[no-untyped-def]
    for document in range(len(offsets) - 1):
        first, last = words.first[document], words.first[document + 1]
        start, end = offsets[document], offsets[document + 1]
        _count_document(data, start, end, words, first, last, classes, stop_words, counters, out[document])


def count(offsets: np.ndarray, data: np.ndarray, words: Words) -> np.ndarray:
    """The counts of each document -> int64 [documents, len(COUNTS)]. offsets int64 [documents + 1], data uint8."""
    out = np.zeros((len(offsets) - 1, len(COUNTS)), np.int64)
    _count_documents(offsets, data, words, code_points.table(), PACKED_STOP_WORDS, COUNTER_BYTES, out)
    return out
