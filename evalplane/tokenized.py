"""Requests as token ids, made once: kept for the next checkpoint, which is asked the same.

In: a tokenizer and requests. Out: (context ids, continuation ids) of each. The whole string is tokenized and parts where the context's own
tokens end to be its tokens; a space at the end of a context goes with the continuation (as lm-eval's `_encode_pair`). Equal contexts share
their array. What is kept is bounded; a text is known by its hash.
"""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b

import numpy as np

from evalplane.task import Request
from triplane.tokenizer import Tokenizer

Pair = tuple[np.ndarray, np.ndarray]  # uint32: context, continuation

KEPT_BYTES = 512 << 20
TEXTS_AT_ONCE, CHARACTERS_AT_ONCE = 4096, 16 << 20
DIGEST_BYTES = 16


class Tokenized:
    """Requests that were tokenized, by the hash of their texts; the first ones go when more than `kept_bytes` are held."""

    def __init__(self, tokenizer: Tokenizer, kept_bytes: int = KEPT_BYTES) -> None:
        self.tokenizer, self.kept_bytes = tokenizer, kept_bytes
        self.pairs: dict[bytes, Pair] = {}
        self.num_bytes = 0

    def __call__(self, requests: Sequence[Request]) -> list[Pair]:
        """(context, continuation) of each request; an empty context is the end-of-text token."""
        keys = [_key(request) for request in requests]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in self.pairs}
        made: dict[bytes, Pair] = {}
        for some in _pieces(missing):
            made.update(zip(some, split_tokens(self.tokenizer, [missing[key] for key in some]), strict=True))
        found = [self.pairs.get(key) or made[key] for key in keys]
        self._keep(made)
        return found

    def _keep(self, made: dict[bytes, Pair]) -> None:
        """An array that several pairs share counts once for each: the bound is on the safe side."""
        self.pairs.update(made)
        self.num_bytes += sum(_size(pair) for pair in made.values())
        while self.num_bytes > self.kept_bytes and self.pairs:
            self.num_bytes -= _size(self.pairs.pop(next(iter(self.pairs))))


def kept(tokenizer: Tokenizer, before: Tokenized | None) -> Tokenized:
    """What was tokenized for another model, where that is the same tokenizer; else nothing yet."""
    is_same = before is not None and before.tokenizer.sha256 == tokenizer.sha256
    return before if before is not None and is_same else Tokenized(tokenizer)


def _key(request: Request) -> bytes:
    digest = blake2b(request.context.encode(), digest_size=DIGEST_BYTES)
    digest.update(b"\0%d\0" % len(request.context))
    digest.update(request.continuation.encode())
    return digest.digest()


def _size(pair: Pair) -> int:
    return pair[0].nbytes + pair[1].nbytes


def _pieces(missing: Mapping[bytes, Request]) -> Iterator[list[bytes]]:
    """Keys in order, so many at once that their texts are not tokenized all together."""
    piece: list[bytes] = []
    room = CHARACTERS_AT_ONCE
    for key, request in missing.items():
        size = len(request.context) + len(request.continuation)
        if piece and (size > room or len(piece) == TEXTS_AT_ONCE):
            yield piece
            piece, room = [], CHARACTERS_AT_ONCE
        piece.append(key)
        room -= size
    if piece:
        yield piece


def split_tokens(tokenizer: Tokenizer, requests: Sequence[Request]) -> list[Pair]:
    """(context ids, continuation ids) of each request; an empty context is the end-of-text token."""
    parts = [_move_spaces(r.context, r.continuation) for r in requests]
    distinct = list(dict.fromkeys([context + after for context, after in parts] + [context for context, _ in parts]))
    ids, offsets = tokenizer.encode(distinct)
    encoded = {text: ids[offsets[i] : offsets[i + 1]] for i, text in enumerate(distinct)}
    contexts: dict[tuple[str, int], np.ndarray] = {}
    made = []
    for context, after in parts:
        before, whole = encoded[context], encoded[context + after]
        shared = _shared(before, whole) if after else len(whole)
        # Copies: a view would keep the ids of all texts.
        start = contexts.setdefault((context, shared), whole[:shared].copy() if shared else _end(tokenizer))
        made.append((start, whole[shared:].copy()))
    return made


def _end(tokenizer: Tokenizer) -> np.ndarray:
    return np.array([tokenizer.eos_id], np.uint32)


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip() if continuation else context
    return kept, context[len(kept) :] + continuation


def _shared(one: np.ndarray, other: np.ndarray) -> int:
    """Length of the common prefix, less one where it would leave no token to score."""
    n = min(len(one), len(other))
    different = np.flatnonzero(one[:n] != other[:n])
    return min(int(different[0]) if len(different) else n, len(other) - 1)
