"""What backends over token ids share: from requests to pairs and prompts of ids, and back to results in request order.

In: a backend's tokenizer and limit, and its function from ids to scores or texts. Out: what `Backend` of evalplane.task promises.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from evalplane.task import Loglikelihood, Request
from evalplane.tokenized import Pair, Tokenized
from triplane.errors import TriplaneError

Scores = Callable[[Sequence[Pair]], Sequence[tuple[float, bool]]]
Answers = Callable[[list[np.ndarray], int, tuple[str, ...]], list[str]]


class OverIds(Protocol):
    """A backend that knows its tokens."""

    @property
    def tokenized(self) -> Tokenized: ...

    @property
    def max_length(self) -> int: ...


def lengths(pairs: Sequence[Pair], requests: Sequence[Request]) -> list[int]:
    """Tokens of context, continuation and answer together."""
    return [len(c) + len(t) + r.max_new_tokens for (c, t), r in zip(pairs, requests, strict=True)]


def loglikelihood(backend: OverIds, requests: Sequence[Request], scores: Scores) -> list[Loglikelihood | None]:
    """Identical (context, continuation) pairs are asked once; documents (no context) longer than the limit in windows of it."""
    distinct = {(r.context, r.continuation): r for r in requests}
    found: dict[tuple[str, str], Loglikelihood | None] = dict.fromkeys(distinct)
    windows: list[Pair] = []
    owners: list[tuple[str, str]] = []
    for (text, request), pair in zip(distinct.items(), backend.tokenized(list(distinct.values())), strict=True):
        for window in _windows(pair, backend.max_length, is_document=not request.context):
            windows.append(window)
            owners.append(text)
    for text, (_, target), (total, is_greedy) in zip(owners, windows, scores(windows), strict=True):
        before = found[text] or Loglikelihood(0.0, True, 0)
        summed = before.total + number(total)
        found[text] = Loglikelihood(summed, before.is_greedy and is_greedy, before.num_tokens + len(target))
    for context, continuation in distinct:
        if not context and not found[context, continuation]:
            found[context, continuation] = Loglikelihood(0.0, False, 0)  # a document without a token
    return [found[r.context, r.continuation] for r in requests]


def _windows(pair: Pair, limit: int, is_document: bool) -> list[Pair]:
    """A document cut every `limit` tokens, each window after the token before it; another request whole, or not at all."""
    context, target = pair
    if not is_document:
        return [pair] if len(context) + len(target) <= limit else []
    stream = np.concatenate((context, target))
    return [(stream[at : at + 1], target[at : at + limit]) for at in range(0, len(target), limit)]


def generate(backend: OverIds, requests: Sequence[Request], answers: Answers) -> list[str | None]:
    """Requests of equal limits together; None where prompt and answer do not fit."""
    prompts = backend.tokenized(requests)
    found: list[str | None] = [None] * len(requests)
    groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
    for i, request in enumerate(requests):
        if len(prompts[i][0]) + request.max_new_tokens <= backend.max_length:
            groups.setdefault((request.max_new_tokens, request.stop), []).append(i)
    for (max_new_tokens, stop), members in groups.items():
        texts = answers([prompts[i][0] for i in members], max_new_tokens, stop)
        for i, text in zip(members, texts, strict=True):
            found[i] = text
    return found


def number(value: float) -> float:
    """The log-likelihood; TriplaneError where it is not a number."""
    if not math.isfinite(value):
        raise TriplaneError(
            f"the model gave a log-likelihood of {value}; its weights or logits hold values that are not numbers"
        )
    return float(value)
