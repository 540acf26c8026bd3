"""The language model as an object: token ids in, log-probabilities or token ids out. Used by training, evaluation and rollouts alike.

`loglikelihood` and `continuation_scores` score continuations given contexts, `token_logprobs` whole documents (bits per byte),
`generate` continues prompts. Results do not depend on the order of the requests or on the batch size, beyond rounding (tested: 1e-4).
Memory: the weights, keys and values of at most `CACHE_TOKENS`, and what one forward and one plan take, however many requests there are.
Shape suffixes: B rows, T tokens, D hidden_size, V vocab_size, U rows of hidden states that reach the output head.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from triplane.errors import UsageError
from triplane.lm import engine_ranks, tree_forward
from triplane.lm.generation import cut_at_stop, generate
from triplane.lm.model import Olmo2
from triplane.lm.prefix_tree import Ids, Plan, Step, plan
from triplane.lm.tree_forward import KeysValues, TreeRows, joined

__all__ = [
    "BATCH_TOKENS",
    "Scores",
    "continuation_scores",
    "cut_at_stop",
    "generate",
    "loglikelihood",
    "token_logprobs",
]

BATCH_TOKENS = 2048  # a CPU's matrix products are fastest there
# Of the requests that are planned together: a plan takes some 60 bytes a token, so its share of memory does not grow with the suite.
PLAN_TOKENS = 1 << 22
# Logits held at once, fp32: with a vocabulary of 100,352 they are the largest thing by far.
HEAD_BYTES, HEAD_BYTES_CPU = 512 << 20, 100 << 20

Request = tuple[Ids, Ids]  # context, continuation


class Scores(NamedTuple):
    """Of one continuation: natural log-probability of each token, and whether each token was the model's first choice."""

    token_logprobs: np.ndarray  # float32 [n]
    is_greedy: bool


def loglikelihood(
    model: Olmo2, requests: Sequence[Request], batch_tokens: int = BATCH_TOKENS
) -> list[tuple[float, bool]]:
    """(sum of log-probabilities in nats, is_greedy) of each (context, continuation); see `continuation_scores`.

    Of a sharded model every rank calls this with the same requests, answers its part of them and gets all results.
    """
    if engine_ranks.is_sharded(model):
        return _over_ranks(model, requests, batch_tokens)
    scores = continuation_scores(model, requests, batch_tokens)
    return [(float(score.token_logprobs.sum(dtype=np.float64)), score.is_greedy) for score in scores]


def continuation_scores(model: Olmo2, requests: Sequence[Request], batch_tokens: int = BATCH_TOKENS) -> list[Scores]:
    """Scores of each (context ids, continuation ids), in the order given.

    An empty context stands for the end-of-text token; contexts are cut from the left to fit the model. An empty continuation has no
    tokens and is greedy. UsageError if a continuation alone is longer than the model's context.
    """
    scores = [Scores(np.empty(0, np.float32), True)] * len(requests)
    parts = _planned_together(requests)
    while True:
        numbers = next(parts, [])
        targets = [np.asarray(requests[number][1], np.int64) for number in numbers]
        planned = plan([_input(model, *requests[number]) for number in numbers], list(map(len, targets)), batch_tokens)
        forwards = engine_ranks.most(model, len(planned.steps))
        if forwards == 0:
            return scores
        if numbers:
            logprobs, greedy = _score(model, planned, np.concatenate(targets))
            ends = np.cumsum([len(target) for target in targets])[:-1]
            for number, p, g in zip(numbers, np.split(logprobs, ends), np.split(greedy, ends), strict=True):
                scores[number] = Scores(p, bool(g.all()))
        for _ in range(forwards - len(planned.steps)):
            engine_ranks.idle(model)


def _over_ranks(model: Olmo2, requests: Sequence[Request], batch_tokens: int) -> list[tuple[float, bool]]:
    for _, continuation in requests:
        _check_fits(model, continuation)  # on every rank, or the others would wait for the one that raised
    mine = engine_ranks.share(len(requests))
    found = np.zeros((len(requests), 2))
    scores = continuation_scores(model, [requests[number] for number in mine], batch_tokens)
    for number, score in zip(mine, scores, strict=True):
        found[number] = score.token_logprobs.sum(dtype=np.float64), score.is_greedy
    return [(float(total), bool(is_greedy)) for total, is_greedy in engine_ranks.together(found)]


def _planned_together(requests: Sequence[Request]) -> Iterator[list[int]]:
    """The requests with something to score, in order, about `PLAN_TOKENS` at a time: what two parts share is computed in both."""
    numbers: list[int] = []
    room = PLAN_TOKENS
    for number, (context, continuation) in enumerate(requests):
        if not len(continuation):
            continue
        size = len(context) + len(continuation)
        if numbers and size > room:
            yield numbers
            numbers, room = [], PLAN_TOKENS
        numbers.append(number)
        room -= size
    if numbers:
        yield numbers


def _input(model: Olmo2, context: Ids, continuation: Ids) -> np.ndarray:
    """What the model reads: all but the last token, the end of it if it is too long."""
    _check_fits(model, continuation)
    limit = model.config.max_position_embeddings
    before = context if len(context) else [model.config.eos_token_id]
    return np.concatenate((np.asarray(before, np.int64), np.asarray(continuation, np.int64)))[:-1][-limit:]


def _check_fits(model: Olmo2, continuation: Ids) -> None:
    limit = model.config.max_position_embeddings
    if len(continuation) > limit:
        raise UsageError(
            f"a continuation has {len(continuation)} tokens, the model's context {limit}: cut it or window it"
        )


def _score(model: Olmo2, planned: Plan, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(log-probability, is the first choice) of each target, at the places of the plan's sequences in turn."""
    places = np.concatenate(planned.places)
    order = np.argsort(places, kind="stable")
    logprobs, greedy = np.empty(len(places), np.float32), np.empty(len(places), bool)
    trunks: dict[int, list[KeysValues]] = {}
    last_use = {step.trunk: number for number, step in enumerate(planned.steps)}
    for number, step in enumerate(planned.steps):
        first, last = np.searchsorted(places[order], [step.first_place, step.first_place + step.num_tokens])
        mine = order[first:last]
        wanted, inverse = np.unique(places[mine] - step.first_place, return_inverse=True)
        with engine_ranks.without_gradients(model):
            hidden_UD = _run(model, step, wanted, trunks)
            with engine_ranks.gathered(model.lm_head):
                logprobs[mine], greedy[mine] = _through_head(model, hidden_UD, inverse, targets[mine])
        if last_use[step.trunk] == number:
            trunks.pop(step.trunk, None)
    return logprobs, greedy


def _run(model: Olmo2, step: Step, wanted: np.ndarray, trunks: dict[int, list[KeysValues]]) -> Tensor:
    """Hidden states [U, D] of the wanted tokens of a step; a trunk's keys and values are put into `trunks`, its parent's before them."""
    device, before = model.lm_head.weight.device, trunks.get(step.trunk)
    own = TreeRows(step.rows, device, is_alone=before is None, keep=step.makes >= 0)
    ids_N, positions_N, wanted_U = (
        torch.from_numpy(array).to(device)
        for array in (
            np.concatenate([row.tokens for row in step.rows]),
            np.concatenate([row.positions for row in step.rows]),
            wanted,
        )
    )
    hidden_UD = tree_forward.hidden(model, ids_N, positions_N, own, before, wanted_U)
    if own.kept is not None:
        trunks[step.makes] = own.kept if before is None else joined(before, own.kept)
    return hidden_UD


def _through_head(
    model: Olmo2, hidden_UD: Tensor, rows: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(log-probability, is the first choice) of each target at its row, ascending; each row goes through the head once, in bounded pieces."""
    logprobs, greedy = np.empty(len(rows), np.float32), np.empty(len(rows), bool)
    head_bytes = HEAD_BYTES_CPU if hidden_UD.device.type == "cpu" else HEAD_BYTES
    piece = max(1, head_bytes // (4 * model.config.vocab_size))
    for start in range(0, len(hidden_UD), piece):
        logits_UV = model.lm_head.forward(hidden_UD[start : start + piece]).float()
        first, last = np.searchsorted(rows, [start, start + piece])
        u = torch.from_numpy(rows[first:last] - start).to(hidden_UD.device)
        v = torch.from_numpy(targets[first:last]).to(hidden_UD.device)
        chosen, largest = logits_UV[u, v], logits_UV.amax(-1)
        # In place: a second matrix of this size would be the peak of memory.
        log_total = logits_UV.sub_(largest[:, None]).exp_().sum(-1).log() + largest
        logprobs[first:last] = (chosen - log_total[u]).cpu().numpy()
        greedy[first:last] = (chosen == largest[u]).cpu().numpy()
    return logprobs, greedy


def token_logprobs(model: Olmo2, sequences: Sequence[Ids], batch_tokens: int = BATCH_TOKENS) -> list[np.ndarray]:
    """The natural log-probability of every token of every document, float32 [n] each; each token is scored exactly once.

    With C the model's context, the model reads end-of-text and the document, cut every C tokens, and each token it reads predicts the
    next. So the first token is scored given end-of-text, and the first of each later window given the one token before it; windows do
    not overlap. Documents of up to C tokens are scored whole.
    """
    limit = model.config.max_position_embeddings
    requests: list[Request] = []
    for sequence in sequences:
        for start in range(0, len(sequence), limit):
            context = sequence[start - 1 : start] if start else [model.config.eos_token_id]
            requests.append((list(context), sequence[start : start + limit]))
    pieces = iter(continuation_scores(model, requests, batch_tokens))
    return [
        np.concatenate(
            [next(pieces).token_logprobs for _ in range(0, len(sequence), limit)] or [np.empty(0, np.float32)]
        )
        for sequence in sequences
    ]
