"""The language model as an object: token ids in, log-probabilities or token ids out. Used by training, evaluation and rollouts alike.

`loglikelihood` and `continuation_scores` score continuations given contexts, `token_logprobs` whole documents (bits per byte),
`generate` continues prompts. Results do not depend on the order of the requests or on the batch size, beyond rounding (tested: 1e-4).
Shape suffixes: B rows, T tokens, D hidden_size, V vocab_size, U rows of hidden states that reach the output head.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from triplane.errors import UsageError
from triplane.lm.generation import cut_at_stop, generate
from triplane.lm.model import Olmo2
from triplane.lm.prefix_tree import Row, batches, pack

__all__ = [
    "BATCH_TOKENS",
    "Scores",
    "continuation_scores",
    "cut_at_stop",
    "generate",
    "loglikelihood",
    "token_logprobs",
]

BATCH_TOKENS = 4096
# Logits held at once, fp32: with a vocabulary of 100,352 they are the largest thing by far. On a CPU they should stay in its cache.
HEAD_BYTES, HEAD_BYTES_CPU, MIN_HEAD_ROWS = 512 << 20, 8 << 20, 128
# A row of T tokens costs 4 T D a token and layer in attention and about 24 D^2 in linears: below 3 D it stays under half of them.
# (Rows may always be twice the longest request: what is shared is worth more than that.)
ROW_TOKENS_PER_HIDDEN = 3

Request = tuple[Sequence[int], Sequence[int]]


class Scores(NamedTuple):
    """Of one continuation: natural log-probability of each token, and whether each token was the model's first choice."""

    token_logprobs: np.ndarray  # float32 [n]
    is_greedy: bool


def loglikelihood(
    model: Olmo2, requests: Sequence[Request], batch_tokens: int = BATCH_TOKENS
) -> list[tuple[float, bool]]:
    """(sum of log-probabilities in nats, is_greedy) of each (context, continuation); see `continuation_scores`."""
    scores = continuation_scores(model, requests, batch_tokens)
    return [(float(score.token_logprobs.sum(dtype=np.float64)), score.is_greedy) for score in scores]


def continuation_scores(model: Olmo2, requests: Sequence[Request], batch_tokens: int = BATCH_TOKENS) -> list[Scores]:
    """Scores of each (context ids, continuation ids), in the order given.

    An empty context stands for the end-of-text token; contexts are cut from the left to fit the model. An empty continuation has no
    tokens and is greedy. UsageError if a continuation alone is longer than the model's context.
    """
    scores = [Scores(np.empty(0, np.float32), True)] * len(requests)
    numbers = [number for number, (_, continuation) in enumerate(requests) if len(continuation)]
    inputs = [_input(model, *requests[number]) for number in numbers]
    longest = max(map(len, inputs), default=0)
    rows = pack(inputs, min(batch_tokens, max(ROW_TOKENS_PER_HIDDEN * model.config.hidden_size, 2 * longest)))
    for batch in batches(rows, batch_tokens):
        wanted = [(b, path, requests[numbers[s]][1]) for b, row in enumerate(batch) for s, path in row.paths.items()]
        order = [numbers[s] for row in batch for s in row.paths]
        for number, score in zip(order, _score_batch(model, batch, wanted), strict=True):
            scores[number] = score
    return scores


def _input(model: Olmo2, context: Sequence[int], continuation: Sequence[int]) -> list[int]:
    """What the model reads: all but the last token, the end of it if it is too long."""
    limit = model.config.max_position_embeddings
    if len(continuation) > limit:
        raise UsageError(
            f"a continuation has {len(continuation)} tokens, the model's context {limit}: cut it or window it"
        )
    return [*(context if len(context) else [model.config.eos_token_id]), *continuation][:-1][-limit:]


@torch.inference_mode()
def _score_batch(model: Olmo2, batch: list[Row], wanted: list[tuple[int, np.ndarray, Sequence[int]]]) -> list[Scores]:
    """`wanted`: (row of the batch, path of the input in it, continuation). The last tokens of a path predict the continuation."""
    hidden_BTD = _forward(model, batch)
    lengths = [len(continuation) for _, _, continuation in wanted]
    size = hidden_BTD.shape[1]
    places = np.concatenate([b * size + path[-len(continuation) :] for b, path, continuation in wanted])
    targets = np.concatenate([np.asarray(continuation, np.int64) for _, _, continuation in wanted])
    logprobs, greedy = _through_head(model, hidden_BTD.flatten(0, 1), places, targets)
    ends = np.cumsum(lengths)[:-1]
    return [Scores(p, bool(g.all())) for p, g in zip(np.split(logprobs, ends), np.split(greedy, ends), strict=True)]


def _forward(model: Olmo2, batch: list[Row]) -> Tensor:
    """Hidden states [B, T, D] of rows padded on the right: no real token looks at what comes after it."""
    device, size = model.lm_head.weight.device, max(len(row.tokens) for row in batch)
    ids_BT = torch.from_numpy(np.stack([np.pad(row.tokens, (0, size - len(row.tokens))) for row in batch])).to(device)
    if batch[0].is_chain:
        return model.hidden(ids_BT)
    positions_BT = torch.from_numpy(np.stack([np.pad(row.positions, (0, size - len(row.tokens))) for row in batch]))
    mask_BTT = torch.from_numpy(np.stack([row.mask(size) for row in batch]))
    return model.hidden(ids_BT, positions_BT=positions_BT.to(device), mask_BTT=mask_BTT.to(device))


def _through_head(
    model: Olmo2, hidden_ND: Tensor, places: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(log-probability, is the first choice) of each target at its place; each place goes through the head once, in bounded pieces."""
    order = np.argsort(places, kind="stable")
    unique, inverse = np.unique(places[order], return_inverse=True)
    logprobs, greedy = np.empty(len(places), np.float32), np.empty(len(places), bool)
    head_bytes = HEAD_BYTES_CPU if hidden_ND.device.type == "cpu" else HEAD_BYTES
    piece = max(MIN_HEAD_ROWS, head_bytes // (4 * model.config.vocab_size))
    for start in range(0, len(unique), piece):
        index = torch.from_numpy(unique[start : start + piece]).to(hidden_ND.device)
        logits_UV = model.lm_head(hidden_ND[index]).float()
        first, last = np.searchsorted(inverse, [start, start + piece])
        u = torch.from_numpy(inverse[first:last] - start).to(hidden_ND.device)
        v = torch.from_numpy(targets[order[first:last]]).to(hidden_ND.device)
        logprobs[order[first:last]] = (logits_UV[u, v] - logits_UV.logsumexp(-1)[u]).cpu().numpy()
        greedy[order[first:last]] = (logits_UV.argmax(-1)[u] == v).cpu().numpy()
    return logprobs, greedy


def token_logprobs(
    model: Olmo2, sequences: Sequence[Sequence[int]], batch_tokens: int = BATCH_TOKENS
) -> list[np.ndarray]:
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
