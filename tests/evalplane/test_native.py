"""The native backend against the model's plain forward, one request at a time."""

import math

import numpy as np
import pytest
import torch

from evalplane.backends import native
from evalplane.task import Loglikelihood, Request
from triplane.errors import Refused, TriplaneError
from triplane.lm.model import Olmo2, init_weights
from triplane.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def backend(model: Olmo2, tokenizer: Tokenizer) -> native.Native:
    return native.paired(model, tokenizer)


def plain_logprobs(model: Olmo2, ids: list[int]) -> np.ndarray:
    """log p of each token after the first, by one full forward: the slow, obvious reference."""
    with torch.no_grad():
        logprobs = model(torch.tensor([ids[:-1]])).log_softmax(-1)[0]
    return logprobs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].double().numpy()


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode([text])[0].tolist()


def test_continuations_score_as_by_a_plain_forward(backend: native.Native, model: Olmo2, tokenizer: Tokenizer) -> None:
    context, continuations = "Question: What colour is the sky?\nAnswer:", [" blue", " green", " a quick brown fox"]
    found = backend.loglikelihood([Request(0, i, context, text) for i, text in enumerate(continuations)])
    for text, one in zip(continuations, found, strict=True):
        n = len(encode(tokenizer, context + text)) - len(encode(tokenizer, context))
        assert one is not None and one.num_tokens == n
        assert one.total == pytest.approx(plain_logprobs(model, encode(tokenizer, context + text))[-n:].sum(), abs=1e-4)


def test_documents_score_every_token_once_from_end_of_text(
    backend: native.Native, model: Olmo2, tokenizer: Tokenizer
) -> None:
    text = "The quick brown fox. naïve 日本語"
    (found,) = backend.loglikelihood([Request(0, 0, "", text)])
    ids = encode(tokenizer, text)
    assert found is not None and found.num_tokens == len(ids)
    assert found.total == pytest.approx(plain_logprobs(model, [tokenizer.eos_id, *ids]).sum(), abs=1e-4)


def test_a_long_document_is_read_in_windows_and_whole(
    backend: native.Native, model: Olmo2, tokenizer: Tokenizer
) -> None:
    text = "naïve 12345 café " * 40
    ids = encode(tokenizer, text)
    size = backend.max_length
    assert len(ids) > 2 * size
    whole = [tokenizer.eos_id, *ids]
    expected = sum(plain_logprobs(model, whole[at : at + size + 1]).sum() for at in range(0, len(ids), size))
    (found,) = backend.loglikelihood([Request(0, 0, "", text)])
    assert found is not None and found.num_tokens == len(ids)
    assert found.total == pytest.approx(expected, rel=1e-5)


def test_an_empty_document_has_no_bits(backend: native.Native) -> None:
    assert backend.loglikelihood([Request(0, 0, "", "")]) == [Loglikelihood(0.0, False, 0)]


def test_a_context_too_long_has_no_result_and_the_others_do(backend: native.Native) -> None:
    long = "naïve 12345 " * 60
    requests = [Request(0, 0, "Answer:", " blue"), Request(1, 0, long, " blue"), Request(2, 0, "Answer:", " blue")]
    assert backend.lengths(requests)[1] > backend.max_length
    first, second, third = backend.loglikelihood(requests)
    assert second is None
    assert first is not None and first == third
    assert backend.generate([Request(0, 0, long, max_new_tokens=4)]) == [None]


def test_generation_is_the_argmax_and_ends_at_the_stop(
    backend: native.Native, model: Olmo2, tokenizer: Tokenizer
) -> None:
    prompt, length = "The quick brown", 8
    ids = encode(tokenizer, prompt)
    for _ in range(length):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    expected = tokenizer.decode(ids[len(encode(tokenizer, prompt)) :])
    assert backend.generate([Request(0, 0, prompt, max_new_tokens=length)]) == [expected]
    stop = expected[len(expected) // 2]
    cut = backend.generate([Request(0, 0, prompt, max_new_tokens=length, stop=(stop,))])
    assert cut == [expected[: expected.index(stop)]]


def test_weights_that_are_not_numbers_give_an_error_and_no_score(model: Olmo2, tokenizer: Tokenizer) -> None:
    broken = Olmo2(model.config)
    init_weights(broken, 1)
    with torch.no_grad():
        broken.lm_head.weight[tokenizer.eos_id] = math.nan
    backend = native.paired(broken, tokenizer)
    with pytest.raises(TriplaneError, match="log-likelihood of nan"):
        backend.loglikelihood([Request(0, 0, "Answer:", " blue")])
    with pytest.raises(TriplaneError, match="log-likelihood of nan"):
        backend.loglikelihood([Request(0, 0, "", "a document")])
    asked = [Request(0, 0, "Answer:", max_new_tokens=4)]
    with pytest.raises(
        TriplaneError, match=r"logits after 0 tokens for the prompt that ends in 'Answer:' are not finite"
    ):
        backend.generate(asked)  # even where the wrong token ends the answer at once


def test_a_tokenizer_that_cannot_be_the_models_is_refused(model: Olmo2, shared: object) -> None:
    other = Tokenizer.load(f"{shared}/data/tokenizer/allenai_dolma2.json")
    with pytest.raises(Refused, match="do not belong together"):
        native.paired(model, other)
