"""Cutting at added tokens, against a slow and obvious reference."""

import itertools
import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from triplane import added_tokens
from triplane.added_tokens import STAYS_TEXT

SPELLINGS = {"<|x|>": 7, "<|x|>y": 8, "<|end|>": STAYS_TEXT, "||": 9, "|||m|||": 10, "é": 11}


def buffers(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    raw = [text.encode() for text in texts]
    data = np.frombuffer(b"".join(raw), np.uint8)
    return data, np.cumsum([0, *(len(item) for item in raw)]).astype(np.int64)


def slow_ids(text: str) -> list[int]:
    """Text bytes as themselves, added tokens as 1000 + id. Longest first in the alternation is longest at that place."""
    pattern = "|".join(re.escape(s) for s in sorted(SPELLINGS, key=lambda s: -len(s.encode())))
    ids: list[int] = []
    for part in re.split(f"({pattern})", text):
        token = SPELLINGS.get(part, STAYS_TEXT)
        ids += [1000 + token] if token != STAYS_TEXT else list(part.encode())
    return ids


def fast_ids(texts: list[str]) -> list[list[int]]:
    """The same through `cut` and `put_back`, the identity on bytes as the encoder."""
    trie = added_tokens.automaton([s.encode() for s in SPELLINGS], list(SPELLINGS.values()))
    data, offsets = buffers(texts)
    pieces = added_tokens.cut(trie, data, offsets)
    if pieces is None:
        return [list(text.encode()) for text in texts]
    shifted = added_tokens.Pieces(pieces.bounds, pieces.first_piece, pieces.added, pieces.ids + np.uint32(1000))
    ids, new_offsets = added_tokens.put_back(shifted, data.astype(np.uint32), pieces.bounds)
    return [ids[a:b].tolist() for a, b in itertools.pairwise(new_offsets)]


def test_added_tokens_become_ids_and_special_ones_stay_text() -> None:
    assert fast_ids(["a<|x|>b", "", "<|end|>"]) == [[97, 1007, 98], [], list(b"<|end|>")]
    assert fast_ids(["||||||m|||"]) == [[1009, 1009, 1009, 109, 1009, 124]]  # the leftmost wins
    assert fast_ids(["<|x|>y", "<|x|>z"]) == [[1008], [1007, 122]]  # the longest wins


def test_a_match_never_crosses_documents() -> None:
    assert fast_ids(["<|x", "|>"]) == [list(b"<|x"), list(b"|>")]


def test_text_without_added_tokens_is_not_cut() -> None:
    trie = added_tokens.automaton([b"<|x|>", b"<|end|>"], [7, STAYS_TEXT])
    assert added_tokens.cut(trie, *buffers(["plain < | x", "<|end|>", ""])) is None
    assert added_tokens.cut(trie, *buffers([])) is None
    assert added_tokens.cut(added_tokens.automaton([], []), *buffers(["text"])) is None


@given(
    st.lists(
        st.lists(st.sampled_from([*SPELLINGS, "<", "|", "x", "<|", "|m", "y", "日", "e"])).map("".join), max_size=6
    )
)
def test_equals_the_slow_reference(texts: list[str]) -> None:
    assert fast_ids(texts) == [slow_ids(text) for text in texts]
