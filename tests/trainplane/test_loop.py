"""The loop: when it saves, stops, reads metrics and collects garbage."""

import dataclasses
import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from trainplane import ledger, loop
from trainplane.batches import Batch
from trainplane.loop import LoopSettings, TrainState
from trainplane.optim import AdamWSettings, adamw
from trainplane.schedule import Schedule
from trainplane.stability import SKIP_MIN_HISTORY
from trainplane.step import StepSettings
from triplane.errors import TriplaneError
from triplane.lm.model import ModelConfig, Olmo2, init_weights

CONFIG = ModelConfig(61, 16, 24, 1, 2, 2, max_position_embeddings=8, eos_token_id=1, pad_token_id=0)
ROWS, LENGTH = 2, 8
BATCH = ROWS * LENGTH
SETTINGS = LoopSettings(
    stop_tokens=10 * BATCH, global_batch_tokens=BATCH, checkpoint_every_tokens=4 * BATCH, read_ahead_batches=1, skip_step=True,
    step=StepSettings(Schedule(1e-2, 0, "cosine", 20 * BATCH, 0.1), 1e-4, 1.0, ROWS, measure_update_norm=True),
)  # fmt: skip


class Positions:
    """Batches that follow from their position."""

    closed = False

    def ahead(self, first: int, stop: int, depth: int) -> Iterator[Batch]:
        try:
            for position in range(first, stop):
                ids = np.random.default_rng(position).integers(2, 61, (ROWS, LENGTH))
                ones = np.ones((ROWS, LENGTH), bool)
                hashes = np.arange(ROWS, dtype=np.uint64) + position
                yield Batch(position, ids, ones, np.zeros(ROWS, bool), hashes, np.arange(ROWS), "h", {"s": BATCH})
        finally:
            self.closed = True


class Run:
    """A training whose saves and rows are kept."""

    def __init__(self, settings: LoopSettings = SETTINGS, state: TrainState | None = None, **options: Any) -> None:
        self.model = Olmo2(CONFIG)
        init_weights(self.model, 0)
        self.optimizer, self.batches, self.rows = (
            adamw(self.model, AdamWSettings(0.9, 0.95, 1e-8, 0.1, False, True)),
            Positions(),
            ledger.Ledger(),
        )
        self.saved: list[tuple[TrainState, list[ledger.Row]]] = []
        self.seen: list[ledger.Row] = []
        self.settings, self.start, self.options = settings, state or TrainState(), options

    def __call__(self, on_step: Callable[[ledger.Row], None] | None = None) -> TrainState:
        def save(state: TrainState) -> None:
            self.saved.append((state, self.rows.take()))

        return loop.train(
            self.model, self.optimizer, self.start, self.batches, self.settings, self.rows, save, on_step or self.seen.append, **self.options
        )  # fmt: skip


def test_saves_at_multiples_of_the_cadence_and_at_the_end_with_all_rows_since() -> None:
    run = Run()
    final = run()
    assert [state.step for state, _ in run.saved] == [4, 8, 10]
    assert [[row["step"] for row in rows] for _, rows in run.saved] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    assert final == run.saved[-1][0] and final.tokens_seen == 10 * BATCH
    assert list(final.loss_history) == [row["loss"] for row in run.seen]
    assert run.batches.closed


@pytest.mark.parametrize(("stop_after", "saves"), [(3, [3]), (4, [4]), (6, [4, 6])])
def test_a_stop_saves_the_step_once_and_returns(stop_after: int, saves: list[int]) -> None:
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(len(asked) + 1)
        return len(asked) == stop_after

    run = Run(should_stop=should_stop)
    state = run()
    assert [saved.step for saved, _ in run.saved] == saves
    assert state == run.saved[-1][0] and state.step == stop_after
    assert asked == list(range(1, stop_after + 1))
    assert [row["step"] for row in run.seen] == asked
    assert run.batches.closed


def test_a_stopped_run_goes_on_where_it_was() -> None:
    whole = Run()
    whole()
    first = Run(should_stop=lambda: len(first.seen) == 5)
    state = first()
    second = Run(state=state)
    second.model, second.optimizer = first.model, first.optimizer
    second()
    assert first.seen + second.seen == whole.seen
    assert all(torch.equal(a, b) for a, b in zip(second.model.parameters(), whole.model.parameters(), strict=True))


@pytest.mark.parametrize("every", [3, 100])
def test_metrics_read_together_are_the_same(every: int) -> None:
    each = Run()
    each()
    together = Run(dataclasses.replace(SETTINGS, metrics_every_steps=every))
    together()
    assert together.seen == each.seen
    assert together.saved == each.saved  # a checkpoint has waited for the rows of its steps


def test_rows_come_when_their_metrics_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    monkeypatch.setattr(loop, "read", lambda steps, real=loop.read: reads.append(len(steps)) or real(steps))
    Run(dataclasses.replace(SETTINGS, metrics_every_steps=3))()
    assert reads == [3, 1, 3, 1, 2]


def test_a_loss_that_is_not_finite_is_refused_before_anything_is_saved() -> None:
    run = Run(dataclasses.replace(SETTINGS, metrics_every_steps=100))
    with torch.no_grad():
        run.model.lm_head.weight[5] = torch.nan
    with pytest.raises(TriplaneError, match=r"step 1 \(data position 0"):
        run()
    assert run.saved == [] and run.batches.closed


def test_a_spike_is_skipped_by_what_the_checkpoint_remembers() -> None:
    calm = TrainState(step=64, tokens_seen=0, loss_history=(1.0, 1.1) * 32, grad_norm_history=(1.0, 1.1) * 32)
    assert len(calm.loss_history) == SKIP_MIN_HISTORY
    run = Run(dataclasses.replace(SETTINGS, stop_tokens=BATCH), calm)
    before = [p.detach().clone() for p in run.model.parameters()]
    state = run()
    assert run.seen[0]["skipped"] and run.seen[0]["update_norm"] == 0.0
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), before, strict=True))
    assert state.loss_history[-1] == run.seen[0]["loss"] and len(state.loss_history) == 65
    off = Run(dataclasses.replace(SETTINGS, stop_tokens=BATCH, skip_step=False), calm)
    off()
    assert not off.seen[0]["skipped"]


def test_the_collector_runs_at_steps_of_the_clock_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    collected: list[int] = []
    run = Run(state=TrainState(step=3, tokens_seen=0))
    monkeypatch.setattr(loop, "STEPS_PER_COLLECTION", 5)
    monkeypatch.setattr(gc, "collect", lambda generation: collected.append(run.seen[-1]["step"]))
    assert gc.isenabled()
    inside: list[bool] = []
    run(lambda row: (run.seen.append(row), inside.append(gc.isenabled()))[0])
    assert collected == [5, 10]
    assert inside == [False] * 10 and gc.isenabled()
