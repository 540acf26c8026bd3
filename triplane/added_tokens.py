"""Added tokens: Arrow text buffers -> the pieces between them, and ids with them put back.

A tokenizer first cuts a text at its added tokens (the leftmost, and of those the longest), then encodes each piece on its
own. Doing that cut here leaves the encoder with ordinary text only, which halves its time, and makes one rule of which
spelling counts: an added token with `special: false` (a PII mask) is its id; one with `special: true` is matched too, so
that nothing inside it matches, and stays text.

Source: `AddedVocabulary::extract_and_normalize` of Hugging Face tokenizers 0.23 with `encode_special_tokens`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

STAYS_TEXT = -1
_NOT_AN_END = -2
_BYTES = 256


@dataclass(frozen=True)
class Automaton:
    """A trie of spellings: `next_node` int32 [nodes, 256], 0 = no way on; `id_at` int64 [nodes], what ends there."""

    next_node: np.ndarray
    id_at: np.ndarray


@dataclass(frozen=True)
class Pieces:
    """Documents cut at their added tokens: document j is pieces `first_piece[j]` to `first_piece[j + 1]`.

    bounds: int64 [pieces + 1] into the text. added: int64 [matches], which pieces are added tokens; ids: uint32 [matches].
    """

    bounds: np.ndarray
    first_piece: np.ndarray
    added: np.ndarray
    ids: np.ndarray


def automaton(spellings: Sequence[bytes], ids: Sequence[int]) -> Automaton:
    """The trie of added tokens; the id of one that stays text is `STAYS_TEXT`."""
    nodes: list[dict[int, int]] = [{}]
    ends = [_NOT_AN_END]
    for spelling, token in zip(spellings, ids, strict=True):
        node = 0
        for byte in spelling:
            if byte not in nodes[node]:
                nodes[node][byte] = len(nodes)
                nodes.append({})
                ends.append(_NOT_AN_END)
            node = nodes[node][byte]
        ends[node] = token
    next_node = np.zeros((len(nodes), _BYTES), np.int32)
    for node, ways in enumerate(nodes):
        for byte, target in ways.items():
            next_node[node, byte] = target
    return Automaton(next_node, np.array(ends, np.int64))


def cut(trie: Automaton, data: np.ndarray, offsets: np.ndarray) -> Pieces | None:
    """The pieces of documents, or None when no document holds an added token that becomes an id.

    data: uint8 [bytes]. offsets: int64 [docs + 1] into it.
    """
    count = _matches(data, offsets, trie.next_node, trie.id_at, np.empty((0, 4), np.int64))
    if count == 0:
        return None
    found = np.empty((count, 4), np.int64)
    _matches(data, offsets, trie.next_node, trie.id_at, found)
    documents, starts, ends, ids = found.T
    docs = len(offsets) - 1
    # A document with k matches is 2k + 1 pieces, so match m of all, in document j, is piece j + 2m + 1.
    added = documents + 2 * np.arange(count) + 1
    first_piece = np.arange(docs + 1) + 2 * np.searchsorted(documents, np.arange(docs + 1))
    bounds = np.empty(docs + 2 * count + 1, np.int64)
    bounds[first_piece] = offsets
    bounds[added] = starts
    bounds[added + 1] = ends
    return Pieces(bounds, first_piece, added, ids.astype(np.uint32))


def put_back(pieces: Pieces, ids: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Document ids and offsets from the encoded pieces, whatever was encoded for an added token replaced by its id.

    ids: uint32 [n]. offsets: int64 [pieces + 1]. Returns ids uint32 and offsets int64 [docs + 1].
    """
    lengths = np.diff(offsets)
    is_added = np.zeros(len(lengths), np.bool_)
    is_added[pieces.added] = True
    text_ids = ids[np.repeat(~is_added, lengths)]
    lengths[pieces.added] = 1
    new_offsets = np.concatenate([[0], np.cumsum(lengths)])
    out = np.empty(new_offsets[-1], np.uint32)
    from_added = np.repeat(is_added, lengths)
    out[from_added] = pieces.ids
    out[~from_added] = text_ids
    return out, new_offsets[pieces.first_piece]


@numba.njit(cache=True, nogil=True)
def _longest_match(data: np.ndarray, start: int, end: int, next_node: np.ndarray, id_at: np.ndarray) -> Any:
    """(end of the longest spelling that starts here, its id), or (start, _NOT_AN_END)."""
    node = np.int32(0)
    best_end, best_id = start, np.int64(_NOT_AN_END)
    for i in range(start, end):
        node = next_node[node, data[i]]
        if node == 0:
            break
        if id_at[node] != _NOT_AN_END:
            best_end, best_id = i + 1, id_at[node]
    return best_end, best_id


@numba.njit(cache=True, nogil=True)
def _matches(data: np.ndarray, offsets: np.ndarray, next_node: np.ndarray, id_at: np.ndarray, found: np.ndarray) -> int:
    """Counts the matches that become ids; the first len(found) are written as rows (document, start, end, id)."""
    count = 0
    may_start = next_node[0] != 0
    for document in range(len(offsets) - 1):
        position, end = offsets[document], offsets[document + 1]
        while position < end:
            if not may_start[data[position]]:
                position += 1
                continue
            match_end, token = _longest_match(data, position, end, next_node, id_at)
            if token >= 0:
                if count < len(found):
                    found[count, 0], found[count, 1] = document, position
                    found[count, 2], found[count, 3] = match_end, token
                count += 1
            position = max(match_end, position + 1)
    return count
