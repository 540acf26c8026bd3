"""Paragraphs as decontamination compares them: the words between line ends, whole.

Texts and their words -> a hash of all words of each paragraph that has enough of them. Source: allenai/dolma
`configs/dolma-v1_6/decontamination/README.md` (paragraphs of at least 13 words).
"""

from typing import NamedTuple

import numba
import numpy as np

from dataplane.kernels.contamination_table import ngram_hashes
from dataplane.kernels.contamination_words import FoldedWords

MIN_WORDS = 13


class Paragraphs(NamedTuple):
    """document: int64 [paragraphs]; first, last: int64, the number of its first and last word among all; hash: uint64."""

    document: np.ndarray
    first: np.ndarray
    last: np.ndarray
    hash: np.ndarray


@numba.njit(cache=True)
def _begins(offsets, data, word_first, start, end, begins):  # type: ignore[no-untyped-def]
    """Marks the words before which, in their document, a line ends or nothing is."""
    for document in range(len(offsets) - 1):
        position = offsets[document]
        for w in range(word_first[document], word_first[document + 1]):
            is_new = w == word_first[document]
            for i in range(position, offsets[document] + start[w]):
                is_new = is_new or data[i] == 10
            begins[w] = is_new
            position = offsets[document] + end[w]


@numba.njit(cache=True)
def _hash_all(words, first, last, out):  # type: ignore[no-untyped-def]
    for p in range(len(first)):
        ngram_hashes(words, first[p], 1, last[p] - first[p] + 1, out[p : p + 1])


def paragraphs(offsets: np.ndarray, data: np.ndarray, words: FoldedWords, least_words: int) -> Paragraphs:
    """Those of at least `least_words` words. offsets int64 [documents + 1], data uint8, and what `fold` gives for them."""
    begins = np.zeros(len(words.hash), np.bool_)
    _begins(offsets, data, words.first, words.start, words.end, begins)
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(begins))[: len(first)] - 1
    is_long = last - first + 1 >= least_words
    first, last = first[is_long], last[is_long]
    hashes = np.empty(len(first), np.uint64)
    _hash_all(words.hash, first, last, hashes)
    return Paragraphs(np.searchsorted(words.first, first, side="right") - 1, first, last, hashes)
