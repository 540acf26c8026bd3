"""The Gopher repetition statistics, over Arrow buffers.

UTF-8 buffers and their words -> counts of each document, int64 [documents, len(COUNTS)]; all but lines and paragraphs are counts of characters.
Exact: words and lines are compared byte by byte behind their hash, an n-gram by the pair of numbers of its two (n-1)-grams. An n-gram can repeat
only where both of those do, so each level looks at the repeats of the level before alone and the work ends when nothing repeats.

Sources: Rae et al. 2021 (arXiv 2112.11446, table A1); huggingface/datatrove `filters/gopher_repetition_filter.py`, whose counts these are, given the
same words, with one difference: there an n-gram is its words joined without a space, so that "ab" "c" equals "a" "bc".
"""

import numba
import numpy as np

from dataplane.kernels import masks
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
def _hash_span(data, start, end):  # type: ignore[no-untyped-def]
    """Different for different spans of one length up to 8 bytes: there, equal hash and length are equal bytes."""
    length = end - start
    h = up_to_8(data, start, min(end, start + 8))
    if length > 8:
        h ^= np.uint64(length) * MIX
        i = start + 8
        while i + 8 < end:
            h = (h ^ h >> np.uint64(29)) * MIX ^ load8(data, i)  # type: ignore[call-arg]
            i += 8
        h = (h ^ h >> np.uint64(29)) * MIX ^ load8(data, end - 8)  # type: ignore[call-arg]
    h *= GOLDEN
    return h ^ h >> np.uint64(32)


@numba.njit(cache=True)
def _same_bytes(data, a, b, length):  # type: ignore[no-untyped-def]
    """Whether two spans of one length, more than 8 bytes, are equal."""
    for k in range(0, length - 8, 8):
        if load8(data, a + k) != load8(data, b + k):  # type: ignore[call-arg]
            return False
    return load8(data, a + length - 8) == load8(data, b + length - 8)  # type: ignore[call-arg]


@numba.njit(cache=True)
def _clear_table(table, count):  # type: ignore[no-untyped-def]
    """Empties the least power of two of slots that keeps `count` entries under half -> its mask."""
    size = 16
    while size < 2 * count:
        size *= 2
    table[:size] = -1
    return np.uint64(size - 1)


@numba.njit(cache=True)
def _number_spans(data, starts, ends, count, table, keys, numbers, members):  # type: ignore[no-untyped-def]
    """Gives equal spans equal numbers, in order of first appearance: numbers int32 [count]; members: times, first by number -> distinct spans."""
    mask, distinct = _clear_table(table, count), 0
    for k in range(count):
        start, length = starts[k], ends[k] - starts[k]
        h = _hash_span(data, start, ends[k])
        slot = h & mask
        number = table[slot]
        while number >= 0:
            if keys[number] == h:
                first = members[1, number]
                if ends[first] - starts[first] == length and (
                    length <= 8 or _same_bytes(data, starts[first], start, length)
                ):
                    break
            slot = slot + np.uint64(1) & mask
            number = table[slot]
        if number < 0:
            number = distinct
            table[slot], keys[number] = number, h
            members[0, number], members[1, number] = 0, k
            distinct += 1
        numbers[k] = number
        members[0, number] += 1
    return distinct


@numba.njit(cache=True)
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


@numba.njit(cache=True)
def _keep_repeated(positions, numbers, count, members):  # type: ignore[no-untyped-def]
    """Drops the candidates that occur once -> how many are left."""
    out = 0
    for c in range(count):  # written always, counted when it stays: no branch to guess
        number = numbers[c]
        positions[out], numbers[out] = positions[c], number
        out += members[0, number] > 1
    return out


@numba.njit(cache=True)
def _top_characters(n, num_words, distinct, members, ends_at):  # type: ignore[no-untyped-def]
    """Characters of all occurrences of the commonest n-gram, spaces included; of equals the one that comes first."""
    if num_words < n:
        return 0
    most, first = 1, 0
    for number in range(distinct):
        if members[0, number] > most:
            most, first = members[0, number], members[1, number]
    return most * (ends_at[first + n] - ends_at[first] + n - 1)


@numba.njit(cache=True)
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


@numba.njit(cache=True)
def _count_ngrams(num_words, positions, numbers, table, keys, members, ends_at, out):  # type: ignore[no-untyped-def]
    """All levels, from the numbered words up."""
    for w in range(num_words):
        positions[w] = w
    count = _keep_repeated(positions, numbers, num_words, members)
    for n in range(2, 11):
        count, distinct = _number_pairs(positions, numbers, count, table, keys, members)
        if n <= 4:
            out[n - 2] = _top_characters(n, num_words, distinct, members, ends_at)
        count = _keep_repeated(positions, numbers, count, members)
        if n > 4:
            out[n - 2] = _duplicate_characters(n, positions, numbers, count, members, ends_at)
        if n >= 4 and count == 0:
            return


@numba.njit(cache=True)
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


@numba.njit(cache=True)
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


@numba.njit(cache=True)
def _count_pieces(data, starts, ends, count, table, keys, numbers, members, out):  # type: ignore[no-untyped-def]
    """Pieces, duplicate ones and their characters -> out[0:3]."""
    if count == 1:
        out[0] = 1
        return
    distinct = _number_spans(data, starts, ends, count, table, keys, numbers, members)
    out[0], out[1] = count, count - distinct
    for k in range(count):
        if members[1, numbers[k]] != k:
            out[2] += count_between(data, starts[k], ends[k])


@numba.njit(cache=True)
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


@numba.njit(cache=True)
def _count_characters(data, start, end):  # type: ignore[no-untyped-def]
    continued = 0
    for i in range(start, end, masks.BLOCK):
        continued += masks.ones(masks.continuations(data, i) & masks.below(end - i))
    return end - start - continued


@numba.njit(cache=True)
def _count_documents(offsets, data, words, out):  # type: ignore[no-untyped-def]
    room = _most_pieces(offsets, data, words)
    table, keys, members = np.empty(4 * room + 16, np.int32), np.empty(room, np.uint64), np.empty((2, room), np.int64)
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
        _count_pieces(data, starts, ends, pieces, table, keys, numbers, members, counts[1:4])
        text_start = words.start[first] if last > first else start
        text_end = words.end[last - 1] if last > first else start
        pieces = _cut_at_newlines(run_starts, run_ends, runs, text_start, text_end, 2, starts, ends)
        _count_pieces(data, starts, ends, pieces, table, keys, numbers, members, counts[4:7])
        is_ascii = counts[0] == end - start
        for w in range(first, last):
            length = words.end[w] - words.start[w] if is_ascii else word_characters(data, words.start[w], words.end[w])
            ends_at[w - first + 1] = ends_at[w - first] + length
        _number_spans(data, words.start[first:last], words.end[first:last], last - first, table, keys, numbers, members)
        _count_ngrams(last - first, positions, numbers, table, keys, members, ends_at, counts[FIRST_NGRAM_COUNT:])


def count(offsets: np.ndarray, data: np.ndarray, words: Words) -> np.ndarray:
    """The counts of each document -> int64 [documents, len(COUNTS)]. offsets int64 [documents + 1], data uint8."""
    out = np.zeros((len(offsets) - 1, len(COUNTS)), np.int64)
    _count_documents(offsets, masks.at_least_64(data), words, out)
    return out
