"""The backend over `transformers`: any causal language model it loads from a folder of safetensors, on one device.

In: requests. Out: one result a request, in order. Requests of like length share a batch, padded on the right; those that read the same (letters
after one question) share a forward. Generation is greedy, padded on the left. Much slower than `native`, which shares prefixes.
"""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evalplane import models
from evalplane.backends import answering
from evalplane.task import Loglikelihood, Request
from evalplane.tokenized import Pair, Tokenized, kept
from triplane.errors import Refused, UsageError
from triplane.lm.engine import cut_at_stop
from triplane.tokenizer import Tokenizer

BATCH_TOKENS = 2048
DEFAULT_MAX_LENGTH = 4096


@dataclass(frozen=True)
class Transformers:
    """A loaded model; `Backend` of evalplane.task."""

    model: Any
    tokenizer: Tokenizer
    tokenized: Tokenized
    batch_tokens: int = BATCH_TOKENS

    @property
    def max_length(self) -> int:
        return int(getattr(self.model.config, "max_position_embeddings", DEFAULT_MAX_LENGTH))

    def lengths(self, requests: Sequence[Request]) -> list[int]:
        """Tokens of context, continuation and answer together: what must fit `max_length`."""
        return answering.lengths(self.tokenized(requests), requests)

    def loglikelihood(self, requests: Sequence[Request]) -> list[Loglikelihood | None]:
        """Identical (context, continuation) pairs are computed once."""
        return answering.loglikelihood(self, requests, self._scores)

    def _scores(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        inputs = [np.concatenate(pair)[:-1].astype(np.int64) for pair in pairs]
        sharing: dict[bytes, list[int]] = {}
        for number, array in enumerate(inputs):
            sharing.setdefault(array.tobytes(), []).append(number)
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        groups = sorted(sharing.values(), key=lambda group: -len(inputs[group[0]]))
        for batch in _batches([len(inputs[group[0]]) for group in groups], self.batch_tokens):
            rows = [groups[i] for i in batch]
            first = min(len(inputs[n]) - len(pairs[n][1]) for group in rows for n in group)
            logprobs = self._logprobs([inputs[group[0]] for group in rows], first)
            for row, group in enumerate(rows):
                for n in group:
                    found[n] = _score(logprobs[row], len(inputs[n]) - first, pairs[n][1])
        return found

    @torch.inference_mode()
    def _logprobs(self, inputs: list[np.ndarray], first: int) -> Tensor:
        """Log-probabilities [B, T - first, V] of what follows each position from `first` on."""
        size, device = max(map(len, inputs)), self.model.device
        ids = torch.from_numpy(np.stack([np.pad(one, (0, size - len(one))) for one in inputs])).to(device)
        mask = torch.from_numpy(np.stack([np.arange(size) < len(one) for one in inputs])).to(device).long()
        wanted = torch.arange(first, size, device=device)
        return self.model(input_ids=ids, attention_mask=mask, logits_to_keep=wanted).logits.float().log_softmax(-1)

    def generate(self, requests: Sequence[Request]) -> list[str | None]:
        """Greedy; ends at a stop string (not part of the answer), the end-of-text token, or `max_new_tokens`."""
        return answering.generate(self, requests, self._answers)

    def _answers(self, prompts: list[np.ndarray], max_new_tokens: int, stop: tuple[str, ...]) -> list[str]:
        texts = [""] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        for some in _batches([len(prompts[i]) + max_new_tokens for i in order], self.batch_tokens * 4):
            batch = [order[i] for i in some]
            for i, ids in zip(batch, self._continue([prompts[i] for i in batch], max_new_tokens, stop), strict=True):
                texts[i] = cut_at_stop(self.tokenizer.decode(ids), stop)
        return texts

    @torch.inference_mode()
    def _continue(self, prompts: list[np.ndarray], max_new_tokens: int, stop: tuple[str, ...]) -> list[list[int]]:
        size, eos, device = max(map(len, prompts)), self.tokenizer.eos_id, self.model.device
        ids = np.stack([np.pad(one.astype(np.int64), (size - len(one), 0), constant_values=eos) for one in prompts])
        mask = np.stack([np.arange(size) >= size - len(one) for one in prompts])

        def ended(all_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            texts = [self.tokenizer.decode(row) for row in all_ids[:, size:].tolist()]
            return torch.tensor([any(string in text for string in stop) for text in texts], device=device)

        out = self.model.generate(
            input_ids=torch.from_numpy(ids).to(device),
            attention_mask=torch.from_numpy(mask).to(device).long(),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=eos,
            stopping_criteria=[ended] if stop else None,
        )[:, size:].tolist()
        return [row[: row.index(eos)] if eos in row else row for row in out]


def _score(logprobs_TV: Tensor, end: int, target: np.ndarray) -> tuple[float, bool]:
    """Of a continuation whose last token is predicted at row `end` - 1."""
    rows, ids = logprobs_TV[end - len(target) : end], torch.from_numpy(target.astype(np.int64)).to(logprobs_TV.device)
    chosen = rows.gather(1, ids[:, None])[:, 0]
    return float(chosen.double().sum()), bool((rows.argmax(-1) == ids).all())


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of rows, longest first as they come, whose padded size stays within `batch_tokens`."""
    batch: list[int] = []
    for number in range(len(lengths)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def load(source: models.Model, device: str | None = None, before: Tokenized | None = None) -> Transformers:
    """Loads the model in its own dtype; weights are safetensors, code of the folder is never run. UsageError, Refused."""
    try:
        library = importlib.import_module("transformers")
    except ImportError as error:
        raise UsageError("the transformers backend needs transformers: pip install 'triplane[eval]'") from error
    tokenizer = Tokenizer.load(source.tokenizer_url)
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = library.AutoModelForCausalLM.from_pretrained(
            source.url, dtype="auto", use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"transformers cannot load {source.url}: {error}") from error
    return Transformers(model.to(where).eval(), tokenizer, kept(tokenizer, before))
