"""The backend over vLLM's offline engine, as vLLM offers it: log-probabilities of prompts, prefix caching, its own batching.

In: requests. Out: one result a request, in order. Log-likelihoods are `prompt_logprobs`, one prompt a continuation: no letters collapsed, and vLLM
computes the prompt's cached prefix again for them. Validated against a stand-in with vLLM's classes (no GPU here); source: docs.vllm.ai,
`LLM.generate`, `SamplingParams`, `PromptLogprobs`, release 0.10.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evalplane import models
from evalplane.backends import answering
from evalplane.task import Loglikelihood, Request
from evalplane.tokenized import Pair, Tokenized, kept
from triplane.errors import TriplaneError, UsageError
from triplane.lm.generation import cut_at_stop
from triplane.tokenizer import Tokenizer


@dataclass(frozen=True)
class Vllm:
    """A loaded engine; `Backend` of evalplane.task. `library` is the module vllm."""

    library: Any
    engine: Any
    tokenizer: Tokenizer
    tokenized: Tokenized

    @property
    def max_length(self) -> int:
        """One less than vLLM's: it always generates a token."""
        return int(self.engine.llm_engine.model_config.max_model_len) - 1

    def lengths(self, requests: Sequence[Request]) -> list[int]:
        """Tokens of context, continuation and answer together."""
        return answering.lengths(self.tokenized(requests), requests)

    def loglikelihood(self, requests: Sequence[Request]) -> list[Loglikelihood | None]:
        """Identical (context, continuation) pairs are asked once."""
        return answering.loglikelihood(self, requests, self._scores)

    def _scores(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        asked = self.library.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1, detokenize=False)
        prompts = [np.concatenate(pair).tolist() for pair in pairs]
        return [
            _score(found.prompt_logprobs, pair[1].tolist())
            for pair, found in zip(pairs, self._generate(prompts, asked), strict=True)
        ]

    def _generate(self, prompts: list[list[int]], asked: Any) -> list[Any]:
        found = self.engine.generate([{"prompt_token_ids": ids} for ids in prompts], asked, use_tqdm=False)
        if len(found) != len(prompts):
            raise TriplaneError(f"vLLM answered {len(found)} of {len(prompts)} requests; the evaluation has no score")
        return list(found)

    def generate(self, requests: Sequence[Request]) -> list[str | None]:
        """Greedy; ends at a stop string (not part of the answer), the end-of-text token, or `max_new_tokens`."""
        return answering.generate(self, requests, self._answers)

    def _answers(self, prompts: list[np.ndarray], max_new_tokens: int, stop: tuple[str, ...]) -> list[str]:
        eos = [self.tokenizer.eos_id]
        asked = self.library.SamplingParams(
            temperature=0, max_tokens=max_new_tokens, stop=list(stop), stop_token_ids=eos, skip_special_tokens=False
        )
        found = self._generate([prompt.tolist() for prompt in prompts], asked)
        return [cut_at_stop(self._text(one.outputs[0]), stop) for one in found]

    def _text(self, output: Any) -> str:
        ids = list(output.token_ids)
        return self.tokenizer.decode(ids[: ids.index(self.tokenizer.eos_id)] if self.tokenizer.eos_id in ids else ids)


def _score(prompt_logprobs: Sequence[Any], target: list[int]) -> tuple[float, bool]:
    """Sum over the last tokens of the prompt, and whether each was the likeliest (rank 1)."""
    found = [where[token] for where, token in zip(prompt_logprobs[-len(target) :], target, strict=True)]
    return float(sum(one.logprob for one in found)), all(one.rank == 1 for one in found)


def load(source: models.Model, device: str | None = None, before: Tokenized | None = None) -> Vllm:
    """UsageError where vLLM is not installed."""
    try:
        library = importlib.import_module("vllm")
    except ImportError as error:
        raise UsageError("the vllm backend needs vLLM, and a GPU it supports: pip install 'triplane[gpu]'") from error
    tokenizer = Tokenizer.load(source.tokenizer_url)
    engine = library.LLM(
        model=source.url, skip_tokenizer_init=True, enable_prefix_caching=True, trust_remote_code=False
    )
    return Vllm(library, engine, tokenizer, kept(tokenizer, before))
