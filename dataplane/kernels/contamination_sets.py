"""Presets `flan`, `tulu` and `gpt3`: which n-grams of an instance a document has, wherever they are.

Words of documents + the table of instances -> one row a run of an instance's n-grams in a flagged document. An n-gram that more than `MOST_UNITS`
instances have (a question's template) makes no document a candidate, so that it never matches everything, but counts once another one has.

Sources: OLMo 2 (arXiv 2501.00656, section 4.3): FLAN documents with at least 10 % of n-grams in common with any task instance; Tulu 3 (arXiv
2411.15124): 8-grams, more than half of the tokens; GPT-3 (arXiv 2005.14165, appendix C): 13-grams, and n-grams seen more than 10 times do not count.
"""

from typing import NamedTuple

import numba
import numpy as np

from dataplane.kernels.contamination_clusters import EPSILON, _with_row, scratch
from dataplane.kernels.contamination_table import NONE, hits, units_of

MOST_UNITS = 10
FLAN, TULU, GPT3 = 0, 1, 2
FLAN_SHARE, TULU_COVERAGE = 0.1, 0.5


@numba.njit(cache=True)
def _touched(table, num_hits, stamp, units, s):  # type: ignore[no-untyped-def]
    """Marks the document's n-grams and writes the instances that have one that few have -> how many."""
    count = 0
    for k in range(num_hits):
        gram = s.grams[k]
        if s.seen[gram] == stamp:
            continue
        s.seen[gram] = stamp
        holders, start, end = units_of(table, gram)
        if end - start > MOST_UNITS:
            continue
        for p in range(start, end):
            unit = holders[p]
            if units[unit] != stamp:
                units[unit] = stamp
                s.touched[count] = unit
                count += 1
    return count


@numba.njit(cache=True)
def _score(table, unit, n, stamp, rule, s):  # type: ignore[no-untyped-def]
    """(flagged, the share of an instance's n-grams or words that the document has)."""
    start, end = table.unit_first[unit], table.unit_first[unit + 1]
    matched, covered, reach = 0, 0, 0
    for i in range(start, end):
        gram, at = table.unit_grams[i], np.int64(i - start)
        if gram != NONE and s.seen[gram] == stamp:
            matched += 1
            covered += at + n - max(reach, at)
            reach = at + n
    share = matched / max(1, end - start)
    if rule == TULU:
        coverage = covered / table.unit_words[unit]
        return coverage > TULU_COVERAGE + EPSILON, coverage
    return rule == GPT3 or share >= FLAN_SHARE - EPSILON, share


@numba.njit(cache=True)
def _runs(table, unit, n, num_hits, token, s, rows, count, head):  # type: ignore[no-untyped-def]
    """Writes a row for each run of an instance's n-grams in the document (head: document, unit, score, first word of the document)."""
    for i in range(table.unit_first[unit], table.unit_first[unit + 1]):
        if table.unit_grams[i] != NONE:
            s.counted[table.unit_grams[i]] = token
    first, last = -1, -1
    for k in range(num_hits):
        if s.counted[s.grams[k]] != token:
            continue
        at = s.positions[k]
        if first >= 0 and at > last + 1:
            rows = _with_row(rows, count, (head[0], head[1], head[2], first - head[3], last - head[3]))
            count += 1
            first = -1
        first = at if first < 0 else first
        last = at + n - 1
    rows = _with_row(rows, count, (head[0], head[1], head[2], first - head[3], last - head[3]))
    return rows, count + 1


@numba.njit(cache=True)
def _find(first, words, table, n, rule, s):  # type: ignore[no-untyped-def]
    rows, count, token = np.empty((16, 5), np.float64), 0, 0
    units = np.zeros(len(table.unit_words), np.int32)
    for document in range(len(first) - 1):
        num_hits = hits(table, n, words, first[document], first[document + 1], s.buffer, s.positions, s.grams)
        for t in range(_touched(table, num_hits, document + 1, units, s)):
            unit = s.touched[t]
            found, score = _score(table, unit, n, document + 1, rule, s)
            if found:
                token += 1
                head = (float(document), float(unit), score, float(first[document]))
                rows, count = _runs(table, unit, n, num_hits, token, s, rows, count, head)
    return rows[:count]


def find(first: np.ndarray, words: np.ndarray, table: NamedTuple, n: int, rule: int) -> np.ndarray:
    """float64 [runs, 5]: document, instance, score, first and last word of a run in its document; all runs of a match one after another.

    first int64 [documents + 1], words uint64: as `contamination_words.fold` gives them. rule: FLAN, TULU or GPT3.
    """
    most = int(np.diff(first).max(initial=0))
    s = scratch(len(table.hashes), len(table.unit_words), most)  # type: ignore[attr-defined]
    return _find(first, words, table, n, rule, s)  # type: ignore[no-any-return]
