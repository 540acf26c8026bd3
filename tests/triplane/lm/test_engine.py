"""Scores and generations equal the obvious way to compute them: one forward a request, no padding, no sharing, no cache."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triplane.errors import TriplaneError, UsageError
from triplane.lm import engine, generation, prefix_tree, tree_forward
from triplane.lm.engine import Request
from triplane.lm.model import ModelConfig, Olmo2

CONFIG = ModelConfig(23, 32, 48, 2, 4, 2, max_position_embeddings=24, eos_token_id=1, pad_token_id=0)


def random_model(config: ModelConfig = CONFIG) -> Olmo2:
    model = Olmo2(config)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 0.25 * noise)
    return model.eval()


MODEL = random_model()
NEVER = -1  # no token has this id: generation goes on to its limit


@torch.no_grad()
def reference_scores(
    context: Sequence[int], continuation: Sequence[int], model: Olmo2 = MODEL
) -> tuple[np.ndarray, bool]:
    """One forward of this request alone."""
    if not len(continuation):
        return np.empty(0, np.float32), True
    limit = model.config.max_position_embeddings
    inputs = [*(context or [model.config.eos_token_id]), *continuation][:-1][-limit:]
    logprobs = model(torch.tensor([inputs]))[0].log_softmax(-1)[-len(continuation) :]
    targets = torch.tensor(continuation)
    return logprobs[range(len(targets)), targets].numpy(), bool((logprobs.argmax(-1) == targets).all())


@torch.no_grad()
def reference_generate(
    prompt: Sequence[int], max_new_tokens: int, stop_ids: set[int], model: Olmo2 = MODEL
) -> list[int]:
    """Argmax of a whole forward for every token."""
    ids = list(prompt or [model.config.eos_token_id])[-(model.config.max_position_embeddings - max_new_tokens) :]
    generated: list[int] = []
    while len(generated) < max_new_tokens:
        token = int(model(torch.tensor([ids + generated]))[0, -1].argmax())
        if token in stop_ids:
            break
        generated.append(token)
    return generated


# Limits of the planner: as they are, and so small that short requests make trunks of trunks, rows of several documents, and many forwards.
LIMITS = [{}, {"ROW_TOKENS": 4, "WHOLE_ROW_TOKENS": 6, "MIN_SAVED_TOKENS": 2, "MAX_ROW_AREA": 100}]


@contextmanager
def limits(**values: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(prefix_tree, name, value)
        if values:
            patch.setattr(tree_forward, "SCORES_AT_ONCE_CPU", 64)
        yield


tokens = st.lists(st.integers(2, 4), max_size=12)  # three values: prefixes are shared all the time
requests_strategy = st.lists(st.tuples(tokens, st.lists(st.integers(2, 4), max_size=20)), max_size=14)


@settings(max_examples=80)
@given(requests=requests_strategy, batch_tokens=st.sampled_from([1, 30, 8192]), small=st.sampled_from(LIMITS))
def test_scores_equal_one_forward_a_request(requests: list[Request], batch_tokens: int, small: dict[str, int]) -> None:
    with limits(**small):
        found = engine.continuation_scores(MODEL, requests, batch_tokens)
        sums = engine.loglikelihood(MODEL, requests, batch_tokens)
    assert len(found) == len(requests)
    for request, score, (total, is_greedy) in zip(requests, found, sums, strict=True):
        expected, greedy = reference_scores(*request)
        np.testing.assert_allclose(score.token_logprobs, expected, atol=1e-4)
        assert score.is_greedy == is_greedy == greedy
        assert total == pytest.approx(float(expected.sum()), abs=1e-4 * max(1, len(expected)))


def few_shot_requests(random: np.random.Generator) -> list[Request]:
    """Multiple choice as it comes: 3 few-shot prefixes x 5 questions x 4 choices of 1..4 tokens."""
    shots = [random.integers(2, 23, 9).tolist() for _ in range(3)]
    documents = [shot + random.integers(2, 23, 5).tolist() for shot in shots for _ in range(5)]
    return [(document, random.integers(2, 23, n).tolist()) for document in documents for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("small", LIMITS)
@pytest.mark.parametrize("batch_tokens", [16, 64, 8192])
def test_order_and_batch_size_change_nothing(batch_tokens: int, small: dict[str, int]) -> None:
    random = np.random.default_rng(0)
    requests = few_shot_requests(random)
    expected = [reference_scores(*request)[0].sum() for request in requests]
    order = random.permutation(len(requests))
    with limits(**small):
        found = engine.loglikelihood(MODEL, [requests[i] for i in order], batch_tokens)
    np.testing.assert_allclose([score for score, _ in found], [expected[i] for i in order], atol=1e-4)


@pytest.mark.parametrize(
    "switch",
    [{"norm_position": "pre"}, {"qk_norm": False}, {"num_key_value_heads": 4}, {"num_key_value_heads": 1}],
)
def test_every_kind_of_block_scores_and_generates_as_its_own_forward(switch: dict[str, Any]) -> None:
    model = random_model(dataclasses.replace(CONFIG, **switch))
    requests = few_shot_requests(np.random.default_rng(1))
    expected = [reference_scores(*request, model)[0].sum() for request in requests]
    with limits(**LIMITS[1]):
        found = engine.loglikelihood(model, requests)
    np.testing.assert_allclose([score for score, _ in found], expected, atol=1e-4)
    prompts = [list(context) for context, _ in requests[::4]]
    assert engine.generate(model, prompts, 6) == [reference_generate(prompt, 6, {1}, model) for prompt in prompts]


def test_greedy_is_found() -> None:
    answer = reference_generate([5, 6, 7], 4, set())
    other = [*answer[:3], (answer[3] + 1) % 23]
    assert [greedy for _, greedy in engine.loglikelihood(MODEL, [([5, 6, 7], answer), ([5, 6, 7], other)])] == [
        True,
        False,
    ]


def broken_positions(patch: pytest.MonkeyPatch) -> None:
    """The place in the row, not the depth in the tree."""
    real = engine._run

    def run(model: Olmo2, step: prefix_tree.Step, *arguments: Any) -> torch.Tensor:
        rows = [dataclasses.replace(row, positions=np.arange(len(row.tokens))) for row in step.rows]
        return real(model, dataclasses.replace(step, rows=rows), *arguments)

    patch.setattr(engine, "_run", run)


def broken_mask(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(prefix_tree.Row, "mask", lambda self, size: np.tri(size, dtype=bool))


def broken_merge(patch: pytest.MonkeyPatch) -> None:
    """Half and half, whatever the log-sum-exp."""
    real = tree_forward.attend_all
    patch.setattr(tree_forward, "attend_all", lambda *a: (real(*a)[0], torch.zeros_like(real(*a)[1])))


@pytest.mark.parametrize("broken", [broken_positions, broken_mask, broken_merge])
def test_a_wrong_tree_would_be_seen(
    broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative controls: by far more than rounding, in the sum of a choice."""
    requests = few_shot_requests(np.random.default_rng(0))
    expected = [reference_scores(*request)[0].sum() for request in requests]
    broken(monkeypatch)
    with limits(**LIMITS[1]):
        errors = np.abs([s - e for (s, _), e in zip(engine.loglikelihood(MODEL, requests), expected, strict=True)])
    assert errors.max() > 1


def test_the_tree_computes_shared_tokens_once_and_only_continuations_reach_the_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = list(range(2, 16))
    requests = [(context, [choice]) for choice in (2, 3, 4, 5)] + [(context, [6, 7, 8])]
    seen = {"body": 0, "head": 0, "last MLP": 0}
    mlp = MODEL.layers[-1].get_submodule("mlp")
    embed, head, last = MODEL.embed_tokens.forward, MODEL.lm_head.forward, mlp.forward

    def counting(name: str, real: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        def call(x: torch.Tensor) -> torch.Tensor:
            seen[name] += len(x)
            return real(x)

        return call

    monkeypatch.setattr(MODEL.embed_tokens, "forward", counting("body", embed))
    monkeypatch.setattr(MODEL.lm_head, "forward", counting("head", head))
    monkeypatch.setattr(mlp, "forward", counting("last MLP", last))
    engine.loglikelihood(MODEL, requests)
    # The letters share one forward and one row of logits; the last layer goes on for that row and the two others alone.
    assert seen == {"body": 14 + 2, "head": 1 + 2, "last MLP": 1 + 2}


def test_documents_are_scored_in_windows_each_token_once() -> None:
    """Lengths around the context of 24: the reference says the rule again, in other words."""
    random = np.random.default_rng(1)
    documents = [random.integers(2, 23, n).tolist() for n in (0, 1, 23, 24, 25, 48, 49, 60)]
    found = engine.token_logprobs(MODEL, documents)
    for document, logprobs in zip(documents, found, strict=True):
        assert len(logprobs) == len(document)
        stream = [CONFIG.eos_token_id, *document]
        for i in range(len(document)):
            window = i // 24 * 24
            expected, _ = reference_scores(stream[window : i + 1], [document[i]])
            assert logprobs[i] == pytest.approx(expected[0], abs=1e-4)


def test_empty_input_and_long_contexts() -> None:
    assert engine.loglikelihood(MODEL, []) == [] and engine.token_logprobs(MODEL, []) == []
    assert engine.loglikelihood(MODEL, [([3, 4], [])]) == [(0.0, True)]
    given_eos = engine.loglikelihood(MODEL, [([], [3, 4]), ([1], [3, 4])])
    assert given_eos[0] == given_eos[1]
    long = [2, 3] * 40
    assert engine.loglikelihood(MODEL, [(long, [5])])[0] == engine.loglikelihood(MODEL, [(long[-24:], [5])])[0]
    with pytest.raises(UsageError, match="25 tokens, the model's context 24"):
        engine.loglikelihood(MODEL, [([2], [3] * 25)])


@settings(max_examples=25)
@given(
    prompts=st.lists(st.lists(st.integers(2, 22), max_size=22), max_size=9),
    shared=st.lists(st.integers(2, 22), max_size=6),
    max_new_tokens=st.sampled_from([1, 5, 12]),
    cache_tokens=st.sampled_from([1, 60, 65536]),
    stop_ids=st.sets(st.integers(0, 22), max_size=4),
)
def test_generation_equals_argmax_without_a_cache(
    prompts: list[list[int]], shared: list[int], max_new_tokens: int, cache_tokens: int, stop_ids: set[int]
) -> None:
    prompts = [shared + prompt for prompt in prompts]
    found = engine.generate(MODEL, prompts, max_new_tokens, stop_ids=stop_ids, cache_tokens=cache_tokens)
    expected = [reference_generate(prompt, max_new_tokens, stop_ids | {CONFIG.eos_token_id}) for prompt in prompts]
    assert found == expected


def test_generation_ends_at_eos_and_stop_ids() -> None:
    free = engine.generate(MODEL, [[5, 6, 7]], 8, eos_id=NEVER)[0]
    assert len(free) == 8
    place = next(i for i in range(1, 8) if free[i] not in free[:i])
    assert engine.generate(MODEL, [[5, 6, 7]], 8, eos_id=free[place])[0] == free[:place]
    assert engine.generate(MODEL, [[5, 6, 7]], 8, stop_ids=[free[place]], eos_id=NEVER)[0] == free[:place]
    assert engine.generate(MODEL, [[5, 6, 7]], 0) == [[]] and engine.generate(MODEL, [], 8) == []


def test_stop_strings_end_with_the_token_that_completes_them() -> None:
    def decode(ids: Sequence[int]) -> str:
        return "".join(f"<{number}>" for number in ids)

    free = engine.generate(MODEL, [[5, 6, 7]], 8, eos_id=NEVER)[0]
    stop = f"{free[2]}><{free[3]}"  # spans two tokens and holds neither whole
    found = engine.generate(MODEL, [[5, 6, 7], [8]], 8, stop_strings=["absent", stop], decode=decode, eos_id=NEVER)
    assert found[0] == free[: next(n for n in range(9) if stop in decode(free[:n]))]
    assert found[1] == reference_generate([8], 8, {NEVER}) or stop in decode(found[1])
    text = decode(found[0])
    assert engine.cut_at_stop(text, ["absent", stop]) == text[: text.index(stop)]
    assert engine.cut_at_stop("abc", ["x"]) == "abc" and engine.cut_at_stop("abcbc", ["c", "b"]) == "a"
    with pytest.raises(UsageError, match="need `decode`"):
        engine.generate(MODEL, [[5]], 8, stop_strings=["x"])
    with pytest.raises(UsageError, match="leaves no room"):
        engine.generate(MODEL, [[5]], 24)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_name_the_request(value: float) -> None:
    broken = random_model()
    with torch.no_grad():
        broken.embed_tokens.weight[9] = value
    assert engine.generate(broken, [[5, 6]], 1, eos_id=NEVER) == engine.generate(
        random_model(), [[5, 6]], 1, eos_id=NEVER
    )
    with pytest.raises(
        TriplaneError, match=r"after 0 tokens for the prompt that ends in token ids \[5, 9\] are not finite"
    ):
        engine.generate(broken, [[5, 6], [5, 9]], 1, eos_id=NEVER)


def test_a_wrong_position_in_the_cache_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: new tokens told that they stand one further on."""
    prompts = [[5, 6, 7, 8, 9, 10], [11], [12, 13], [3, 9, 4]]
    expected = [reference_generate(prompt, 10, {1}) for prompt in prompts]
    assert engine.generate(MODEL, prompts, 10) == expected
    real = tree_forward.hidden
    monkeypatch.setattr(
        tree_forward, "hidden", lambda m, i, p, o, *rest: real(m, i, p + isinstance(o, generation.Slots), o, *rest)
    )
    assert engine.generate(MODEL, prompts, 10) != expected
