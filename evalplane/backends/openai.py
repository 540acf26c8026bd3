"""The backend over an endpoint that speaks OpenAI's completions API (`POST {url}/completions`), OpenAI's own or vLLM's, SGLang's, llama.cpp's.

In: requests. Out: one result a request, in order. Text is generated greedily. Log-likelihoods are asked for by `echo` with `logprobs`, which
few endpoints offer: one that does not is refused in a sentence, and only generated tasks can be asked of it. A request is tried again where the
endpoint is busy or away; one that fails for good fails the evaluation, and says how many did. Tokens are counted with the tokenizer given.
Source: platform.openai.com/docs/api-reference/completions; vLLM's and lm-eval's use of `echo`.
"""

import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from evalplane import models
from evalplane.backends import answering
from evalplane.task import Loglikelihood, Request
from evalplane.tokenized import Tokenized, kept
from triplane.errors import Refused, TriplaneError
from triplane.lm.generation import cut_at_stop
from triplane.tokenizer import Tokenizer

KEY = "OPENAI_API_KEY"
MAX_LENGTH = 4096  # the API does not say what the model's context is
AT_ONCE, ATTEMPTS, FIRST_WAIT_SECONDS, TIMEOUT_SECONDS = 16, 5, 0.5, 600
MAX_STOPS = 4  # of the API; the others are looked for in what comes back
BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
SAID_CHARACTERS = 200

T = TypeVar("T")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Who is sent elsewhere takes the key along."""

    def redirect_request(self, *_: Any) -> None:
        return None


OPENER = urllib.request.build_opener(_NoRedirects)


@dataclass(frozen=True)
class OpenAI:
    """An endpoint; `Backend` of evalplane.task."""

    url: str
    model: str
    tokenized: Tokenized
    max_length: int = MAX_LENGTH
    first_wait_seconds: float = FIRST_WAIT_SECONDS

    def lengths(self, requests: Sequence[Request]) -> list[int]:
        """Tokens of context, continuation and answer together, by the tokenizer given."""
        return answering.lengths(self.tokenized(requests), requests)

    def generate(self, requests: Sequence[Request]) -> list[str | None]:
        """Greedy; ends at a stop string (not part of the answer) or `max_new_tokens`; None where it does not fit."""
        fits = [length <= self.max_length for length in self.lengths(requests)]
        texts = iter(self._all(self._text, [one for one, is_short in zip(requests, fits, strict=True) if is_short]))
        return [next(texts) if is_short else None for is_short in fits]

    def _text(self, request: Request) -> str:
        asked = {
            "prompt": request.context,
            "max_tokens": request.max_new_tokens,
            "stop": request.stop[:MAX_STOPS] or None,
        }
        text = self._choice(asked).get("text")
        if not isinstance(text, str):
            raise TriplaneError(f"{self.url} answered without a text: it does not speak the completions API")
        return cut_at_stop(text, request.stop)

    def loglikelihood(self, requests: Sequence[Request]) -> list[Loglikelihood | None]:
        """Identical pairs are asked once. Refused where the endpoint offers no log-probabilities of a prompt, or for documents."""
        if any(not request.context for request in requests):
            raise Refused(f"{self.url} gives no log-likelihood of a text's first token: documents need another backend")
        distinct = list({(r.context, r.continuation): r for r in requests}.values())
        short = [r for r, n in zip(distinct, self.lengths(distinct), strict=True) if n <= self.max_length]
        found = {(r.context, r.continuation): one for r, one in zip(short, self._all(self._sum, short), strict=True)}
        return [found.get((r.context, r.continuation)) for r in requests]

    def _sum(self, request: Request) -> Loglikelihood:
        asked = {"prompt": request.context + request.continuation, "max_tokens": 1, "logprobs": 1, "echo": True}
        logprobs = self._choice(asked).get("logprobs") or {}
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        if any(not isinstance(logprobs.get(name), list) for name in names) or not logprobs["text_offset"]:
            raise Refused(
                f"{self.url} does not offer log-likelihoods of a prompt (`echo` with `logprobs`): only generated tasks can be asked of it"
            )
        return _scored(request, *(logprobs[name] for name in names))

    def _choice(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The one choice of an answer. TriplaneError where there is another number of them."""
        body = {"model": self.model, "temperature": 0, "n": 1, **{k: v for k, v in asked.items() if v is not None}}
        choices = self._post(body).get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            count = len(choices) if isinstance(choices, list) else "no"
            raise TriplaneError(f"{self.url} answered with {count} choices where 1 was asked for: it has no score")
        return choices[0]

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        asked = urllib.request.Request(f"{self.url}/completions", json.dumps(body).encode(), headers)
        for attempt in range(ATTEMPTS):
            try:
                with OPENER.open(asked, timeout=TIMEOUT_SECONDS) as answer:
                    found = json.load(answer)
                if not isinstance(found, dict):
                    raise ValueError(f"a {type(found).__name__}")
                return found
            except urllib.error.HTTPError as error:
                said = error.read(SAID_CHARACTERS).decode(errors="replace")
                problem, is_final = f"status {error.code}: {said}", error.code not in BUSY
            except (OSError, ValueError) as error:
                problem, is_final = repr(error), False
            if is_final:
                break
            time.sleep(self.first_wait_seconds * 2**attempt)
        raise TriplaneError(f"{self.url} did not answer: {problem}")

    def _all(self, ask: Callable[[Request], T], requests: Sequence[Request]) -> list[T]:
        """Several at once. What was refused is raised as it is; what failed, with how many did."""
        with ThreadPoolExecutor(AT_ONCE) as threads:
            futures = [threads.submit(ask, request) for request in requests]
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in errors:
            if not isinstance(error, TriplaneError) or isinstance(error, Refused):
                raise error
        if errors:
            raise TriplaneError(f"{len(errors)} of {len(requests)} requests failed, so there is no score. {errors[0]}")
        return [future.result() for future in futures]


def _scored(
    request: Request, tokens: list[str], logprobs: list[float | None], top: list[Any], offsets: list[int]
) -> Loglikelihood:
    """Over the tokens of the continuation: those that begin in it (its leading space included), less the one that was generated."""
    start = len(request.context.rstrip()) if request.continuation else len(request.context)
    end = len(request.context) + len(request.continuation)
    mine = [i for i, offset in enumerate(offsets) if start <= offset < end]
    values = [logprobs[i] for i in mine]
    if not mine or any(value is None or not math.isfinite(value) for value in values):
        raise TriplaneError(f"the endpoint gave no log-likelihood for {request.continuation!r}: it has no score")
    is_greedy = all(top[i] and tokens[i] == max(top[i], key=top[i].get) for i in mine)
    return Loglikelihood(math.fsum(value for value in values if value is not None), is_greedy, len(mine))


def load(source: models.Model, device: str | None = None, before: Tokenized | None = None) -> OpenAI:
    """The endpoint of `openai:URL#MODEL`; nothing is asked of it yet."""
    url, _, model = source.url.partition("#")
    tokenizer = Tokenizer.load(source.tokenizer_url)
    return OpenAI(url.rstrip("/"), model, kept(tokenizer, before))
