"""The backend over `triplane.lm`: strings to tokens, log-likelihoods over a prefix tree, greedy generation.

In: requests. Out: one result a request, in order. Tokens are those of the whole string: a context and its continuation are
encoded together, and the continuation is what follows the tokens both encodings share (never cut by characters). Spaces that end
a context belong to its continuation, as in lm-eval and olmes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evalplane import models
from evalplane.backends import answering
from evalplane.task import Loglikelihood, Request
from evalplane.tokenized import Pair, Tokenized, kept
from triplane.errors import Refused
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
        return answering.lengths(self.tokenized(requests), requests)

    def loglikelihood(self, requests: Sequence[Request]) -> list[Loglikelihood | None]:
        """Identical (context, continuation) pairs are computed once."""
        return answering.loglikelihood(self, requests, self._scores)

    def _scores(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        return engine.loglikelihood(self.model, pairs, self.batch_tokens)

    def generate(self, requests: Sequence[Request]) -> list[str | None]:
        """Greedy; ends at a stop string (not part of the answer), the end-of-text token, or `max_new_tokens`."""
        return answering.generate(self, requests, self._answers)

    def _answers(self, prompts: list[np.ndarray], max_new_tokens: int, stop: tuple[str, ...]) -> list[str]:
        decode = self.tokenizer.decode
        made = engine.generate(self.model, prompts, max_new_tokens, stop_strings=stop, decode=decode)
        return [engine.cut_at_stop(decode(ids), stop) for ids in made]


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
    return Native(model, tokenizer, kept(tokenizer, before))
