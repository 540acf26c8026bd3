"""Requests as tokens: those of the whole string, made once, kept within a bound."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalplane import tokenized
from evalplane.task import Request
from evalplane.tokenized import Tokenized, split_tokens
from triplane import vocabulary
from triplane.tokenizer import Tokenizer


@functools.cache
def _tokenizer() -> Tokenizer:
    """As the fixture, which hypothesis tests cannot take."""
    return Tokenizer(vocabulary.train(["Answer: blue sky, naïve 12345\n"] * 20, 300), "a test's tokenizer")


def encode(text: str) -> list[int]:
    return _tokenizer().encode([text])[0].tolist()


@given(st.text(max_size=12), st.text(min_size=1, max_size=12))
def test_split_tokens_are_the_tokens_of_the_whole(context: str, continuation: str) -> None:
    ((before, after),) = split_tokens(_tokenizer(), [Request(0, 0, context, continuation)])
    whole = encode(context + continuation)
    assert len(after)
    if before.tolist() != [_tokenizer().eos_id]:
        whole = whole[len(before) :] if before.tolist() == whole[: len(before)] else []
    assert after.tolist() == whole


def test_spaces_that_end_a_context_belong_to_the_continuation() -> None:
    spaced, plain = split_tokens(_tokenizer(), [Request(0, 0, "Answer: ", "blue"), Request(0, 0, "Answer:", " blue")])
    assert [part.tolist() for part in spaced] == [part.tolist() for part in plain]
    assert spaced[0].tolist() + spaced[1].tolist() == encode("Answer: blue")


REQUESTS = [Request(0, i, "Answer: the sky is very", f" {word}") for i, word in enumerate(("blue", "12345", "sky"))]


def test_nothing_is_tokenized_twice_and_equal_contexts_share_their_array(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, texts = _tokenizer(), []
    real = type(tokenizer).encode
    monkeypatch.setattr(type(tokenizer), "encode", lambda self, some: texts.extend(some) or real(self, some))
    made = Tokenized(tokenizer)
    first = made(REQUESTS)
    assert len(texts) == len(set(texts)) == 4  # three whole strings and their context
    assert first[0][0] is first[1][0] and first[0][0].base is None
    again = made([REQUESTS[2], REQUESTS[0], Request(0, 0, "", "blue")])
    assert len(texts) == 6 and again[0] is first[2] and again[1] is first[0]


def test_what_is_kept_is_bounded_and_what_went_is_made_again() -> None:
    small, large = Tokenized(_tokenizer(), kept_bytes=64), Tokenized(_tokenizer())
    for asked in (REQUESTS, REQUESTS[::-1], REQUESTS):
        found, expected = small(asked), large(asked)
        assert all(
            np.array_equal(a, b)
            for one, other in zip(found, expected, strict=True)
            for a, b in zip(one, other, strict=True)
        )
    assert small.num_bytes <= 64 and len(small.pairs) < 3 and len(large.pairs) == 3
    assert large.num_bytes == sum(a.nbytes + b.nbytes for a, b in large.pairs.values())


def test_texts_that_part_elsewhere_are_not_taken_for_each_other() -> None:
    one, other = Request(0, 0, "Answer: blue", " sky"), Request(0, 0, "Answer:", " blue sky")
    tokenized = Tokenized(_tokenizer())
    assert [len(pair[0]) for pair in tokenized([one, other])] == [len(encode("Answer: blue")), len(encode("Answer:"))]


def test_texts_are_tokenized_a_bounded_number_of_characters_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long they are: what comes back is the same, and a text longer than the bound is a piece of its own."""
    sizes = (1, 200, 3, 40, 40, 40, 900, 1)
    requests = [Request(0, 0, f"{number} " * size, " end") for number, size in enumerate(sizes)]
    tokenizer, pieces = _tokenizer(), list[int]()
    expected = Tokenized(tokenizer)(requests)
    real = type(tokenizer).encode
    monkeypatch.setattr(
        type(tokenizer), "encode", lambda self, some: pieces.append(sum(map(len, some))) or real(self, some)
    )
    monkeypatch.setattr(tokenized, "CHARACTERS_AT_ONCE", 200)
    found = Tokenized(tokenizer)(requests)
    for one, other in zip(found, expected, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert len(pieces) == 6 and sorted(pieces)[-2] < 2 * 420  # with a context and without its last space
