"""Saves checkpoints while training goes on: one copy of the state in memory, then a thread that uploads and commits it.

`Saver.save(state, rows)` returns when the copy is made. At most one upload is under way: the next save waits for it, so does the end of the
run, and its failure is raised there, as one sentence, on every rank. Each rank writes its own files; rank 0 collects what they hold and commits
index, state and ledger by one manifest. The thread yields the processor to the training step (a higher nice value).
"""

import dataclasses
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch

from trainplane import checkpoint, exchange, ledger, parallel
from trainplane.checkpoint import Written
from trainplane.loop import TrainState
from trainplane.staging import Image, Staging
from triplane import errors
from triplane.artifact import Draft, FileEntry, Manifest
from triplane.lm import tensor_index
from triplane.progress import log

THREAD_NAME = "checkpoint"
UPLOADS_AT_ONCE = 2
NICE = 10


class Saver:
    """Of one run, on every rank alike. `described`: what readers need of the model (model_config, tokenizer). `committed` is called on
    rank 0, in the thread, after each commit: retention, and whoever is to be told."""

    def __init__(
        self,
        run: Draft,
        model: Any,
        optimizer: torch.optim.Optimizer,
        described: Mapping[str, Any],
        committed: Callable[[Manifest], None] = lambda manifest: None,
    ) -> None:
        self._run, self._model, self._optimizer, self._described = run, model, optimizer, described
        self._committed = committed
        self._exchange = exchange.exchange()
        self._staging = Staging(self._exchange)
        self._thread: threading.Thread | None = None
        self._error: errors.TriplaneError | None = None

    def save(self, state: TrainState, rows: Sequence[ledger.Row], permanent: bool = True) -> None:
        """Copies the state and begins to upload it. Every rank calls it; `rows` matter on rank 0. Raises what the save before it met."""
        self.wait()
        images = self._staging.copy(checkpoint.tensors_of(self._model, self._optimizer))
        work = (images, state, list(rows), permanent)
        self._thread = threading.Thread(target=self._work, args=work, name=THREAD_NAME, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns when the last save is committed. Raises TriplaneError if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    @property
    def has_failed(self) -> bool:
        """Whether `wait` would raise by now, so that training need not go on to the next save."""
        return self._error is not None

    def _work(self, images: list[Image], state: TrainState, rows: list[ledger.Row], permanent: bool) -> None:
        try:
            self._upload(images, state, rows, permanent)
        except errors.TriplaneError as error:
            self._error = error
        except Exception as error:  # of the process group: another rank is gone
            self._error = errors.TriplaneError(_sentence(state, str(error) or type(error).__name__))

    def _upload(self, images: list[Image], state: TrainState, rows: list[ledger.Row], permanent: bool) -> None:
        _yield_processor()
        log("saving", run=self._run.reference, step=state.step, tokens_seen=state.tokens_seen)
        target = checkpoint.draft(self._run, state.tokens_seen)
        found = self._exchange.to_rank_0(_told(lambda: _put(target, images), state))
        outcome: dict[str, Any] = next((one for one in found if "error" in one), {})
        if parallel.rank() == 0 and not outcome:
            outcome = _told(lambda: self._commit(target, _written(found), state, rows, permanent), state)
        outcome = self._exchange.from_rank_0([outcome] * parallel.world_size())
        if "error" in outcome:
            raise getattr(errors, outcome["error"], errors.TriplaneError)(outcome["message"])

    def _commit(
        self, target: Draft, written: Written, state: TrainState, rows: Sequence[ledger.Row], permanent: bool
    ) -> dict[str, Any]:
        manifest = checkpoint.commit(target, written, state, rows, self._described, permanent)
        log("checkpoint", run=self._run.reference, step=state.step, tokens_seen=state.tokens_seen)
        self._committed(manifest)
        return {}


def _put(target: Draft, images: Sequence[Image]) -> dict[str, Any]:
    """Uploads this rank's files -> what rank 0 needs to know of them, as JSON values."""
    with ThreadPoolExecutor(UPLOADS_AT_ONCE, initializer=_yield_processor) as pool:
        put = list(pool.map(lambda numbered: numbered[1].put(target, numbered[0]), enumerate(images)))
    return {
        "files": [dataclasses.asdict(file) for file, _ in put],
        "tensors": [
            [image.stem, dataclasses.asdict(entry)]
            for image, (_, entries) in zip(images, put, strict=True)
            for entry in entries
        ],
    }


def _yield_processor() -> None:
    """Of this thread alone, where the system knows threads by number (Linux)."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def _written(found: Sequence[dict[str, Any]]) -> Written:
    """The files of all ranks, and the tensors by set."""
    files = [FileEntry(**file) for one in found for file in one["files"]]
    by_stem: dict[str, list[list[tensor_index.TensorEntry]]] = {}
    for one in found:
        for stem, entry in one["tensors"]:
            by_stem.setdefault(stem, []).append([tensor_index.from_dict(entry)])
    return Written(files, {stem: tensor_index.merged(parts) for stem, parts in by_stem.items()})


def _told(work: Callable[[], dict[str, Any]], state: TrainState) -> dict[str, Any]:
    """What `work` returns, or its failure as values that other ranks can be told."""
    try:
        return work()
    except errors.LostRace as error:
        return {"error": "LostRace", "message": str(error)}
    except Exception as error:
        reasons = [
            getattr(each, "strerror", None) for each in (error, error.__cause__)
        ]  # a store's sentence says what to do, too
        reason = next(filter(None, reasons), None) or str(error) or type(error).__name__
        return {"error": "TriplaneError", "message": _sentence(state, reason)}


def _sentence(state: TrainState, reason: str) -> str:
    return (
        f"the checkpoint at {state.tokens_seen} tokens could not be saved ({reason}): the one before it stands; mend this and run the "
        f"same command again"
    )
