"""The backend over `triplane.lm`: strings to tokens, log-likelihoods over a prefix tree, greedy generation.

In: requests. Out: one result a request, in order. Tokens are those of the whole string: a context and its continuation are
encoded together, and the continuation is what follows the tokens both encodings share (never cut by characters). Spaces that end
a context belong to its continuation, as in lm-eval and olmes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evalplane import models
from evalplane.task import Loglikelihood, Request
from evalplane.tokenized import Pair, Tokenized
from triplane.errors import Refused, TriplaneError
from triplane.lm import engine, weights
from triplane.lm.model import Olmo2
from triplane.tokenizer import Tokenizer


@dataclass(frozen=True)
class Native:
    """A loaded model; `Backend` of evalplane.task."""

    model: Olmo2
    tokenizer: Tokenizer
    tokenized: Tokenized
    batch_tokens: int = engine.BATCH_TOKENS

    @property
    def max_length(self) -> int:
        return int(self.model.config.max_position_embeddings)

    def lengths(self, requests: Sequence[Request]) -> list[int]:
        """Tokens of context, continuation and answer together: what must fit `max_length`."""
        pairs = self.tokenized(requests)
        return [len(c) + len(t) + r.max_new_tokens for (c, t), r in zip(pairs, requests, strict=True)]

    def loglikelihood(self, requests: Sequence[Request]) -> list[Loglikelihood | None]:
        """Identical (context, continuation) pairs are computed once."""
        distinct = list(dict.fromkeys((r.context, r.continuation) for r in requests))
        asked = [Request(0, 0, context, continuation) for context, continuation in distinct]
        pairs = self.tokenized(asked)
        found: dict[int, Loglikelihood] = {}
        documents = [i for i, r in enumerate(asked) if not r.context]
        fitting = [i for i, (c, t) in enumerate(pairs) if asked[i].context and len(c) + len(t) <= self.max_length]
        found.update(zip(documents, self._documents([pairs[i][1] for i in documents]), strict=True))
        found.update(zip(fitting, self._pairs([pairs[i] for i in fitting]), strict=True))
        by_text = {text: found.get(i) for i, text in enumerate(distinct)}
        return [by_text[r.context, r.continuation] for r in requests]

    def generate(self, requests: Sequence[Request]) -> list[str | None]:
        """Greedy; ends at a stop string (not part of the answer), the end-of-text token, or `max_new_tokens`."""
        prompts = self.tokenized(requests)
        answers: list[str | None] = [None] * len(requests)
        groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for i, request in enumerate(requests):
            if len(prompts[i][0]) + request.max_new_tokens <= self.max_length:
                groups.setdefault((request.max_new_tokens, request.stop), []).append(i)
        for (max_new_tokens, stop), members in groups.items():
            for i, text in zip(
                members, self._answers([prompts[i][0] for i in members], max_new_tokens, stop), strict=True
            ):
                answers[i] = text
        return answers

    def _answers(self, prompts: list[np.ndarray], max_new_tokens: int, stop: tuple[str, ...]) -> list[str]:
        decode = self.tokenizer.decode
        made = engine.generate(self.model, prompts, max_new_tokens, stop_strings=stop, decode=decode)
        return [engine.cut_at_stop(decode(ids), stop) for ids in made]

    def _pairs(self, pairs: list[Pair]) -> list[Loglikelihood]:
        if not pairs:
            return []
        results = engine.loglikelihood(self.model, pairs, self.batch_tokens)
        return [
            Loglikelihood(_number(result[0]), bool(result[1]), len(target))
            for (_, target), result in zip(pairs, results, strict=True)
        ]

    def _documents(self, documents: list[np.ndarray]) -> list[Loglikelihood]:
        """Each token once, the first after end-of-text; the engine reads a long document in windows of `max_length`."""
        found = engine.token_logprobs(self.model, documents, self.batch_tokens)
        return [Loglikelihood(_number(one.sum(dtype=np.float64)), False, len(one)) for one in found]


def load(source: models.Model, device: str | None = None, before: Tokenized | None = None) -> Native:
    """Loads model and tokenizer; Refused when the tokenizer is not the model's. The default device is CUDA where there is one.

    `before` are requests another model was asked: where the tokenizer is the same they are not tokenized again.
    """
    tokenizer = Tokenizer.load(source.tokenizer_url)
    models.check_tokenizer(source, tokenizer.sha256)
    model, info = weights.load_model(source.url, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    models.check_identity(source, info["identity"])
    return paired(model, tokenizer, before)


def paired(model: Olmo2, tokenizer: Tokenizer, before: Tokenized | None = None) -> Native:
    """The backend of a model and its tokenizer; Refused when they cannot belong together."""
    config = model.config
    if config.eos_token_id != tokenizer.eos_id or config.vocab_size < tokenizer.vocab_size:
        raise Refused(
            f"the model ends text with id {config.eos_token_id} of {config.vocab_size}, tokenizer {tokenizer.where} with "
            f"{tokenizer.eos_id} of {tokenizer.vocab_size}: they do not belong together, give the model's with --tokenizer"
        )
    is_same = before is not None and before.tokenizer.sha256 == tokenizer.sha256
    return Native(model, tokenizer, before if before is not None and is_same else Tokenized(tokenizer))


def _number(value: float) -> float:
    if not math.isfinite(value):
        raise TriplaneError(
            f"the model gave a log-likelihood of {value}; its weights or logits hold values that are not numbers"
        )
    return float(value)
