"""Generation: prompts (token ids) in, continuations (token ids) out, greedy or sampled by a seed; continuous batching over a cache of own tokens.

What prompts have in common at their start (few-shot examples) is computed once and looked at by all, never copied. What is a prompt's own
lies in a row of `Slots`, without padding on the left: its i-th own token in slot i. A prompt that ends makes room for the next one at once.
Shape suffixes: A running prompts, N tokens, D hidden_size, V vocab_size, K key heads, G query heads a key head, S slots, E head_dim.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from triplane.errors import TriplaneError, UsageError
from triplane.lm import prefix_tree, tree_forward
from triplane.lm.model import ModelConfig, Olmo2
from triplane.lm.prefix_tree import Branch, Ids, Row
from triplane.lm.sampling import GREEDY, Sampling
from triplane.lm.tree_forward import KeysValues, TreeRows

CACHE_TOKENS = 32768  # slots of all running prompts together
PREFILL_TOKENS = 512  # of new prompts in one forward, about
REFILL_SHARE = (
    4  # new prompts start when a quarter of the rows is free: a forward for one of them costs as much as for ten
)
END_TOKENS = 16  # of a prompt, shown in errors
UTF8_BYTES = 4

Decode = Callable[[Sequence[int]], str]


@dataclasses.dataclass(frozen=True)
class _Stop:
    """When a prompt's answer ends: at an id (left out of the result) or once its text holds one of the strings."""

    ids: frozenset[int]
    strings: tuple[str, ...]
    decode: Decode | None
    max_new_tokens: int

    def ends(self, generated: Sequence[int]) -> bool:
        if len(generated) >= self.max_new_tokens:
            return True
        if self.decode is None or not self.strings:
            return False
        # A token has a byte at least: a string that the last one completes lies in as many tokens as it has bytes, and a started character.
        window = max(len(string.encode()) for string in self.strings) + UTF8_BYTES
        text = self.decode(generated[-window:])
        return any(string in text for string in self.strings) and any(
            string in (text if len(generated) <= window else self.decode(generated)) for string in self.strings
        )


@dataclasses.dataclass
class _Running:
    """A prompt whose answer is being made; `length` counts its tokens in the slots."""

    number: int
    length: int
    answer: list[int]


def generate(
    model: Olmo2,
    prompts: Sequence[Ids],
    max_new_tokens: int,
    stop_ids: Iterable[int] = (),
    stop_strings: Sequence[str] = (),
    decode: Decode | None = None,
    eos_id: int | None = None,
    cache_tokens: int = CACHE_TOKENS,
    sampling: Sampling = GREEDY,
) -> list[list[int]]:
    """The continuation of each prompt, at most `max_new_tokens` ids, in the order given; greedy by default.

    It ends before `eos_id` (the model's by default) or one of `stop_ids`, and with the token that completes one of `stop_strings` in
    `decode(generated)`: `cut_at_stop` gives the text before it. An empty prompt stands for end-of-text; prompts are cut from the left so
    that the answer fits the model's context. A sampled answer depends on the seed and on the prompt's number, on nothing else.
    UsageError if it cannot fit, or if stop strings come without `decode`; TriplaneError where the logits are not finite.
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
    for shared, numbers in prefix_tree.groups(trimmed) if max_new_tokens > 0 else []:
        _Group(model, trimmed, shared, numbers, stop, sampling, cache_tokens).run(results)
    return results


def cut_at_stop(text: str, stop_strings: Sequence[str]) -> str:
    """The text before the first occurrence of any stop string."""
    found = [place for string in stop_strings if (place := text.find(string)) >= 0]
    return text[: min(found, default=len(text))]


class Slots:
    """Keys and values of the own tokens of running prompts, [A, K, S, E] a layer; rows 0..n-1 are in use.

    `Own` of tree_forward for one new token of each row: `lengths` says in which slot it goes. What lies behind it is never seen.
    """

    def __init__(self, config: ModelConfig, num_rows: int, num_slots: int, like: Tensor) -> None:
        """`like` gives device and dtype (any parameter of the model)."""
        shape = (num_rows, config.num_key_value_heads, num_slots, config.head_dim)
        # zeros, not empty: a weight of 0 times what is not a number is not a number. Memory is taken when it is written to.
        self.layers = [(like.new_zeros(shape), like.new_zeros(shape)) for _ in range(config.num_hidden_layers)]
        self.lengths = torch.zeros(0, dtype=torch.int64)

    def write(self, row: int, start: int, end: int, kept: list[KeysValues]) -> None:
        """Tokens [start, end) of what a forward kept become the first of a row."""
        for (keys, values), (k_KNE, v_KNE) in zip(self.layers, kept, strict=True):
            keys[row, :, : end - start] = k_KNE[:, start:end]
            values[row, :, : end - start] = v_KNE[:, start:end]

    def move(self, source: int, target: int, length: int) -> None:
        """The row takes another's place."""
        for keys, values in self.layers:
            keys[target, :, :length] = keys[source, :, :length]
            values[target, :, :length] = values[source, :, :length]

    def __call__(
        self, number: int, q_AHE: Tensor, k_AKE: Tensor, v_AKE: Tensor, wanted: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.layers[number]
        rows, used = torch.arange(len(k_AKE), device=k_AKE.device), int(self.lengths.max()) + 1
        keys[rows, :, self.lengths], values[rows, :, self.lengths] = k_AKE, v_AKE
        slots = torch.arange(used, device=k_AKE.device)
        bias_A1S = torch.where(slots <= self.lengths[:, None], 0.0, -torch.inf)[:, None]
        q_AKG1E = q_AHE.unflatten(1, (k_AKE.shape[1], -1))[:, :, :, None]
        out, lse = tree_forward.attend(q_AKG1E, keys[: len(rows), :, :used], values[: len(rows), :, :used], bias_A1S)
        return out.flatten(1, 3), lse.flatten(1, 3)


class _Group:
    """Prompts that share their first tokens (`shared` of them, perhaps none), answered together."""

    def __init__(
        self,
        model: Olmo2,
        prompts: list[np.ndarray],
        shared: int,
        numbers: list[int],
        stop: _Stop,
        sampling: Sampling,
        cache_tokens: int,
    ) -> None:
        self.model, self.prompts, self.stop, self.sampling = model, prompts, stop, sampling
        self.device = model.lm_head.weight.device
        # The last token of each prompt is its own: its hidden state is needed.
        self.shared = min(shared, *(len(prompts[number]) - 1 for number in numbers)) if len(numbers) > 1 else 0
        longest = max(len(prompts[number]) for number in numbers) - self.shared + stop.max_new_tokens
        self.capacity = min(len(numbers), max(1, cache_tokens // longest))
        self.waiting = deque(sorted(numbers, key=lambda number: -len(prompts[number])))
        self.running: list[_Running] = []
        self.slots = Slots(model.config, self.capacity, longest, model.lm_head.weight)
        self.trunk: list[KeysValues] | None = None

    @torch.inference_mode()
    def run(self, results: list[list[int]]) -> None:
        """Fills in the results of the group's prompts."""
        if self.shared:
            first = self.prompts[self.waiting[0]][: self.shared]
            self.trunk, _ = self._prefill([_chain(first, 0)], is_alone=True)
        while self.waiting or self.running:
            free = self.capacity - len(self.running)
            if self.waiting and free >= min(len(self.waiting), -(-self.capacity // REFILL_SHARE)):
                self._start()
            else:
                self._step()
            for one in self._ended():
                results[one.number] = one.answer

    def _start(self) -> None:
        """New prompts in the free rows: their own tokens in one forward, and the first token of each answer."""
        new: list[int] = []
        num_tokens = 0
        while self.waiting and len(self.running) + len(new) < self.capacity and num_tokens < PREFILL_TOKENS:
            new.append(self.waiting.popleft())
            num_tokens += len(self.prompts[new[-1]]) - self.shared
        rows = [_chain(self.prompts[number][self.shared :], self.shared) for number in new]
        kept, hidden_AD = self._prefill(rows, is_alone=not self.shared)
        start = 0
        for number, row in zip(new, rows, strict=True):
            end = start + len(row.tokens)
            self.slots.write(len(self.running), start, end, kept)
            self.running.append(_Running(number, end - start, []))
            start = end
        del kept  # as large as what was just written
        self._choose(hidden_AD, self.running[-len(new) :])

    def _prefill(self, rows: list[Row], is_alone: bool) -> tuple[list[KeysValues], Tensor]:
        """(keys and values of all tokens, hidden states of the last of each row)."""
        own = TreeRows(rows, self.device, is_alone, keep=True)
        ids = np.concatenate([row.tokens for row in rows])
        positions = np.concatenate([row.positions for row in rows])
        last = np.cumsum([len(row.tokens) for row in rows]) - 1
        ids_N, positions_N, last_A = (torch.from_numpy(array).to(self.device) for array in (ids, positions, last))
        trunk = None if is_alone else self.trunk
        hidden_AD = tree_forward.hidden(self.model, ids_N, positions_N, own, trunk, last_A)
        assert own.kept is not None
        return own.kept, hidden_AD

    def _step(self) -> None:
        """One token more of every running answer."""
        ids_A = torch.tensor([one.answer[-1] for one in self.running], device=self.device)
        self.slots.lengths = torch.tensor([one.length for one in self.running], device=self.device)
        everything = torch.arange(len(ids_A), device=self.device)
        positions_A = self.slots.lengths + self.shared
        hidden_AD = tree_forward.hidden(self.model, ids_A, positions_A, self.slots, self.trunk, everything)
        for one in self.running:
            one.length += 1
        self._choose(hidden_AD, self.running)

    def _choose(self, hidden_AD: Tensor, running: list[_Running]) -> None:
        logits_AV = self.model.lm_head(hidden_AD)
        # A sum is finite where all its parts are, and is much the faster to ask.
        for one, is_finite in zip(running, logits_AV.sum(-1, dtype=torch.float32).isfinite().tolist(), strict=True):
            if not is_finite:
                self._refuse(one)
        draws = [(one.number, len(one.answer)) for one in running]
        for one, token in zip(running, self.sampling.choose(logits_AV, draws), strict=True):
            one.answer.append(token)

    def _ended(self) -> list[_Running]:
        """Takes out what has ended; the last row moves into the gap, so that those in use stay together."""
        found = []
        for row in reversed(range(len(self.running))):
            one = self.running[row]
            is_stop = one.answer[-1] in self.stop.ids
            if is_stop:
                one.answer.pop()
            if is_stop or self.stop.ends(one.answer):
                found.append(one)
                last = self.running.pop()
                if last is not one:
                    self.running[row] = last
                    self.slots.move(len(self.running), row, last.length)
        return found

    def _refuse(self, one: _Running) -> None:
        """The largest of logits that are not numbers is a token too, and looks like an answer. Raises TriplaneError, naming the request."""
        ids = self.prompts[one.number][-END_TOKENS:].tolist()
        end = f"token ids {ids}" if self.stop.decode is None else repr(self.stop.decode(ids))
        raise TriplaneError(
            f"the model's logits after {len(one.answer)} tokens for the prompt that ends in {end} are not finite: its weights hold "
            f"values that are not numbers"
        )


def _chain(tokens: np.ndarray, start: int) -> Row:
    branch = Branch(np.empty(0, np.int64), 0, len(tokens))
    return Row(tokens, np.arange(start, start + len(tokens)), {}, [branch])
