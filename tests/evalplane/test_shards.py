"""No more than a shard's requests are made at once, whatever the size of a task."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from evalplane import shards
from evalplane.task import Item, Loglikelihood, Request, load_task

FORMAT = load_task("arc_easy").formats["cloze"]
SHOTS = [Item("grass", {"question": "What colour is the grass?"}, ("green", "red"), 0)]


@dataclass
class Counting:
    """Remembers how many requests it was asked about at once; a token is a character."""

    max_length: int
    sizes: list[int] = field(default_factory=list)

    def lengths(self, requests: Sequence[Request]) -> list[int]:
        self.sizes.append(len(requests))
        return [len(one.context) + len(one.continuation) for one in requests]

    def loglikelihood(self, requests: Sequence[Request]) -> list[Loglikelihood | None]:
        raise AssertionError("nothing is scored here")

    def generate(self, requests: Sequence[Request]) -> list[str | None]:
        raise AssertionError("nothing is scored here")


def items(count: int, longest: int) -> list[Item]:
    """The last one is the longest."""
    made = [Item(str(n), {"question": "What?"}, ("one", "two"), 0) for n in range(count - 1)]
    return [*made, Item("long", {"question": "x" * longest}, ("one", "two"), 0)]


@pytest.mark.parametrize(("longest", "is_short"), [(10, True), (900, False)])
def test_the_longest_prompt_is_looked_for_a_shard_at_a_time(longest: int, is_short: bool) -> None:
    backend = Counting(500)
    used, reason = shards.usable_shots(FORMAT, items(1000, longest), SHOTS, backend)
    assert (list(used) == SHOTS, reason is None) == (is_short, is_short)
    per_item = 4  # two choices, with and without their question
    assert len(backend.sizes) == 4 and max(backend.sizes) <= per_item * shards.SHARD_ITEMS
