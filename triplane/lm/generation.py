"""Greedy generation: prompts (token ids) in, continuations (token ids) out, batched, with a cache of keys and values.

Prompts of different lengths share a batch without padding on the left: the token at position p of a row sits in cache slot p, whatever
the other rows do. What all prompts of a batch have in common at their start is computed once.
Shape suffixes: B rows, T tokens, D hidden_size, V vocab_size.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from triplane.errors import TriplaneError, UsageError
from triplane.lm.model import Cache, Olmo2
from triplane.lm.prefix_tree import common_prefix

CACHE_TOKENS = 32768  # rows times slots of one batch
END_TOKENS = 16  # of a prompt, shown in errors


@dataclasses.dataclass(frozen=True)
class _Stop:
    """When a row ends: at an id (left out of the result) or once its text holds one of the strings."""

    ids: frozenset[int]
    strings: tuple[str, ...]
    decode: Callable[[Sequence[int]], str] | None
    max_new_tokens: int

    def ends(self, generated: Sequence[int]) -> bool:
        if len(generated) >= self.max_new_tokens:
            return True
        if self.decode is None or not self.strings:
            return False
        text = self.decode(generated)
        return any(string in text for string in self.strings)


def generate(
    model: Olmo2,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Iterable[int] = (),
    stop_strings: Sequence[str] = (),
    decode: Callable[[Sequence[int]], str] | None = None,
    eos_id: int | None = None,
    cache_tokens: int = CACHE_TOKENS,
) -> list[list[int]]:
    """The greedy continuation of each prompt, at most `max_new_tokens` ids, in the order given.

    It ends before `eos_id` (the model's by default) or one of `stop_ids`, and with the token that completes one of `stop_strings` in
    `decode(generated)`: `cut_at_stop` gives the text before it. An empty prompt stands for end-of-text; prompts are cut from the left so
    that the answer fits the model's context. UsageError if it cannot, or if stop strings come without `decode`;
    TriplaneError where the logits are not finite.
    """
    if stop_strings and decode is None:
        raise UsageError("stop strings need `decode`, to see the text that was generated: pass the tokenizer's")
    room = model.config.max_position_embeddings - max_new_tokens
    if room < 1:
        raise UsageError(
            f"max_new_tokens {max_new_tokens} leaves no room for a prompt in {room + max_new_tokens} positions"
        )
    eos = model.config.eos_token_id if eos_id is None else eos_id
    stop = _Stop(frozenset((*stop_ids, eos)), tuple(stop_strings), decode, max_new_tokens)
    trimmed = [np.asarray(prompt if len(prompt) else [eos], np.int64)[-room:] for prompt in prompts]
    results: list[list[int]] = [[] for _ in prompts]
    for batch in _batches(trimmed, max_new_tokens, cache_tokens) if max_new_tokens > 0 else []:
        for number, ids in zip(batch, _generate_batch(model, [trimmed[number] for number in batch], stop), strict=True):
            results[number] = ids
    return results


def cut_at_stop(text: str, stop_strings: Sequence[str]) -> str:
    """The text before the first occurrence of any stop string."""
    found = [place for string in stop_strings if (place := text.find(string)) >= 0]
    return text[: min(found, default=len(text))]


def _batches(prompts: list[np.ndarray], max_new_tokens: int, cache_tokens: int) -> list[list[int]]:
    """Numbers of prompts of like length, longest first, whose cache holds at most `cache_tokens` slots."""
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    found: list[list[int]] = []
    for number in order:
        if found and (len(found[-1]) + 1) * (len(prompts[found[-1][0]]) + max_new_tokens) <= cache_tokens:
            found[-1].append(number)
        else:
            found.append([number])
    return found


@torch.inference_mode()
def _generate_batch(model: Olmo2, prompts: list[np.ndarray], stop: _Stop) -> list[list[int]]:
    device = model.lm_head.weight.device
    hidden_BD, cache = _prefill(model, prompts, stop.max_new_tokens)
    lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=device)
    results: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))  # prompt of each row of the cache; -1 once it has ended
    while True:
        logits_BV = model.lm_head(hidden_BD)
        _refuse_non_finite(logits_BV, active, prompts, results, stop)
        next_B = logits_BV.argmax(-1)
        for row, token in enumerate(next_B.tolist()):
            if active[row] >= 0 and not _append(results[active[row]], token, stop):
                active[row] = -1
        rows = [row for row, number in enumerate(active) if number >= 0]
        if not rows:
            return results
        if 2 * len(rows) <= len(active):  # moving the cache costs: only when half of it has ended
            kept = torch.tensor(rows, device=device)
            cache.keep_rows(kept)
            next_B, lengths_B, active = next_B[kept], lengths_B[kept], [active[row] for row in rows]
        hidden_BD = model.hidden(next_B[:, None], cache, lengths_B[:, None])[:, 0]
        lengths_B = lengths_B + 1


def _refuse_non_finite(
    logits_BV: Tensor, active: list[int], prompts: list[np.ndarray], results: list[list[int]], stop: _Stop
) -> None:
    """The largest of logits that are not numbers is a token too, and looks like an answer. Raises TriplaneError, naming the request."""
    for number, is_finite in zip(active, logits_BV.isfinite().all(-1).tolist(), strict=True):
        if number >= 0 and not is_finite:
            ids = prompts[number][-END_TOKENS:].tolist()
            end = f"token ids {ids}" if stop.decode is None else repr(stop.decode(ids))
            raise TriplaneError(
                f"the model's logits after {len(results[number])} tokens for the prompt that ends in {end} are not finite: its "
                f"weights hold values that are not numbers"
            )


def _append(generated: list[int], token: int, stop: _Stop) -> bool:
    """Add the token unless it is a stop id; whether the row goes on."""
    if token in stop.ids:
        return False
    generated.append(token)
    return not stop.ends(generated)


def _prefill(model: Olmo2, prompts: list[np.ndarray], max_new_tokens: int) -> tuple[Tensor, Cache]:
    """(hidden state [B, D] of each prompt's last token, the cache): the common prefix as one row, then the rest of each prompt."""
    device, num_slots = model.lm_head.weight.device, max(map(len, prompts)) + max_new_tokens
    # The last token of the shortest prompt stays with its row: its hidden state is needed.
    shared = min(reduce(min, (common_prefix(prompts[0], prompt) for prompt in prompts)), min(map(len, prompts)) - 1)
    cache = Cache(model.config, 1, num_slots, model.lm_head.weight)
    if shared:
        model.hidden(torch.from_numpy(prompts[0][None, :shared]).to(device), cache)
    cache.keep_rows(torch.zeros(len(prompts), dtype=torch.int64, device=device))
    size = max(map(len, prompts)) - shared
    rest = np.stack([np.pad(prompt[shared:], (0, size - len(prompt) + shared)) for prompt in prompts])
    positions_1T = torch.arange(shared, shared + size, device=device)[None]
    hidden_BTD = model.hidden(torch.from_numpy(rest).to(device), cache, positions_1T)
    last = torch.tensor([len(prompt) - shared - 1 for prompt in prompts], device=device)
    return hidden_BTD[torch.arange(len(prompts), device=device), last], cache
