"""C4's line rules, over Arrow buffers.

UTF-8 buffers and their words -> counts of each document, int64 [documents, len(COUNTS)]: what its lines (`str.splitlines`) would lose to
which rule, in datatrove's order, and the sentences of those that stay. A sentence ends at . ? or ! and the quotes or brackets that close
behind it, where a space, a tab or the line's end follows; what is left behind the last is one more. (datatrove asks spaCy, C4 asked NLTK.)

Sources: Raffel et al. 2020 (jmlr.org/papers/v21/20-074); huggingface/datatrove `filters/c4_filters.py`, whose counts these are, given the
same sentences.
"""

from typing import NamedTuple

import numba
import numpy as np

from dataplane.kernels import code_points
from dataplane.kernels.characters import count_between
from dataplane.kernels.words import Words

COUNTS = (
    "lines",
    "long_word_lines",
    "no_terminal_lines",
    "short_lines",
    "javascript_lines",
    "policy_lines",
    "kept_lines",
    "kept_sentences",
    "lorem_ipsum",  # 1 if the first line that drops the whole document does so for this
    "curly_bracket",
)
LONG_WORD, NO_TERMINAL, SHORT, JAVASCRIPT, POLICY, KEPT, SENTENCES, LOREM_IPSUM, CURLY_BRACKET = range(1, 10)
LORE, JAVA, TERMS, PRIVACY, COOKIE, USES, USE_OF, USE = range(8)
PHRASES = (
    "lorem ipsum",
    "javascript",
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
MARKS = np.frombuffer(b".?!\"'", np.uint8)
CITATIONS = (np.frombuffer(b"[edit]", np.uint8), np.frombuffer(b"[citation needed]", np.uint8))
SPACE, TAB, DOT, BRACE, BRACKET, END_BRACKET = 0x20, 0x09, 0x2E, 0x7B, 0x5B, 0x5D


class Options(NamedTuple):
    """Which line rules apply; -1 switches a limit off."""

    remove_citations: bool
    filter_no_terminal_punct: bool
    min_words_per_line: int
    max_word_characters: int
    filter_lorem_ipsum: bool
    filter_javascript: bool
    filter_curly_bracket: bool
    filter_policy: bool


def _phrase_table() -> tuple[np.ndarray, np.ndarray]:
    rows = np.zeros((len(PHRASES), 16), np.uint8)
    for row, phrase in zip(rows, PHRASES, strict=True):
        row[: len(phrase)] = np.frombuffer(phrase.encode(), np.uint8)
    return rows, np.array([len(phrase) for phrase in PHRASES], np.int64)


PHRASE_BYTES, PHRASE_LENGTHS = _phrase_table()
STARTS = np.zeros(256, np.bool_)
STARTS[[ord(letter) for phrase in PHRASES for letter in (phrase[0], phrase[0].upper())]] = True
LOWER = np.arange(256, dtype=np.uint8)
LOWER[65:91] += 32


@numba.njit(cache=True)
def _has_long_word(data, words, a, b, most):  # type: ignore[no-untyped-def]
    for w in range(a, b):
        start, end = words.start[w], words.end[w]
        if end - start > most and count_between(data, start, end) > most:
            return True
    return False


@numba.njit(cache=True)
def _citation_bytes(data, i, end, classes):  # type: ignore[no-untyped-def]
    """`[12]`, `[]`, `[edit]` or `[citation needed]` at i -> its bytes, 0 if there is none. Digits of all scripts count."""
    k = i + 1
    while k < end:
        code, length = code_points.decode(data, k)
        if classes[code] & code_points.DECIMAL == 0:
            break
        k += length
    if k < end and data[k] == END_BRACKET:
        return k + 1 - i
    for mark in CITATIONS:
        if code_points.has_at(data, i, i, end, mark):
            return len(mark)
    return 0


@numba.njit(cache=True)
def _without_citations(data, start, end, classes, line):  # type: ignore[no-untyped-def]
    """Copies the line without its citations -> bytes copied."""
    count, i = 0, start
    while i < end:
        skip = _citation_bytes(data, i, end, classes) if data[i] == BRACKET else 0
        if skip == 0:
            line[count] = data[i]
            count += 1
        i += max(skip, 1)
    return count


@numba.njit(cache=True)
def _is_terminal(line, start, end):  # type: ignore[no-untyped-def]
    if end == start or (end - start >= 3 and line[end - 1] == DOT and line[end - 2] == DOT and line[end - 3] == DOT):
        return False
    for mark in MARKS:  # noqa: SIM110  (numba has no generators here)
        if line[end - 1] == mark:
            return True
    return False


@numba.njit(cache=True)
def _phrase_at(line, i, end, phrases, lengths, lower):  # type: ignore[no-untyped-def]
    """The bit of the phrase that stands at i in any case, 0 if none. U+212A, whose lower case is k, counts as k."""
    for p in range(len(lengths)):
        at, k = i, 0
        while k < lengths[p] and at < end:
            if lower[line[at]] == phrases[p, k]:
                at += 1
            elif (
                phrases[p, k] == 0x6B
                and at + 2 < end
                and line[at] == 0xE2
                and line[at + 1] == 0x84
                and line[at + 2] == 0xAA
            ):
                at += 3
            else:
                break
            k += 1
        if k == lengths[p]:
            return 1 << p
    return 0


@numba.njit(cache=True)
def _scan_line(line, start, end, tables):  # type: ignore[no-untyped-def]
    """(phrases that occur, as bits; whether there is a curly bracket; sentences), in one pass."""
    starts, phrases, lengths, lower = tables
    found, has_brace, sentences = 0, False, 0
    is_end, has_text, i = False, False, start
    while i < end:
        byte, length = line[i], 1
        if starts[byte]:
            found |= _phrase_at(line, i, end, phrases, lengths, lower)
        has_brace |= byte == BRACE
        if byte in (SPACE, TAB):
            sentences += is_end
            has_text, is_end = has_text and not is_end, False
        else:
            has_text = True
            if byte == DOT or byte == 0x3F or byte == 0x21:
                is_end = True
            elif byte == 0xE2 and i + 2 < end and line[i + 1] == 0x80 and (line[i + 2] == 0x9D or line[i + 2] == 0x99):
                length = 3  # closing quotes
            elif not (byte == 0x22 or byte == 0x27 or byte == 0x29 or byte == END_BRACKET):
                is_end = False
        i += length
    return found, has_brace, sentences + (is_end or has_text)


@numba.njit(cache=True)
def _judge_line(line, start, end, num_words, options, tables, out):  # type: ignore[no-untyped-def]
    """What becomes of a line without citations -> its place in COUNTS; kept sentences are added to out."""
    if options.filter_no_terminal_punct and not _is_terminal(line, start, end):
        return NO_TERMINAL
    if num_words < options.min_words_per_line:
        return SHORT
    found, has_brace, sentences = _scan_line(line, start, end, tables)
    if options.filter_lorem_ipsum and found & 1 << LORE:
        return LOREM_IPSUM
    if options.filter_javascript and found & 1 << JAVA:
        return JAVASCRIPT
    if options.filter_curly_bracket and has_brace:
        return CURLY_BRACKET
    if options.filter_policy and found >> TERMS:
        return POLICY
    out[SENTENCES] += sentences
    return KEPT


@numba.njit(cache=True)
def _count_line(data, words, a, b, options, classes, tables, line, out):  # type: ignore[no-untyped-def]
    """The line of the words a..b."""
    start, end = words.start[a], words.end[b - 1]
    if options.max_word_characters != -1 and _has_long_word(data, words, a, b, options.max_word_characters):
        out[LONG_WORD] += 1
        return
    verdict = -1
    if options.remove_citations:
        for i in range(start, end):
            if data[i] == BRACKET:
                length = _without_citations(data, start, end, classes, line)
                verdict = _judge_line(line, 0, length, b - a, options, tables, out)
                break
    if verdict < 0:
        verdict = _judge_line(data, start, end, b - a, options, tables, out)
    if verdict in (LOREM_IPSUM, CURLY_BRACKET):
        out[verdict] += out[LOREM_IPSUM] + out[CURLY_BRACKET] == 0
    else:
        out[verdict] += 1


@numba.njit(cache=True)
def _count_documents(offsets, data, words, options, classes, tables, out):  # type: ignore[no-untyped-def]
    line = np.empty(1, np.uint8)
    for document in range(len(offsets) - 1):
        first, last = words.first[document], words.first[document + 1]
        if len(line) < offsets[document + 1] - offsets[document]:
            line = np.empty(offsets[document + 1] - offsets[document], np.uint8)
        counts = out[document]
        counts[0] = words.lines[document]
        blank, a = words.lines[document], first
        while a < last:
            b = a + 1
            while b < last and not words.begins_line[b]:
                b += 1
            _count_line(data, words, a, b, options, classes, tables, line, counts)
            a, blank = b, blank - 1
        if options.filter_no_terminal_punct:
            counts[NO_TERMINAL] += blank
        else:
            counts[SHORT if options.min_words_per_line > 0 else KEPT] += blank


def count(offsets: np.ndarray, data: np.ndarray, words: Words, options: Options) -> np.ndarray:
    """The counts of each document -> int64 [documents, len(COUNTS)]. offsets int64 [documents + 1], data uint8."""
    out = np.zeros((len(offsets) - 1, len(COUNTS)), np.int64)
    tables = STARTS, PHRASE_BYTES, PHRASE_LENGTHS, LOWER
    _count_documents(offsets, data, words, options, code_points.table(), tables, out)
    return out
