"""The training loop: the only `while` of the trainplane.

(model, optimizer, state, batches, ledger, checkpointer) -> the model trained until `stop_tokens`. It is handed everything it uses; where batches
come from, where rows and checkpoints go and who started the process is not known here. Tokens are the clock: schedule, data position and
cadence are functions of `tokens_seen`.
"""

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainplane import ledger, memory, parallel
from trainplane.batches import Batch, Batches, interleaved
from trainplane.stability import SkipStep
from trainplane.step import StepMetrics, StepSettings, StepTensors, always_step, device_step, read
from triplane.errors import TriplaneError

STEPS_PER_COLLECTION = 1000


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
    # Steps whose metrics are fetched from the device together.
    metrics_every_steps: int = field(kw_only=True, default=1)


def is_checkpoint_due(tokens_seen: int, settings: LoopSettings) -> bool:
    """At the first step that reaches a multiple of the cadence, and at the last: a function of tokens alone."""
    every, batch = settings.checkpoint_every_tokens, settings.global_batch_tokens
    return tokens_seen >= settings.stop_tokens or tokens_seen // every > (tokens_seen - batch) // every


def never() -> bool:
    """The default of `should_stop`."""
    return False


def train(
    model: Any,
    optimizer: torch.optim.Optimizer,
    state: TrainState,
    batches: Batches,
    settings: LoopSettings,
    rows: ledger.Ledger,
    save: Callable[[TrainState], None],
    on_step: Callable[[ledger.Row], None],
    should_stop: Callable[[], bool] = never,
) -> TrainState:
    """`save` commits model, optimizer, state and the pending rows; it may do so in the background. `should_stop` is asked after every step,
    and says the same on every rank: True saves and returns early. Raises TriplaneError at a loss that is not finite."""
    first, stop = (
        state.tokens_seen // settings.global_batch_tokens,
        -(-settings.stop_tokens // settings.global_batch_tokens),
    )
    loader = batches.ahead(first, stop, settings.read_ahead_batches)
    skip = SkipStep(state.loss_history, state.grad_norm_history)
    should_step = skip if settings.skip_step else always_step
    device = next(model.parameters()).device
    waiting: list[_Taken] = []
    first_step = state.step + 1
    stopping = False
    try:
        with ExitStack() as stack:
            stack.enter_context(_collector_at_rest())
            while state.tokens_seen < settings.stop_tokens and not stopping:
                batch = next(loader)
                tokens_seen = state.tokens_seen + settings.global_batch_tokens
                state = replace(state, step=state.step + 1, tokens_seen=tokens_seen)
                tensors = _on_device(batch, device)
                taken = device_step(model, optimizer, *tensors, tokens_seen, settings.step, should_step)
                waiting.append(_Taken(state, batch, taken))
                stopping = should_stop()
                saving = stopping or is_checkpoint_due(tokens_seen, settings)
                if saving or len(waiting) >= settings.metrics_every_steps:
                    _settle(waiting, rows, on_step)
                    state = replace(state, loss_history=skip.losses, grad_norm_history=skip.grad_norms)
                _tidy(stack, state.step, is_first=state.step == first_step, device=device)
                if saving:
                    save(state)
    finally:
        loader.close()
    return state


class _Taken(NamedTuple):
    """A step that the device may still be working on."""

    state: TrainState
    batch: Batch
    tensors: StepTensors


def _on_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    tensors = torch.from_numpy(batch.tokens_BT), torch.from_numpy(batch.is_target_BT)
    if device.type == "cpu":
        return tensors
    tokens_BT, is_target_BT = (tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors)
    return tokens_BT, is_target_BT


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Python's garbage collector runs when the loop says so: at the same step on every rank, else each waits for each in turn."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _tidy(stack: ExitStack, step: int, is_first: bool, device: torch.device) -> None:
    """From the end of the first step on, when the optimizer's state has its place for good, freed memory is kept for the next."""
    if is_first and device.type == "cpu":
        stack.enter_context(memory.kept())
    if step % STEPS_PER_COLLECTION == 0:
        gc.collect(1)


def _settle(waiting: list[_Taken], rows: ledger.Ledger, on_step: Callable[[ledger.Row], None]) -> None:
    """Reads the metrics of the steps that wait, all at once, and writes their rows."""
    for taken, metrics in zip(waiting, read([each.tensors for each in waiting]), strict=True):
        _refuse_what_is_not_finite(taken.state.step, taken.batch, metrics)
        rows.add(_row(taken.state, taken.batch, metrics))
        on_step(rows.pending[-1])
    waiting.clear()


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
            f"{metrics.grad_norm}, update norm {metrics.update_norm}: lower the learning rate or look at the batch; "
            f"checkpoints that were committed stand"
        )
