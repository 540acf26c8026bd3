"""What a suite would have a model read, counted without a model: tokens as the native back end plans them, and the fewest possible.

In: a suite, a tokenizer, where the data is. Out: for each task and format the input tokens of its log-likelihood requests: one forward a request
(`one_by_one`), as planned shard by shard (`planned`), and the nodes of the trie of all of them (`fewest`), which no order of work undercuts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evalplane import data, formats, shards
from evalplane.task import Format, Suite
from evalplane.tokenized import Pair, Tokenized
from triplane.lm import prefix_tree
from triplane.lm.engine import BATCH_TOKENS
from triplane.tokenizer import Tokenizer

MAX_LENGTH = 4096  # of OLMo 2


@dataclass(frozen=True)
class Tokens:
    """Input tokens of some requests."""

    requests: int
    one_by_one: int
    planned: int
    fewest: int

    @property
    def over_fewest(self) -> float:
        return self.planned / self.fewest

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple[int, int, int, int]:
        return self.requests, self.one_by_one, self.planned, self.fewest


def tokens(
    suite: Suite,
    tokenizer: Tokenizer,
    folders: Sequence[str],
    root: str = "",
    limit: int | None = None,
    max_length: int = MAX_LENGTH,
) -> dict[str, Tokens]:
    """By `task:format`; generated answers are left out, their number is not known before. NotFound where data is missing."""
    found = {}
    for task in suite.tasks:
        ready = data.prepare(task, data.inputs(task.data, folders, root), data.shot_inputs(task, folders), limit)
        for name, format in task.formats.items():
            if format.kind != "generate":
                found[f"{task.name}:{name}"] = _of_format(format, task.name, name, ready, tokenizer, max_length)
    return found


def _of_format(
    format: Format, task: str, name: str, ready: data.Prepared, tokenizer: Tokenizer, max_length: int
) -> Tokens:
    inputs: list[np.ndarray] = []
    num_requests = one_by_one = planned = 0
    for shard in shards.of_task(task, [name], len(ready.items)):
        asked = formats.requests(format, ready.items[shard.start : shard.end], ready.shots)
        pairs = Tokenized(tokenizer, kept_bytes=0)(asked)
        kept = [_input(pair) for pair in pairs if 1 < len(pair[0]) + len(pair[1]) <= max_length]
        distinct = _distinct(kept)
        num_requests += len(asked)
        one_by_one += sum(map(len, kept))
        planned += prefix_tree.plan(distinct, [1] * len(distinct), BATCH_TOKENS).num_tokens
        inputs += distinct
    return Tokens(num_requests, one_by_one, planned, prefix_tree.in_order(_distinct(inputs)).num_tokens)


def _input(pair: Pair) -> np.ndarray:
    """All but the last token; a context that is not continued stays the array it is, which others may share."""
    context, continuation = pair
    return context if len(continuation) == 1 else np.concatenate((context, continuation[:-1]))


def _distinct(inputs: list[np.ndarray]) -> list[np.ndarray]:
    return list({one.tobytes(): one for one in inputs}.values())
