"""One rank's part of a training run: `Plan` -> `run/{name}@{version}` committed with its last checkpoint.

Build the objects and check them against the recipe; go on from the newest committed checkpoint; train; commit. A finished run
is left alone. The same under `python`, `torchrun` and Ray Train: every rank calls `execute`, rank 0 writes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from trainplane import checkpoint, ledger, loop, optim, parallel
from trainplane import recipe as recipes
from trainplane.batches import Batches
from trainplane.loop import TrainState
from trainplane.plan import OnChange, Plan, is_finished, mark_started
from trainplane.plan import plan as planned
from trainplane.recipe import RunRecipe
from triplane import artifact, storage
from triplane.lm.model import Olmo2, init_weights
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


Launch = Callable[[Plan, Watch], None]


def in_this_process(plan: Plan, watch: Watch) -> None:
    """Trains here, as the only rank or one of `torchrun`'s, and leaves torch's number of threads as it was."""
    parallel.join_group()
    threads = torch.get_num_threads()
    try:
        execute(plan, watch)
    finally:
        torch.set_num_threads(threads)


def train(
    recipe: RunRecipe,
    root: str,
    *,
    progress: Progress | None = None,
    on_change: OnChange = "refuse",
    launch: Launch = in_this_process,
) -> RunResult:
    """Trains a run to its end, or returns it if it is finished. Raises TriplaneError (`trainplane.plan.plan` says which)."""
    plan = planned(recipe, root, on_change)
    if not is_finished(plan):
        with (progress or Progress()).bar(f"train {recipe.name}", recipe.stop_tokens, "tokens") as bar:
            watch = Watch(bar)
            launch(plan, watch)
            watch.to(recipe.stop_tokens)
    return result(root, plan.draft.reference)


def execute(plan: Plan, on_step: OnStep = ignore_step) -> None:
    """Trains this rank's part of the run to its end and commits it; nothing if it is finished. Every rank calls it."""
    recipe = plan.recipe
    if is_finished(plan):
        return
    torch.set_num_threads(recipe.runtime.threads_per_worker)
    model, optimizer = build(recipe)
    settings = recipes.loop_settings(recipe)
    found = recipes.effective(model, optimizer, settings)
    recipes.assert_effective(recipe, found)
    state = restore(plan, model, optimizer)
    batches = Batches(
        plan.root,
        plan.lock,
        recipe.data.order_seed,
        recipe.data.global_batch_tokens // recipe.data.sequence_length_tokens,
        recipe.data.instance_filter,
        parallel.rank(),
        parallel.world_size(),
    )
    rows = ledger.Ledger()
    described = {"model_config": found["model"], "tokenizer": tokenizer_of(plan)}

    def save(state: TrainState) -> None:
        committing = rows.take()
        if parallel.rank() == 0:
            checkpoint.save(plan.draft, model, optimizer, state, committing, described)
            log("checkpoint", run=plan.draft.reference, step=state.step, tokens_seen=state.tokens_seen)
        parallel.barrier()

    def step_done(row: ledger.Row) -> None:
        if parallel.rank() == 0:
            log("step", run=plan.draft.reference, **row)
            on_step(row)

    loop.train(model, optimizer, state, batches, settings, rows, save, step_done)
    if parallel.rank() == 0:
        _finish(plan, {**described, "effective": found})
    parallel.barrier()


def build(recipe: RunRecipe) -> tuple[Any, torch.optim.AdamW]:
    """A freshly initialised fp32 model and its optimizer."""
    model = Olmo2(recipes.model_config(recipe))
    init_weights(model, recipe.init_seed)
    return model, optim.adamw(model, recipes.adamw_settings(recipe))


def restore(plan: Plan, model: Any, optimizer: torch.optim.Optimizer) -> TrainState:
    """Puts the newest committed state into model and optimizer: of this run, else what it goes on from, else the parent's tensors with
    the clock at 0, else nothing."""
    if parallel.rank() == 0:
        mark_started(plan)
        tokens = [-1, *checkpoint.committed(plan.draft)][-1]
    newest = parallel.from_rank_0(tokens if parallel.rank() == 0 else -1)
    url = checkpoint.draft(plan.draft, newest).url if newest >= 0 else plan.continues_url
    if url is not None:
        state = checkpoint.load(url, model, optimizer)
        log("resumed", run=plan.draft.reference, checkpoint=url, step=state.step, tokens_seen=state.tokens_seen)
        return state
    if plan.parent_url is not None:
        checkpoint.load_tensors(plan.parent_url, artifact.load_url(plan.parent_url), model, optimizer)
    return TrainState()


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
