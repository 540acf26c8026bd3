"""One rank's part of a training run: `Plan` -> `run/{name}@{version}` committed with its last checkpoint.

Build the objects and check them against the recipe; go on from the newest committed checkpoint; train; commit. A finished run
is left alone. The same under `python`, `torchrun` and Ray Train: every rank calls `execute`, rank 0 writes.
"""

import dataclasses
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from trainplane import checkpoint, ledger, loop, optim, out_of_memory, parallel, retention
from trainplane import recipe as recipes
from trainplane.batches import Batches
from trainplane.checkpoint_writer import Saver
from trainplane.loop import LoopSettings, TrainState
from trainplane.plan import OnChange, Plan, is_finished, mark_started
from trainplane.plan import plan as planned
from trainplane.preemption import Agreement, Notice, Stopped, sigterm_puts
from trainplane.recipe import RunRecipe
from trainplane.watchdog import Watchdog, end_process
from triplane import artifact, storage
from triplane.artifact import Draft, Manifest
from triplane.errors import Corrupt, NotFound, TriplaneError
from triplane.lm.model import Olmo2
from triplane.progress import Bar, Progress, log

OnStep = Callable[[ledger.Row], None]


def ignore_step(row: ledger.Row) -> None:
    """The default of `on_step`."""


@dataclass(frozen=True)
class RunResult:
    """A finished run. `checkpoint_url` is a folder that `triplane.lm.weights.load_model` reads."""

    reference: str
    url: str
    checkpoint_url: str
    step: int
    tokens_seen: int
    ledger: list[ledger.Row]
    model_config: dict[str, Any]


class Watch:
    """Turns ledger rows, or a token count that goes back after a failure, into progress."""

    def __init__(self, bar: Bar) -> None:
        self.bar, self.seen = bar, 0

    def __call__(self, row: ledger.Row) -> None:
        self.to(row["tokens_seen"])

    def to(self, tokens_seen: int) -> None:
        """Counts up to `tokens_seen`."""
        if tokens_seen > self.seen:
            self.bar.advance(tokens_seen - self.seen)
            self.seen = tokens_seen


Launch = Callable[[Plan, Watch, bool], None]


def in_this_process(plan: Plan, watch: Watch, fall_back: bool = False) -> None:
    """Trains here, as the only rank or one of `torchrun`'s, and leaves torch's number of threads as it was. SIGTERM saves and
    stops the run."""
    parallel.join_group(plan.recipe.runtime.collective_timeout_seconds + parallel.START_SECONDS)
    threads = torch.get_num_threads()
    notice = Notice()
    try:
        with sigterm_puts(notice):
            execute(plan, watch, notice, fall_back)
    finally:
        torch.set_num_threads(threads)


def train(
    recipe: RunRecipe,
    root: str,
    *,
    progress: Progress | None = None,
    on_change: OnChange = "refuse",
    launch: Launch = in_this_process,
    fall_back: bool = False,
) -> RunResult:
    """Trains a run to its end, or returns it if it is finished. With `fall_back`, a damaged checkpoint is set aside and the one before it
    is gone on from. Raises Stopped when it was told to end early, TriplaneError (`trainplane.plan.plan` says which)."""
    plan = planned(recipe, root, on_change)
    if not is_finished(plan):
        with (progress or Progress()).bar(f"train {recipe.name}", recipe.stop_tokens, "tokens") as bar:
            watch = Watch(bar)
            launch(plan, watch, fall_back)
            if not is_finished(plan):
                raise Stopped(
                    f"{plan.draft.reference} was told to end early and is saved: the same command goes on from there"
                )
            watch.to(recipe.stop_tokens)
    return result(root, plan.draft.reference)


def execute(
    plan: Plan,
    on_step: OnStep = ignore_step,
    notice: Notice | None = None,
    fall_back: bool = False,
    hung: Callable[[str], None] = end_process,
) -> None:
    """Trains this rank's part of the run and commits it; nothing if it is finished. Every rank calls it. Once any rank's `notice` is put, the
    run is saved where it is and left unfinished. `hung` ends the process when the ranks stand still. Raises TriplaneError, OutOfMemory."""
    try:
        _execute(plan, on_step, notice or Notice(), fall_back, hung)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory.is_cause(error):
            raise
        raise out_of_memory.of_this_process(plan.recipe.runtime.microbatch_instances) from error


def _execute(plan: Plan, on_step: OnStep, notice: Notice, fall_back: bool, hung: Callable[[str], None]) -> None:
    recipe = plan.recipe
    if is_finished(plan):
        return
    torch.set_num_threads(recipe.runtime.threads_per_worker)
    model, optimizer = build(recipe)
    settings = recipes.loop_settings(recipe)
    batches = batches_of(plan)
    found = recipes.effective(model, optimizer, settings, batches)
    recipes.assert_effective(recipe, found)
    _forget_gathered(model)
    rows = ledger.Ledger()
    state = restore(plan, model, optimizer, rows, fall_back)
    described = {"model_config": found["model"], "tokenizer": tokenizer_of(plan)}
    saver = Saver(plan.draft, model, optimizer, described, partial(_committed, plan.draft, set()))
    agreement = Agreement()
    dog = Watchdog(recipe.runtime.collective_timeout_seconds, state.step, hung)

    def save(state: TrainState) -> None:
        permanent = loop.is_checkpoint_due(state.tokens_seen, settings)
        with dog.at_rest():
            saver.save(state, rows.take() if permanent else list(rows.pending), permanent)

    def step_done(row: ledger.Row) -> None:
        if parallel.rank() == 0:
            log("step", run=plan.draft.reference, **row)
            on_step(row)

    def should_stop() -> bool:
        """A failed upload ends the run as a notice does; `wait` then says why."""
        dog.beat()
        return agreement.any(notice.is_put or saver.has_failed)

    where = {"rank": parallel.rank(), "world_size": parallel.world_size(), "host": socket.gethostname()}
    log("training", run=plan.draft.reference, step=state.step, **where)
    with dog:
        try:
            cadence = _cadence(recipe, settings)
            state = loop.train(model, optimizer, state, batches, cadence, rows, save, step_done, should_stop)
        except Exception:
            with suppress(TriplaneError), dog.at_rest():
                saver.wait()  # the checkpoint before the failure stands
            raise
        agreement.close()
        with dog.at_rest():
            saver.wait()
    if state.tokens_seen >= recipe.stop_tokens and parallel.rank() == 0:
        _finish(plan, {**described, "effective": found})
    parallel.barrier()


def batches_of(plan: Plan) -> Batches:
    """This rank's batches."""
    data = plan.recipe.data
    return Batches(
        plan.root,
        plan.lock,
        data.order_seed,
        data.global_batch_tokens // data.sequence_length_tokens,
        data.instance_filter,
        parallel.rank(),
        parallel.world_size(),
        data.order,
        data.order_chunk_instances,
    )


def _cadence(recipe: RunRecipe, settings: LoopSettings) -> LoopSettings:
    """The loop saves at the ephemeral cadence too; which checkpoints are permanent follows from `settings`."""
    ephemeral = recipe.runtime.ephemeral_every_tokens
    return dataclasses.replace(settings, checkpoint_every_tokens=ephemeral) if ephemeral else settings


def _committed(run: Draft, settled: set[str], manifest: Manifest) -> None:
    retention.remove_superseded(run, manifest.metadata["tokens_seen"], settled)


def device_of_rank() -> torch.device:
    """The GPU that whoever started this process pinned for it (the first, if nobody did); the CPU where there is none, or where the process
    group was made without GPUs."""
    if not torch.cuda.is_available() or (parallel.is_distributed() and "nccl" not in str(dist.get_backend_config())):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def build(recipe: RunRecipe) -> tuple[Any, torch.optim.AdamW]:
    """A freshly initialised fp32 model, laid over the ranks, and its optimizer. Of a model that is sharded no rank ever has the whole."""
    settings, device = recipes.parallel_settings(recipe), device_of_rank()
    with torch.device("meta"):
        model = Olmo2(recipes.model_config(recipe))
    parallel.parallelize(model, settings, parallel.mesh(settings, device.type))
    parallel.initialize(model, recipe.init_seed, device)
    if isinstance(model, FSDPModule):
        _find_root(model)
    return model, optim.adamw(model, recipes.adamw_settings(recipe))


def _find_root(model: Any) -> None:
    """FSDP finds out in the first forward pass what is below its root; a part that is called before, as `effective` does, would be one."""
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        model.hidden(torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device))
    _forget_gathered(model)


def _forget_gathered(model: Any) -> None:
    """After a call that no backward pass follows, some parts stay gathered and others are gathered ahead: an optimizer would take these for the
    parameters, and a step for what a checkpoint has replaced since."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()


def restore(
    plan: Plan, model: Any, optimizer: torch.optim.Optimizer, rows: ledger.Ledger, fall_back: bool = False
) -> TrainState:
    """Puts the newest committed state into model and optimizer: of this run, else what it goes on from, else the parent's tensors with
    the clock at 0, else nothing. `rows` gets those that no permanent checkpoint has taken yet."""
    if parallel.rank() == 0:
        mark_started(plan)
    while True:
        tokens = checkpoint.committed(plan.draft)[-1:] if parallel.rank() == 0 else []
        newest = parallel.from_rank_0(tokens[0] if tokens else -1)
        url = checkpoint.draft(plan.draft, newest).url if newest >= 0 else plan.continues_url
        if url is None:
            break
        state, error = _loaded(url, model, optimizer)
        if not parallel.gather(np.array([int(error is not None)])).any():
            assert state is not None
            if newest >= 0 and parallel.rank() == 0:
                _take_up(rows, url)
            log("resumed", run=plan.draft.reference, checkpoint=url, step=state.step, tokens_seen=state.tokens_seen)
            return state
        _fall_back(plan, newest, fall_back, error or Corrupt(f"another rank cannot read {url}: its error says why"))
    if plan.parent_url is not None:
        checkpoint.load_tensors(plan.parent_url, artifact.load_url(plan.parent_url), model, optimizer)
    return TrainState()


def _loaded(
    url: str, model: Any, optimizer: torch.optim.Optimizer
) -> tuple[TrainState | None, Corrupt | NotFound | None]:
    """The state, or what is damaged or missing: another rank may have read its part, and must hear of it."""
    try:
        return checkpoint.load(url, model, optimizer), None
    except (Corrupt, NotFound) as error:
        return None, error


def _take_up(rows: ledger.Ledger, url: str) -> None:
    if not retention.is_permanent(artifact.load_url(url)):
        for row in checkpoint.rows_of(url):
            rows.add(row)


def _fall_back(plan: Plan, newest: int, asked: bool, error: TriplaneError) -> None:
    """Sets the newest checkpoint aside if that was asked for and there is one before it; else raises `error`, with what can be done."""
    earlier = len(checkpoint.committed(plan.draft)) > 1 if parallel.rank() == 0 else False
    can = bool(parallel.from_rank_0(int(newest >= 0 and earlier)))
    if not (asked and can):
        advice = "--fall-back goes on from the checkpoint before it" if can else "there is none before it"
        raise type(error)(f"{error}; {advice}") from error
    if parallel.rank() == 0:
        retention.set_aside([checkpoint.draft(plan.draft, newest).url])
        log("fell back", run=plan.draft.reference, tokens_seen=newest, reason=str(error))
    parallel.barrier()


def tokenizer_of(plan: Plan) -> dict[str, Any]:
    """sha256 of the tokenizer the data was made with, and the artifact below the root that holds it (None if none does)."""
    for reference in artifact.references(plan.root, "tokenizer"):
        if artifact.load(plan.root, reference).metadata.get("sha256") == plan.lock.tokenizer_sha256:
            return {"sha256": plan.lock.tokenizer_sha256, "reference": reference}
    return {"sha256": plan.lock.tokenizer_sha256, "reference": None}


def _finish(plan: Plan, described: dict[str, Any]) -> None:
    """Commits the run: its collated ledger, and where its last checkpoint is."""
    rows = checkpoint.read_ledger(plan.draft.url)
    last = rows[-1]
    entry = plan.draft.put_bytes(ledger.to_jsonl(rows), "ledger/steps", ".jsonl", rows=len(rows), tokens=None)
    plan.draft.record("ledger", [entry], {"steps": len(rows)})
    plan.draft.commit(
        {
            **described,
            "checkpoint": f"{checkpoint.CHECKPOINTS}/{checkpoint.folder_name(last['tokens_seen'])}",
            "ledger": entry.name,
            "step": last["step"],
            "tokens_seen": last["tokens_seen"],
            "loss": last["loss"],
        }
    )
    log("finished run", run=plan.draft.reference, step=last["step"], tokens_seen=last["tokens_seen"])


def result(root: str, reference: str) -> RunResult:
    """A finished run, from storage. Raises NotFound, Corrupt."""
    url = artifact.artifact_url(root, reference)
    manifest = artifact.load_url(url)
    made = manifest.metadata
    (steps,) = [entry for entry in manifest.files if entry.name == made["ledger"]]
    rows = ledger.from_jsonl(artifact.read(url, steps))
    checkpoint_url = storage.join(url, made["checkpoint"])
    return RunResult(
        manifest.reference, url, checkpoint_url, made["step"], made["tokens_seen"], rows, made["model_config"]
    )
