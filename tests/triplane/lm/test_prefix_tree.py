"""Every sequence can be read back from the plan, sees exactly its own tokens, and shared prefixes are computed once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triplane.lm import prefix_tree

LIMITS = ("ROW_TOKENS", "WHOLE_ROW_TOKENS", "MIN_SAVED_TOKENS")


def seen_by_place(plan: prefix_tree.Plan) -> dict[int, list[tuple[int, int]]]:
    """For each place, (token, position) of all it attends to, in order of position: by the masks and the trunks."""
    trunks: dict[int, list[tuple[int, int]]] = {-1: []}
    seen = {}
    for step in plan.steps:
        place = step.first_place
        for row in step.rows:
            size = len(row.tokens)
            pairs = list(zip(row.tokens.tolist(), row.positions.tolist(), strict=True))
            mask = row.mask(size + 2)
            assert mask[size:].sum() == 2 and not mask[:size, size:].any()  # padding sees itself, and is not seen
            assert not row.is_chain or (mask[:size, :size] == np.tri(size, dtype=bool)).all()
            for i in range(size):
                seen[place + i] = trunks[step.trunk] + [pairs[j] for j in np.flatnonzero(mask[i])]
            place += size
        if step.makes >= 0:
            trunks[step.makes] = seen[place - 1]
    return seen


sequences_strategy = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=14), max_size=16)


@given(
    sequences=sequences_strategy,
    values=st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(1, 9)),
    batch_tokens=st.integers(1, 40),
)
def test_every_token_sees_its_own_sequence_and_nothing_else(
    sequences: list[list[int]], values: tuple[int, int, int], batch_tokens: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(LIMITS, values, strict=True):
            patch.setattr(prefix_tree, name, value)
        plan = prefix_tree.plan(sequences, [len(sequence) for sequence in sequences], batch_tokens)
    seen = seen_by_place(plan)
    assert len(plan.places) == len(sequences) and plan.num_tokens == len(seen)
    for sequence, places in zip(sequences, plan.places, strict=True):
        assert len(places) == len(sequence)
        for depth, place in enumerate(places.tolist()):
            assert seen[place] == [(token, position) for position, token in enumerate(sequence[: depth + 1])]
    assert plan.num_tokens >= prefix_tree.in_order(sequences).num_tokens
    assert prefix_tree.in_order(sequences).num_tokens == len(
        {tuple(s[: n + 1]) for s in sequences for n in range(len(s))}
    )


def suite(random: np.random.Generator, shots: int, documents: int, document: int, choices: int) -> list[np.ndarray]:
    prefix = random.integers(0, 1000, shots)
    found = []
    for _ in range(documents):
        context = np.concatenate((prefix, random.integers(0, 1000, document)))
        found += [np.concatenate((context, random.integers(0, 1000, n + 1))) for n in range(choices)]
    return found


def test_suites_take_hardly_more_tokens_than_their_trie() -> None:
    """Few-shot prefixes once, documents once: several tasks at once, one of long documents, one of none shared."""
    random = np.random.default_rng(0)
    asked = [
        *suite(random, 300, 200, 30, 4),
        *suite(random, 900, 100, 150, 4),
        *suite(random, 200, 40, 1500, 4),
        *suite(random, 1, 300, 10, 2),
    ]
    plan = prefix_tree.plan(asked, [1] * len(asked), 4096)
    minimum = prefix_tree.in_order(asked).num_tokens
    assert minimum < sum(map(len, asked)) / 6
    assert plan.num_tokens <= 1.02 * minimum
    assert [step.makes for step in plan.steps if step.makes >= 0][:2] == [0, 1]
    assert max(step.num_tokens for step in plan.steps) <= 4096


def test_a_sequence_that_ends_with_the_trunk_has_its_places(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(LIMITS, (4, 6, 2), strict=True):
        monkeypatch.setattr(prefix_tree, name, value)
    plan = prefix_tree.plan([[7, 7], [7, 7, 2, 2, 2, 2, 2]], [2, 2], 8)
    assert [step.num_tokens for step in plan.steps] == [2, 5]
    assert [places.tolist() for places in plan.places] == [[0, 1], [5, 6]]


def test_few_sequences_make_no_trunk() -> None:
    """Negative control of the saving: one document with its choices is one row."""
    asked = suite(np.random.default_rng(1), 300, 1, 30, 4)
    plan = prefix_tree.plan(asked, [1] * 4, 4096)
    assert [(step.makes, len(step.rows)) for step in plan.steps] == [(-1, 1)]


def test_forwards_are_bounded_in_tokens_and_in_the_size_of_their_masks() -> None:
    rows = [prefix_tree._row(prefix_tree.in_order([np.arange(n)]), [0], 0) for n in (900, 900, 700, 30, 30, 30)]
    by_tokens = prefix_tree.batches(rows, 1000)
    assert [[len(row.tokens) for row in batch] for batch in by_tokens] == [[900], [900], [700, 30, 30, 30]]
    by_area = prefix_tree.batches([rows[0]] * 8, 100_000)
    assert [len(batch) for batch in by_area] == [5, 3]


@given(sequences=sequences_strategy)
def test_groups_hold_each_sequence_once_and_share_their_prefix(sequences: list[list[int]]) -> None:
    found = prefix_tree.groups(sequences)
    assert sorted(number for _, numbers in found for number in numbers) == list(range(len(sequences)))
    for shared, numbers in found:
        assert len({tuple(sequences[number][:shared]) for number in numbers}) == 1


def test_prompts_of_two_tasks_are_two_groups() -> None:
    random = np.random.default_rng(2)
    one, other = suite(random, 100, 5, 9, 1), suite(random, 50, 4, 9, 1)
    assert sorted((shared, len(numbers)) for shared, numbers in prefix_tree.groups([*one, *other])) == [
        (50, 4),
        (100, 5),
    ]
