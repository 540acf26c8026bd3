"""Continuous batching: prompts take each other's places, share their prefix, and end exactly where they would alone. Sampling by seed."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.triplane.lm.test_engine import CONFIG, MODEL, reference_generate
from triplane.errors import UsageError
from triplane.lm import generation, tree_forward
from triplane.lm.generation import generate
from triplane.lm.sampling import Sampling

FEW = {"PREFILL_TOKENS": 5, "REFILL_SHARE": 8}


def prompts_of(random: np.random.Generator, count: int) -> list[list[int]]:
    shots = [random.integers(2, 23, 6).tolist() for _ in range(2)]
    return [shots[i % 2] + random.integers(2, 23, random.integers(1, 6)).tolist() for i in range(count)]


@pytest.mark.parametrize("cache_tokens", [1, 40, 100, 65536])
def test_rows_are_refilled_while_others_run(cache_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of many lengths (each prompt has stop ids of its own kind: whatever token is common), few rows, several prefills."""
    prompts = prompts_of(np.random.default_rng(3), 24)
    stop_ids = {5, 9, 11, 17, 21}
    expected = [reference_generate(prompt, 11, stop_ids | {1}) for prompt in prompts]
    assert len({len(answer) for answer in expected}) > 3
    for name, value in FEW.items():
        monkeypatch.setattr(generation, name, value)
    assert generate(MODEL, prompts, 11, stop_ids=stop_ids, cache_tokens=cache_tokens) == expected


def test_the_shared_prefix_is_computed_once_and_never_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    random, read, sizes = np.random.default_rng(4), [], []
    shots = random.integers(2, 23, 12).tolist()
    prompts = [shots + random.integers(2, 23, 3).tolist() for _ in range(10)]
    real, slots = tree_forward.hidden, generation.Slots.__init__

    def hidden(model, ids, *rest):  # type: ignore[no-untyped-def]
        read.append(len(ids))
        return real(model, ids, *rest)

    def made(self, config, num_rows, num_slots, like):  # type: ignore[no-untyped-def]
        sizes.append((num_rows, num_slots))
        slots(self, config, num_rows, num_slots, like)

    monkeypatch.setattr(tree_forward, "hidden", hidden)
    monkeypatch.setattr(generation.Slots, "__init__", made)
    generate(MODEL, prompts, 4, eos_id=-1)
    assert read == [12, 30, 10, 10, 10]  # the shots; what is each prompt's own; three steps
    assert sizes == [(10, 3 + 4)]


def decode(ids: Sequence[int]) -> str:
    return "".join("abcdefghijklmnopqrstuvw"[number] for number in ids)


@settings(max_examples=30)
@given(
    strings=st.lists(st.text("abcdefghijklmnopqrstuvw", min_size=1, max_size=3), min_size=1, max_size=3),
    seed=st.integers(0, 9),
)
def test_stop_strings_end_with_the_token_that_completes_them(strings: list[str], seed: int) -> None:
    prompts = prompts_of(np.random.default_rng(seed), 5)
    free = generate(MODEL, prompts, 12, eos_id=-1)
    found = generate(MODEL, prompts, 12, eos_id=-1, stop_strings=strings, decode=decode)
    for whole, answer in zip(free, found, strict=True):
        ends = [n for n in range(1, 13) if any(string in decode(whole[:n]) for string in strings)]
        assert answer == whole[: min(ends, default=12)]


def test_a_stop_string_of_many_tokens_is_found_in_a_long_answer() -> None:
    """It spans more tokens than one, and the answer is longer than the window that is looked at."""
    sampling = Sampling(2.0, seed=1)
    free = generate(MODEL, [[5, 6]], 20, eos_id=-1, sampling=sampling)[0]
    text = decode(free)
    stop = text[15:19]
    assert text.index(stop) == 15
    assert generate(MODEL, [[5, 6]], 20, (), [stop], decode, -1, sampling=sampling)[0] == free[:19]


def test_samples_follow_from_the_seed_alone_and_from_the_distribution() -> None:
    prompts = prompts_of(np.random.default_rng(5), 12)
    one, other = Sampling(temperature=1.0, seed=1), Sampling(temperature=1.0, seed=2)
    first = generate(MODEL, prompts, 6, eos_id=-1, sampling=one)
    assert first == generate(MODEL, prompts, 6, eos_id=-1, sampling=one, cache_tokens=1)
    assert first != generate(MODEL, prompts, 6, eos_id=-1, sampling=other)
    greedy = generate(MODEL, prompts, 6, eos_id=-1)
    assert first != greedy and generate(MODEL, prompts, 6, eos_id=-1, sampling=Sampling(1.0, top_p=1e-6)) == greedy

    logits = torch.tensor([[2.0, 0.0, 1.0, -1.0]])
    drawn = one.choose(logits.expand(20_000, 4), [(i, 0) for i in range(20_000)])
    counts = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(counts, logits[0].softmax(-1).numpy(), atol=0.015)
    kept = Sampling(1.0, top_p=0.7, seed=3).choose(logits.expand(2000, 4), [(i, 0) for i in range(2000)])
    assert set(kept) == {0, 2}  # 0.64 alone is not enough
    with pytest.raises(UsageError, match="temperature -1"):
        Sampling(-1.0)


def test_prompts_alone_and_together_are_answered_alike() -> None:
    prompts = [[5], [5], [5, 6, 7], [], [9] * 30]
    together = generate(MODEL, prompts, 5)
    assert together == [generate(MODEL, [prompt], 5)[0] for prompt in prompts]
    assert together[0] == together[1] and len(prompts[-1]) > CONFIG.max_position_embeddings
