"""Presets `simple` and `strict`: clusters of a question's n-grams in a document, weighed by idf, with the answer and the passage near them.

Words of documents + the table of questions + items -> one row a matched item: score, the question's share, the span in words. A cluster is a
maximal run of a question's n-grams with fewer than `MAX_MISSES` others in a row between; of several in a document the heaviest counts. `simple`
is decon's rule: all weights, both confidences, the ramp of the threshold over all words of the item. `strict` flags (a) by the same score against
a ramp over the words that matched, and (b) by the question alone, by its length; a question under `ALONE_WORDS` never decides alone. Every pair
above a threshold is found: what is left out beforehand weighs less in the whole document than any cluster would have to.

Sources: allenai/decon e1bcb80 `doc/simple-details.md`, `src/detect/scoring.rs`, `config/default.yaml`. Ours: words in the place of cl100k tokens,
every n-gram probed instead of every tenth, idf ln((N + 1) / df) so that one item alone has weight too, the passage looked for in one window.
"""

from typing import NamedTuple

import numba
import numpy as np

from dataplane.kernels.contamination_table import CHUNK, NONE, hits, ngram_hashes, units_of

QUESTION_WORDS, ANSWER_WORDS, PASSAGE_WORDS = 5, 3, 4  # the n of each part's n-grams
MAX_MISSES = 11
HOT = 256  # an n-gram of more questions starts no match
SHORT_ANSWER, SHORT_WINDOW, LONG_WINDOW, PASSAGE_WINDOW = 3, 50, 100, 100
SIMPLE_THRESHOLD, STRICT_THRESHOLD, STRICT_ALONE, STRICT_QUESTION = 0.8, 0.5, 0.4, 0.3
SIMPLE_LEAST = 0.42  # of a question, whatever its answer and passage: (0.8 - 0.65) / 0.35, the least weight that a question can have
ALONE_WORDS = 8  # a shorter question needs its answer or its passage
EPSILON = 1e-9


class Items(NamedTuple):
    """question_first: uint32 [questions + 1], question_items: uint32: the items of a question. item_answer, item_passage: uint32 [items], NONE where
    there is none. Of each answer the words (uint64 hashes), its distinct 3-grams ascending and their idf; of each passage the 4-grams and words."""

    question_first: np.ndarray
    question_items: np.ndarray
    item_answer: np.ndarray
    item_passage: np.ndarray
    answer_first: np.ndarray
    answer_words: np.ndarray
    answer_gram_first: np.ndarray
    answer_grams: np.ndarray
    answer_weight: np.ndarray
    passage_gram_first: np.ndarray
    passage_grams: np.ndarray
    passage_weight: np.ndarray
    passage_words: np.ndarray


class Scratch(NamedTuple):
    """What a document needs while it is looked at. seen, counted: int32 [grams]; sums: float64 [units]; touched: int64 [units]."""

    buffer: np.ndarray
    positions: np.ndarray
    grams: np.ndarray
    seen: np.ndarray
    counted: np.ndarray
    sums: np.ndarray
    touched: np.ndarray


def scratch(num_grams: int, num_units: int, most_words: int) -> Scratch:
    """For documents of at most `most_words` words."""
    return Scratch(
        np.empty(CHUNK, np.uint64),
        np.empty(most_words, np.int64),
        np.empty(most_words, np.int64),
        np.zeros(num_grams, np.int32),
        np.zeros(num_grams, np.int32),
        np.zeros(num_units, np.float64),
        np.empty(num_units, np.int64),
    )


@numba.njit(cache=True)
def _candidates(table, num_hits, stamp, least, s):  # type: ignore[no-untyped-def]
    """Writes the questions whose n-grams in the document weigh `least` of all of theirs -> how many."""
    hot, touched = 0.0, 0
    for k in range(num_hits):
        gram = s.grams[k]
        if s.seen[gram] == stamp:
            continue
        s.seen[gram] = stamp
        units, start, end = units_of(table, gram)
        if end - start > HOT:
            hot += table.weight[gram]
            continue
        for p in range(start, end):
            unit = units[p]
            if s.sums[unit] == 0.0:
                s.touched[touched] = unit
                touched += 1
            s.sums[unit] += table.weight[gram]
    kept = 0
    for t in range(touched):
        unit = s.touched[t]
        if s.sums[unit] + hot >= least * table.unit_weight[unit] - EPSILON:
            s.touched[kept] = unit
            kept += 1
        s.sums[unit] = 0.0
    return kept


@numba.njit(cache=True)
def _contains(grams, start, end, h):  # type: ignore[no-untyped-def]
    """The place of h in the ascending grams[start:end]; -1."""
    low, high = np.int64(start), np.int64(end)
    while low < high:
        middle = (low + high) // 2
        if grams[middle] < h:
            low = middle + 1
        else:
            high = middle
    return low if low < end and grams[low] == h else -1


@numba.njit(cache=True)
def _best_cluster(table, unit, num_hits, token, s):  # type: ignore[no-untyped-def]
    """The heaviest cluster of a question -> (its weight, first and last place, the tokens used up)."""
    start, end = table.unit_first[unit], table.unit_first[unit + 1]
    best, best_first, best_last = -1.0, 0, 0
    weight, first, last = 0.0, -1, -1
    for k in range(num_hits):
        gram, at = s.grams[k], s.positions[k]
        if _contains(table.unit_grams, start, end, np.uint32(gram)) < 0:
            continue
        if first < 0 or at - last > MAX_MISSES:
            first, weight, token = at, 0.0, token + 1
        if s.counted[gram] != token:
            s.counted[gram] = token
            weight += table.weight[gram]
        last = at
        if weight > best + EPSILON:
            best, best_first, best_last = weight, first, last
    return best, best_first, best_last, token


@numba.njit(cache=True)
def _overlap(words, start, end, n, grams, weights, low, high):  # type: ignore[no-untyped-def]
    """Of the grams[low:high] of a part, the share by weight among the words [start, end) -> (share, the last word that matched or -1)."""
    found, buffer, total, matched, last = np.zeros(high - low, np.bool_), np.empty(1, np.uint64), 0.0, 0.0, -1
    for i in range(low, high):
        total += weights[i]
    for at in range(start, end - n + 1):
        ngram_hashes(words, at, 1, n, buffer)
        place = _contains(grams, low, high, buffer[0])
        if place >= 0:
            last = at + n - 1
            if not found[place - low]:
                found[place - low] = True
                matched += weights[place]
    return (matched / total if total > 0.0 else 0.0), last


@numba.njit(cache=True)
def _answer(items, answer, words, start, end):  # type: ignore[no-untyped-def]
    """An answer behind a question -> (overlap, its last word or -1)."""
    low, high = items.answer_first[answer], items.answer_first[answer + 1]
    length = np.int64(high - low)
    if length <= SHORT_ANSWER:
        for at in range(start, min(start + SHORT_WINDOW, end - length + 1)):
            same = True
            for k in range(length):
                same = same and words[at + k] == items.answer_words[low + k]
            if same:
                return 1.0, at + length - 1
        return 0.0, -1
    stop = min(end, start + max(LONG_WINDOW, 2 * length))
    first, last = items.answer_gram_first[answer], items.answer_gram_first[answer + 1]
    return _overlap(words, start, stop, ANSWER_WORDS, items.answer_grams, items.answer_weight, first, last)


@numba.njit(cache=True)
def _passage(items, passage, words, start, end, first, last):  # type: ignore[no-untyped-def]
    """A passage around the words [first, last] of a document [start, end) -> overlap."""
    reach = PASSAGE_WINDOW + 2 * np.int64(items.passage_words[passage])
    low, high = items.passage_gram_first[passage], items.passage_gram_first[passage + 1]
    window = (max(start, first - reach), min(end, last + 1 + reach))
    return _overlap(words, window[0], window[1], PASSAGE_WORDS, items.passage_grams, items.passage_weight, low, high)[0]


@numba.njit(cache=True)
def required(words, start, end, threshold):  # type: ignore[no-untyped-def]
    """1 up to `start` words, `threshold` from `end` on, linear between."""
    if words <= start:
        return 1.0
    return threshold if words >= end else 1.0 - (1.0 - threshold) * (words - start) / (end - start)


@numba.njit(cache=True)
def base_score(question, num_grams, has_answer, answer, answer_words, has_passage, passage):  # type: ignore[no-untyped-def]
    """decon's weighted sum of the overlaps, with what a short question or answer loses given to the other parts."""
    confidence = 0.5 + 0.5 * min(1.0, num_grams / 20.0)
    if has_answer and has_passage:
        sure = 0.5 + 0.5 * min(1.0, answer_words / 4.0)
        of_answer, of_passage = 0.2 + 0.35 * (1.0 - confidence), 0.1 + 0.35 * (1.0 - confidence)
        return (
            0.7 * confidence * question + of_answer * sure * answer + (of_passage + of_answer * (1.0 - sure)) * passage
        )
    if has_answer:
        return 0.75 * confidence * question + (1.0 - 0.75 * confidence) * answer
    if has_passage:
        return 0.85 * confidence * question + (1.0 - 0.85 * confidence) * passage
    return question


@numba.njit(cache=True)
def is_flagged(is_strict, score, question, num_words, all_words, matched_words):  # type: ignore[no-untyped-def]
    """num_words: of the question; all_words: of the item; matched_words: those of each part times its overlap."""
    if not is_strict:
        return score >= required(all_words, 20, 50, SIMPLE_THRESHOLD) - EPSILON
    if num_words < ALONE_WORDS and matched_words <= question * num_words:
        return False
    if num_words >= ALONE_WORDS and question >= required(num_words, 10, 25, STRICT_ALONE) - EPSILON:
        return True
    return question >= STRICT_QUESTION and score >= required(matched_words, 20, 50, STRICT_THRESHOLD) - EPSILON


@numba.njit(cache=True)
def _judge(table, items, unit, item, question, words, bounds, cluster, is_strict):  # type: ignore[no-untyped-def]
    """One item at a cluster -> (flagged, score, last word of the match)."""
    answer, passage = items.item_answer[item], items.item_passage[item]
    num_words = np.int64(table.unit_words[unit])
    all_words, matched = num_words, question * num_words
    answer_words, of_answer, of_passage, last = np.int64(0), 0.0, 0.0, cluster[1]
    if answer != NONE:
        answer_words = np.int64(items.answer_first[answer + 1]) - np.int64(items.answer_first[answer])
        of_answer, end = _answer(items, answer, words, cluster[1] + 1, bounds[1])
        last = max(last, end)
        all_words += answer_words
        matched += of_answer * answer_words
    if passage != NONE:
        of_passage = _passage(items, passage, words, bounds[0], bounds[1], cluster[0], cluster[1])
        all_words += np.int64(items.passage_words[passage])
        matched += of_passage * items.passage_words[passage]
    num_grams = np.int64(table.unit_first[unit + 1]) - np.int64(table.unit_first[unit])
    score = base_score(question, num_grams, answer != NONE, of_answer, answer_words, passage != NONE, of_passage)
    return is_flagged(is_strict, score, question, num_words, all_words, matched), score, last


@numba.njit(cache=True)
def _with_row(rows, count, row):  # type: ignore[no-untyped-def]
    if count == len(rows):
        larger = np.empty((2 * count + 16, rows.shape[1]), np.float64)
        larger[:count] = rows
        rows = larger
    for k in range(len(row)):
        rows[count, k] = row[k]
    return rows


@numba.njit(cache=True)
def _find(first, words, table, items, is_strict, s):  # type: ignore[no-untyped-def]
    rows, count, token = np.empty((16, 6), np.float64), 0, 0
    least = STRICT_QUESTION if is_strict else SIMPLE_LEAST
    for document in range(len(first) - 1):
        bounds = (first[document], first[document + 1])
        num_hits = hits(table, QUESTION_WORDS, words, bounds[0], bounds[1], s.buffer, s.positions, s.grams)
        for t in range(_candidates(table, num_hits, document + 1, least, s)):
            unit = s.touched[t]
            weight, start, last, token = _best_cluster(table, unit, num_hits, token, s)
            question = weight / table.unit_weight[unit]
            if question < least - EPSILON:
                continue
            cluster = (start, last + QUESTION_WORDS - 1)
            for i in range(items.question_first[unit], items.question_first[unit + 1]):
                item = items.question_items[i]
                found, score, end = _judge(table, items, unit, item, question, words, bounds, cluster, is_strict)
                if found:
                    row = (
                        float(document),
                        float(item),
                        score,
                        question,
                        float(start - bounds[0]),
                        float(end - bounds[0]),
                    )
                    rows = _with_row(rows, count, row)
                    count += 1
    return rows[:count]


def find(first: np.ndarray, words: np.ndarray, table: NamedTuple, items: Items, is_strict: bool) -> np.ndarray:
    """float64 [matches, 6]: document, item, score, share of the question, first and last word of the match in its document.

    first int64 [documents + 1], words uint64: as `contamination_words.fold` gives them. By document; in one, by first match.
    """
    most = int(np.diff(first).max(initial=0))
    s = scratch(len(table.hashes), len(table.unit_words), most)  # type: ignore[attr-defined]
    return _find(first, words, table, items, is_strict, s)  # type: ignore[no-any-return]
