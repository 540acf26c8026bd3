"""The training loop: the only `while` of the trainplane.

(model, optimizer, state, batches, ledger, checkpointer) -> the model trained until `stop_tokens`. It is handed everything it uses; where batches
come from, where rows and checkpoints go and who started the process is not known here. Tokens are the clock: schedule, data position and
cadence are functions of `tokens_seen`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from trainplane import ledger, parallel
from trainplane.batches import Batch, Batches, interleaved
from trainplane.stability import SkipStep
from trainplane.step import StepMetrics, StepSettings, always_step, train_step
from triplane.errors import TriplaneError


@dataclass(frozen=True)
class TrainState:
    """What a checkpoint restores beside tensors. Steps count from 1; the next position of the data is tokens_seen / batch tokens."""

    step: int = 0
    tokens_seen: int = 0
    loss_history: tuple[float, ...] = ()
    grad_norm_history: tuple[float, ...] = ()


@dataclass(frozen=True)
class LoopSettings:
    """`stop_tokens`: training ends with the first step that has seen as many."""

    stop_tokens: int
    global_batch_tokens: int
    checkpoint_every_tokens: int
    read_ahead_batches: int
    skip_step: bool
    step: StepSettings = field(kw_only=True)


def is_checkpoint_due(tokens_seen: int, settings: LoopSettings) -> bool:
    """At the first step that reaches a multiple of the cadence, and at the last: a function of tokens alone."""
    every, batch = settings.checkpoint_every_tokens, settings.global_batch_tokens
    return tokens_seen >= settings.stop_tokens or tokens_seen // every > (tokens_seen - batch) // every


def train(
    model: Any,
    optimizer: torch.optim.Optimizer,
    state: TrainState,
    batches: Batches,
    settings: LoopSettings,
    rows: ledger.Ledger,
    save: Callable[[TrainState], None],
    on_step: Callable[[ledger.Row], None],
) -> TrainState:
    """`save` commits model, optimizer, state and the pending rows. Raises TriplaneError at a loss that is not finite."""
    first, stop = (
        state.tokens_seen // settings.global_batch_tokens,
        -(-settings.stop_tokens // settings.global_batch_tokens),
    )
    loader = batches.ahead(first, stop, settings.read_ahead_batches)
    skip = SkipStep(list(state.loss_history), list(state.grad_norm_history))
    should_step = skip if settings.skip_step else always_step
    try:
        while state.tokens_seen < settings.stop_tokens:
            batch = next(loader)
            step, tokens_seen = state.step + 1, state.tokens_seen + settings.global_batch_tokens
            tokens_BT, is_target_BT = torch.from_numpy(batch.tokens_BT), torch.from_numpy(batch.is_target_BT)
            metrics = train_step(model, optimizer, tokens_BT, is_target_BT, tokens_seen, settings.step, should_step)
            _refuse_what_is_not_finite(step, batch, metrics)
            state = replace(
                state,
                step=step,
                tokens_seen=tokens_seen,
                loss_history=tuple(skip.losses),
                grad_norm_history=tuple(skip.grad_norms),
            )
            rows.add(_row(state, batch, metrics))
            on_step(rows.pending[-1])
            if is_checkpoint_due(tokens_seen, settings):
                save(state)
    finally:
        loader.close()
    return state


def _row(state: TrainState, batch: Batch, metrics: StepMetrics) -> ledger.Row:
    """The ledger row of the global batch: hashes and masked instances of every rank, in the order of the batch."""
    of_rank = np.concatenate([batch.row_hashes_B, batch.is_masked_B.astype(np.uint64)])
    hashes, masked = np.split(parallel.gather(of_rank), 2, axis=1)
    row_hashes, num_masked = interleaved(hashes), int(masked.sum())
    return ledger.row(state.step, state.tokens_seen, batch, row_hashes, num_masked, metrics, parallel.world_size())


def _refuse_what_is_not_finite(step: int, batch: Batch, metrics: StepMetrics) -> None:
    values = (metrics.loss, metrics.z_loss, metrics.grad_norm, metrics.update_norm or 0.0)
    if not all(map(math.isfinite, values)):
        raise TriplaneError(
            f"step {step} (data position {batch.position}, instances {batch.instances[:4].tolist()}...) has loss {metrics.loss}, gradient norm "
            f"{metrics.grad_norm}, update norm {metrics.update_norm}: lower the learning rate or look at the batch; the checkpoint before it stands"
        )
