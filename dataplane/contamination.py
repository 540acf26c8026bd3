"""Which evaluation items a document holds, by preset.

Texts + an index -> matches: document, item, score, the bytes of the match; and the bytes to cut. Presets, all exact:

- `strict`, `simple`: kernels/contamination_clusters.py (decon's score; `strict` lets the question alone decide)
- `flan` (n = 8 unless said), `tulu` (n = 8), `gpt3` (n = 13): kernels/contamination_sets.py
- `paragraph`: a paragraph of 13 words or more is one of an instance, word for word

Scores are shares between 0 and 1: of decon's weights, of an instance's n-grams (flan, gpt3), of its words (tulu, paragraph).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from dataplane.contamination_index import PARAGRAPHS, QUESTIONS, Index
from dataplane.kernels import contamination_clusters as clusters
from dataplane.kernels import contamination_sets as sets
from dataplane.kernels.contamination_table import find, units_of
from dataplane.kernels.contamination_words import FoldedWords
from dataplane.paragraphs import MIN_WORDS, paragraphs
from triplane.errors import UsageError

NO_WORD = np.uint64(0)  # in the place of a word that matched: no item has it
TULU_NGRAM, GPT3_NGRAM, FLAN_NGRAM = 8, 13, 8


@dataclass(frozen=True)
class Matches:
    """document, item: int64 [n]; score: float64 [n]; start, end: int64 [n], bytes of the match (the longest run of several) from the start of the
    document. By document, then by falling score, then by item. spans: int64 [m, 3], document, start, end of all that matched, ascending."""

    document: np.ndarray
    item: np.ndarray
    score: np.ndarray
    start: np.ndarray
    end: np.ndarray
    spans: np.ndarray


def match(
    offsets: np.ndarray, data: np.ndarray, words: FoldedWords, index: Index, preset: str, flan_ngram: int
) -> Matches:
    """The matches of texts (offsets int64 [documents + 1], data uint8) with these words. UsageError for an unknown preset."""
    if preset not in PRESETS:
        raise UsageError(f"contamination preset {preset!r} is unknown: use one of {', '.join(PRESETS)}")
    if preset == "flan":
        return _by_sets(offsets, data, words, index, flan_ngram, sets.FLAN)
    return PRESETS[preset](offsets, data, words, index)


def _by_clusters(is_strict: bool, offsets: np.ndarray, data: np.ndarray, words: FoldedWords, index: Index) -> Matches:
    """Of each item the best cluster, with its score; spans of the others too, found by looking again without the words that matched."""
    rows = clusters.find(words.first, words.hash, index.tables[QUESTIONS], index.items, is_strict)
    found = [rows[:, [0, 4, 5]].astype(np.int64)]
    hashes = words.hash.copy() if len(rows) else words.hash
    while len(found[-1]):
        for document, first, last in found[-1].tolist():
            hashes[words.first[document] + first : words.first[document] + last + 1] = NO_WORD
        texts = np.unique(found[-1][:, 0])
        again = clusters.find(*_some(words.first, hashes, texts), index.tables[QUESTIONS], index.items, is_strict)
        runs = again[:, [0, 4, 5]].astype(np.int64)
        found.append(np.column_stack([texts[runs[:, 0]], runs[:, 1:]]))
    best, runs = found[0], np.concatenate(found)
    return _matches(words, best[:, 0], rows[:, 1].astype(np.int64), rows[:, 2], best[:, 1:], runs)


def _some(first: np.ndarray, hashes: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The words of these texts, one after another: first int64 [texts + 1], hashes."""
    counts = first[texts + 1] - first[texts]
    starts = np.concatenate([[0], np.cumsum(counts)])
    return starts, hashes[np.repeat(first[texts] - starts[:-1], counts) + np.arange(starts[-1])]


def _by_sets(offsets: np.ndarray, data: np.ndarray, words: FoldedWords, index: Index, n: int, rule: int) -> Matches:
    rows = sets.find(words.first, words.hash, index.instances(n), n, rule)
    return _of_runs(words, index, rows)


def _by_paragraphs(offsets: np.ndarray, data: np.ndarray, words: FoldedWords, index: Index) -> Matches:
    """A run is a paragraph; an instance's score is the share of its words that lie in paragraphs the document has."""
    table, found = index.tables[PARAGRAPHS], paragraphs(offsets, data, words, MIN_WORDS)
    rows: list[tuple[float, ...]] = []
    for document, first, last, h in zip(*(column.tolist() for column in found), strict=True):
        gram = find(table, np.uint64(h))
        if gram >= 0:
            holders, start, end = units_of(table, gram)
            units = holders[start:end].tolist()
            begin = int(words.first[document])
            rows += [(document, unit, last - first + 1, first - begin, last - begin, gram) for unit in units]
    best = _paragraph_scores(rows, table.unit_words)
    rows = [(row[0], row[1], best[row[:2]], *row[3:5]) for row in sorted(rows)]
    return _of_runs(words, index, np.array(rows, np.float64).reshape(-1, 5))


def _paragraph_scores(rows: list[tuple[float, ...]], unit_words: np.ndarray) -> dict[tuple[float, ...], float]:
    """(document, unit) -> score; a paragraph that stands twice counts once."""
    once = {(row[0], row[1], row[5]): row[2] for row in rows}
    total: dict[tuple[float, ...], float] = {}
    for (document, unit, _), count in once.items():
        total[document, unit] = total.get((document, unit), 0.0) + count
    return {pair: min(1.0, count / float(unit_words[int(pair[1])])) for pair, count in total.items()}


def _of_runs(words: FoldedWords, index: Index, rows: np.ndarray) -> Matches:
    """rows: document, instance, score, first and last word of a run; the runs of a match one after another."""
    pairs = rows[:, 0] * (len(index.instance_first)) + rows[:, 1]
    starts = np.flatnonzero(np.diff(pairs, prepend=-1.0))
    ends = np.append(starts[1:], len(rows))[: len(starts)]
    document, item, score, best = [], [], [], []
    for start, end in zip(starts, ends, strict=True):
        longest = start + int(np.argmax(rows[start:end, 4] - rows[start:end, 3]))
        unit = int(rows[start, 1])
        held = index.instance_items[index.instance_first[unit] : index.instance_first[unit + 1]].tolist()
        document += [int(rows[start, 0])] * len(held)
        item += held
        score += [float(rows[start, 2])] * len(held)
        best += [rows[longest, 3:].tolist()] * len(held)
    spans = np.array(best, np.int64).reshape(-1, 2)
    runs = rows[:, [0, 3, 4]].astype(np.int64)
    return _matches(words, np.array(document, np.int64), np.array(item, np.int64), np.array(score), spans, runs)


def _matches(
    words: FoldedWords, document: np.ndarray, item: np.ndarray, score: np.ndarray, spans: np.ndarray, runs: np.ndarray
) -> Matches:
    """spans: int64 [n, 2], first and last word of each match; runs: int64 [m, 3], document, first and last word of what matched."""
    order = np.lexsort((item, -score, document))
    document, spans = document[order], spans[order]
    start, end = _bytes(words, document, spans)
    cut = np.column_stack([runs[:, 0], *_bytes(words, runs[:, 0], runs[:, 1:])])
    return Matches(document, item[order], score[order], start, end, np.unique(cut, axis=0))


def _bytes(words: FoldedWords, document: np.ndarray, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first = words.first[document]
    return words.start[first + spans[:, 0]].astype(np.int64), words.end[first + spans[:, 1]].astype(np.int64)


PRESETS: dict[str, Callable[..., Matches]] = {
    "strict": partial(_by_clusters, True),
    "simple": partial(_by_clusters, False),
    "flan": partial(_by_sets, n=FLAN_NGRAM, rule=sets.FLAN),
    "tulu": partial(_by_sets, n=TULU_NGRAM, rule=sets.TULU),
    "gpt3": partial(_by_sets, n=GPT3_NGRAM, rule=sets.GPT3),
    "paragraph": _by_paragraphs,
}
