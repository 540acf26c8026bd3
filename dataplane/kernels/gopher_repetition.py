"""The Gopher repetition statistics, over Arrow buffers.

UTF-8 buffers and their words -> counts of each document, int64 [documents, len(COUNTS)]; all but lines and paragraphs are counts of characters.
Exact: words and lines are compared byte by byte behind their hash, an n-gram by the pair of numbers of its two (n-1)-grams. An n-gram can repeat
only where both of those do, so each level looks at the repeats of the level before alone and the work ends when nothing repeats. Which words are
numbered at all a table of marks says, without a branch: those of 2-grams whose hash meets its like. Most do not.

Sources: Rae et al. 2021 (arXiv 2112.11446, table A1); huggingface/datatrove `filters/gopher_repetition_filter.py`, whose counts these are, given the
same words, with one difference: there an n-gram is its words joined without a space, so that "ab" "c" equals "a" "bc".
"""

import numba
import numpy as np

from dataplane.kernels import masks
from dataplane.kernels.borrowing import borrowing
from dataplane.kernels.characters import count_between
from dataplane.kernels.words import Words, load8, up_to_8, word_characters, write_bits

TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)
COUNTS = (
    "characters",
    "lines",
    "duplicate_lines",
    "duplicate_line_characters",
    "paragraphs",
    "duplicate_paragraphs",
    "duplicate_paragraph_characters",
    *(f"top_{n}gram_characters" for n in TOP_NGRAMS),
    *(f"duplicate_{n}gram_characters" for n in DUPLICATE_NGRAMS),
)
FIRST_NGRAM_COUNT = 7
NEWLINE = 0x0A
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX = np.uint64(0xBF58476D1CE4E5B9)


@numba.njit(cache=True, inline="always")
def _stirred(h):  # type: ignore[no-untyped-def]
    return (h ^ h >> np.uint64(29)) * MIX


@borrowing
def _hash_long(data, start, end, h):  # type: ignore[no-untyped-def]
    """Goes on from `h` with the bytes of a span of more than 16, but for its first and last eight, in two lanes."""
    other = np.uint64(end - start)
    i = start + 8
    while i < end - 24:
        h = _stirred(h) ^ load8(data, i)  # type: ignore[call-arg]
        other = _stirred(other) ^ load8(data, i + 8)  # type: ignore[call-arg]
        i += 16
    other = _stirred(other) ^ load8(data, max(start, end - 24))  # type: ignore[call-arg]
    return _stirred(h) ^ load8(data, end - 16) ^ other * GOLDEN  # type: ignore[call-arg]


@numba.njit(cache=True, inline="always")
def _hash_span(data, start, end):  # type: ignore[no-untyped-def]
    """Different for different spans of one length up to 8 bytes: there, equal hash and length are equal bytes. No branch up to 16."""
    length = end - start
    last = load8(data, max(0, end - 8))  # type: ignore[call-arg,var-annotated]
    h = up_to_8(data, start, min(end, start + 8))
    if length > 16:
        h = _hash_long(data, start, end, h)
    h ^= (last ^ np.uint64(length) * MIX) * np.uint64(length > 8)
    h *= GOLDEN
    return h ^ h >> np.uint64(32)


@borrowing
def _same_bytes(data, a, b, length):  # type: ignore[no-untyped-def]
    """Whether two spans of one length, more than 8 bytes, are equal."""
    for k in range(0, length - 8, 8):
        if load8(data, a + k) != load8(data, b + k):  # type: ignore[call-arg]
            return False
    return load8(data, a + length - 8) == load8(data, b + length - 8)  # type: ignore[call-arg]


@borrowing
def _clear_table(table, count):  # type: ignore[no-untyped-def]
    """Empties the least power of two of slots that keeps `count` entries under half -> its mask."""
    size = 16
    while size < 2 * count:
        size *= 2
    table[:size] = -1
    return np.uint64(size - 1)


@borrowing
def _hash_spans(data, starts, ends, hashes):  # type: ignore[no-untyped-def]
    for k in range(len(starts)):
        hashes[k] = _hash_span(data, starts[k], ends[k])


@borrowing
def _may_repeat(hashes, count, marks, slots, positions):  # type: ignore[no-untyped-def]
    """Writes the positions of the words in a 2-gram that may occur twice, and never leaves one out that does -> how many."""
    bits = 6
    while 1 << bits < 8 * count:
        bits += 1
    marks[: 1 << bits] = 0
    shift = np.uint64(64 - bits)
    for w in range(count - 1):
        slot = (hashes[w] * MIX + hashes[w + 1]) * GOLDEN >> shift
        slots[w] = slot
        marks[slot] = marks[slot] << np.uint8(1) | np.uint8(1)
    out, before = 0, False
    for w in range(count - 1):  # written always, counted when it may: no branch to guess
        may = marks[slots[w]] > 1
        positions[out] = w
        out += may | before
        before = may
    positions[out] = count - 1
    return out + before


@borrowing
def _number_spans(data, starts, ends, hashes, positions, count, table, members, numbers):  # type: ignore[no-untyped-def]
    """Gives equal spans among those at `positions` equal numbers, in order of first appearance: numbers int32 [count]; members: times, first by
    number -> distinct spans."""
    mask, distinct = _clear_table(table, count), 0
    for k in range(count):
        position = positions[k]
        start, length, h = starts[position], ends[position] - starts[position], hashes[position]
        slot = h & mask
        number = table[slot]
        while number >= 0:
            first = members[1, number]
            if (
                hashes[first] == h
                and ends[first] - starts[first] == length
                and (length <= 8 or _same_bytes(data, starts[first], start, length))
            ):
                break
            slot = slot + np.uint64(1) & mask
            number = table[slot]
        if number < 0:
            number = distinct
            table[slot] = number
            members[0, number], members[1, number] = 0, position
            distinct += 1
        numbers[k] = number
        members[0, number] += 1
    return distinct


@borrowing
def _number_pairs(positions, numbers, count, table, keys, members):  # type: ignore[no-untyped-def]
    """One level up. positions, numbers: the n-grams that repeat -> the same arrays for the (n+1)-grams that might: (candidates, distinct ones)."""
    mask, distinct, out = _clear_table(table, count), 0, 0
    for c in range(count - 1):
        if positions[c + 1] != positions[c] + 1:
            continue
        key = np.uint64(numbers[c]) << np.uint64(32) | np.uint64(numbers[c + 1])
        h = key * GOLDEN
        slot = (h ^ h >> np.uint64(32)) & mask
        while table[slot] >= 0 and keys[table[slot]] != key:
            slot = slot + np.uint64(1) & mask
        if table[slot] < 0:
            table[slot], keys[distinct] = distinct, key
            members[0, distinct], members[1, distinct] = 0, positions[c]
            distinct += 1
        number = table[slot]
        members[0, number] += 1
        positions[out], numbers[out] = positions[c], number
        out += 1
    return out, distinct


@borrowing
def _keep_repeated(positions, numbers, count, members):  # type: ignore[no-untyped-def]
    """Drops the candidates that occur once -> how many are left."""
    out = 0
    for c in range(count):  # written always, counted when it stays: no branch to guess
        number = numbers[c]
        positions[out], numbers[out] = positions[c], number
        out += members[0, number] > 1
    return out


@borrowing
def _top_characters(n, num_words, distinct, members, ends_at):  # type: ignore[no-untyped-def]
    """Characters of all occurrences of the commonest n-gram, spaces included; of equals the one that comes first."""
    if num_words < n:
        return 0
    most, first = 1, 0
    for number in range(distinct):
        if members[0, number] > most:
            most, first = members[0, number], members[1, number]
    return most * (ends_at[first + n] - ends_at[first] + n - 1)


@borrowing
def _duplicate_characters(n, positions, numbers, count, members, ends_at):  # type: ignore[no-untyped-def]
    """Characters of n-grams seen before, left to right, without overlaps; members[1] is used as the mark "seen"."""
    for c in range(count):
        members[1, numbers[c]] = 0
    total, next_allowed = 0, 0
    for c in range(count):
        position = positions[c]
        if position < next_allowed:
            continue
        if members[1, numbers[c]]:
            total += ends_at[position + n] - ends_at[position]
            next_allowed = position + n
        members[1, numbers[c]] = 1
    return total


@borrowing
def _count_ngrams(num_words, positions, numbers, count, table, keys, members, ends_at, out):  # type: ignore[no-untyped-def]
    """All levels, from the numbered words up."""
    count = _keep_repeated(positions, numbers, count, members)
    for n in range(2, 11):
        count, distinct = _number_pairs(positions, numbers, count, table, keys, members)
        if n <= 4:
            out[n - 2] = _top_characters(n, num_words, distinct, members, ends_at)
        count = _keep_repeated(positions, numbers, count, members)
        if n > 4:
            out[n - 2] = _duplicate_characters(n, positions, numbers, count, members, ends_at)
        if n >= 4 and count == 0:
            return


@borrowing
def _find_newlines(data, start, end, run_starts, run_ends):  # type: ignore[no-untyped-def]
    """Writes where runs of LF start and end -> number of runs."""
    before, count, num_ends = np.uint64(0), 0, 0
    for i in range(start, end, masks.BLOCK):
        mask = masks.newlines(data, i) & masks.below(end - i)
        shifted = mask << np.uint64(1) | before
        before = mask >> np.uint64(63)
        if mask | shifted != 0:
            count = write_bits(mask & ~shifted, i, run_starts, count)
            num_ends = write_bits(~mask & shifted, i, run_ends, num_ends)
    if num_ends < count:
        run_ends[num_ends] = end
    return count


@borrowing
def _cut_at_newlines(run_starts, run_ends, runs, start, end, least, starts, ends):  # type: ignore[no-untyped-def]
    """Splits [start, end) at the runs of at least `least` LF inside, as `re.split("\\n{least,}", text)` -> number of pieces; empty ones at
    the edges count."""
    count, piece = 0, start
    for run in range(runs):
        if run_ends[run] - run_starts[run] >= least and run_starts[run] >= start and run_ends[run] <= end:
            starts[count], ends[count] = piece, run_starts[run]
            count, piece = count + 1, run_ends[run]
    starts[count], ends[count] = piece, end
    return count + 1


@borrowing
def _count_pieces(data, starts, ends, count, hashes, positions, table, members, numbers, out):  # type: ignore[no-untyped-def]
    """Pieces, duplicate ones and their characters -> out[0:3]."""
    if count == 1:
        out[0] = 1
        return
    _hash_spans(data, starts[:count], ends[:count], hashes)
    for k in range(count):
        positions[k] = k
    distinct = _number_spans(data, starts, ends, hashes, positions, count, table, members, numbers)
    out[0], out[1] = count, count - distinct
    for k in range(count):
        if members[1, numbers[k]] != k:
            out[2] += count_between(data, starts[k], ends[k])


@borrowing
def _most_pieces(offsets, data, words):  # type: ignore[no-untyped-def]
    """The room that the largest document needs: its words or its lines."""
    most = 1
    for document in range(len(offsets) - 1):
        newlines = 0
        start, end = offsets[document], offsets[document + 1]
        for i in range(start, end, masks.BLOCK):
            newlines += masks.ones(masks.newlines(data, i) & masks.below(end - i))
        most = max(most, newlines + 1, words.first[document + 1] - words.first[document])
    return most + masks.BLOCK


@borrowing
def _count_characters(data, start, end):  # type: ignore[no-untyped-def]
    continued = 0
    for i in range(start, end, masks.BLOCK):
        continued += masks.ones(masks.continuations(data, i) & masks.below(end - i))
    return end - start - continued


@borrowing
def _add_up(data, starts, ends, is_ascii, ends_at):  # type: ignore[no-untyped-def]
    """Writes how many characters of words lie before each word, and before the end."""
    ends_at[0] = 0
    for w in range(len(starts)):
        length = ends[w] - starts[w] if is_ascii else word_characters(data, starts[w], ends[w])
        ends_at[w + 1] = ends_at[w] + length


@numba.njit(cache=True)
def _count_documents(offsets, data, words, out):  # type: ignore[no-untyped-def]
    room = _most_pieces(offsets, data, words)
    table, keys, members = np.empty(4 * room + 16, np.int32), np.empty(room, np.uint64), np.empty((2, room), np.int64)
    hashes, marks = np.empty(room, np.uint64), np.empty(16 * room + 64, np.uint8)
    numbers, positions, ends_at = np.empty(room, np.int32), np.empty(room, np.int64), np.zeros(room + 1, np.int64)
    starts, ends = np.empty(room, np.int64), np.empty(room, np.int64)
    run_starts, run_ends = np.empty(room, np.int64), np.empty(room, np.int64)
    for document in range(len(offsets) - 1):
        start, end = offsets[document], offsets[document + 1]
        first, last = words.first[document], words.first[document + 1]
        counts = out[document]
        counts[0] = _count_characters(data, start, end)
        runs = _find_newlines(data, start, end, run_starts, run_ends)
        pieces = _cut_at_newlines(run_starts, run_ends, runs, start, end, 1, starts, ends)
        _count_pieces(data, starts, ends, pieces, hashes, positions, table, members, numbers, counts[1:4])
        text_start = words.start[first] if last > first else start
        text_end = words.end[last - 1] if last > first else start
        pieces = _cut_at_newlines(run_starts, run_ends, runs, text_start, text_end, 2, starts, ends)
        _count_pieces(data, starts, ends, pieces, hashes, positions, table, members, numbers, counts[4:7])
        span_starts, span_ends = words.start[first:last], words.end[first:last]
        _add_up(data, span_starts, span_ends, counts[0] == end - start, ends_at)
        _hash_spans(data, span_starts, span_ends, hashes)
        count = _may_repeat(hashes, last - first, marks, keys, positions)
        _number_spans(data, span_starts, span_ends, hashes, positions, count, table, members, numbers)
        _count_ngrams(
            last - first, positions, numbers, count, table, keys, members, ends_at, counts[FIRST_NGRAM_COUNT:]
        )


def count(offsets: np.ndarray, data: np.ndarray, words: Words) -> np.ndarray:
    """The counts of each document -> int64 [documents, len(COUNTS)]. offsets int64 [documents + 1], data uint8."""
    out = np.zeros((len(offsets) - 1, len(COUNTS)), np.int64)
    _count_documents(offsets, masks.at_least_64(data), words, out)
    return out
