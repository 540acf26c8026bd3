"""What a training run is, named before anything is computed: (recipe, root) -> `Plan`. Writes nothing.

A run is `run/{name}@{version}`, its identity the hash of mix, recipe, parent. The newest mix and parent are pinned here, once.
An unfinished run of the same name under another recipe stops the plan, with the difference, unless the caller says to go on
from it or to begin anew.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

from trainplane import checkpoint
from trainplane import recipe as recipes
from trainplane.recipe import RunRecipe
from triplane import artifact, mixture, orders, storage
from triplane.artifact import Draft, Manifest
from triplane.artifact_format import MANIFEST
from triplane.errors import LostRace, NotFound, Refused, UsageError

# Raised when the same recipe and data give other weights.
STAGE_VERSIONS = {"train": 2}
STARTED = "started.json"
OnChange = Literal["refuse", "resume", "fresh"]


@dataclass(frozen=True)
class Plan:
    """`recipe` has mix and parent pinned. `parent_url`: the checkpoint that weights and optimizer come from. `continues_url`: the
    checkpoint of an unfinished run under another recipe that this one goes on from, clock included."""

    recipe: RunRecipe
    root: str
    draft: Draft
    mix: Manifest
    lock: mixture.MixLock
    parent_url: str | None
    continues_url: str | None


@dataclass(frozen=True)
class Started:
    """The marker of a run that was begun: enough to find and compare it. `continues`: path of a checkpoint below the root."""

    draft: dict[str, str]
    recipe: dict[str, Any]
    inputs: dict[str, str]
    continues: str | None

    @property
    def stage_versions(self) -> dict[str, int]:
        """Of the release that began it."""
        return dict(json.loads(self.draft["header"])["stage_versions"])


def plan(recipe: RunRecipe, root: str, on_change: OnChange = "refuse") -> Plan:
    """Raises Refused when a run of this name is unfinished under another recipe, or the mix does not fit the model, the parent or the
    clock of the run it goes on from; LostRace when the chosen version is another run's; NotFound; UsageError."""
    recipes.check(recipe)
    root = storage.absolute(root)
    mix = artifact.load(root, recipe.data.mix)
    lock = mixture.load(artifact.artifact_url(root, mix.reference))
    _refuse_misfit(recipe, lock)
    inputs, parents, parent_url, init_from = (
        {"mix": mix.reference, "mix_identity": mix.identity},
        [mix.reference],
        None,
        None,
    )
    if recipe.init_from is not None:
        parent_url, parent, init_from = resolve_parent(root, recipe.init_from)
        _refuse_no_model(parent)
        _refuse_other_tokenizer(lock, parent)
        inputs |= {"parent": parent.reference, "parent_identity": parent.identity}
        parents.append(parent.reference)
    data = recipe.data.model_copy(update={"mix": mix.reference})
    recipe = recipe.model_copy(update={"data": data, "init_from": init_from})
    continues = None if on_change == "fresh" else _to_continue(recipe, root, inputs, on_change)
    continues_url = continues and storage.join(root, continues)
    if continues_url:
        continued = artifact.load_url(continues_url)
        _refuse_other_tokenizer(lock, continued)
        _refuse_other_clock(recipe, continued)
        inputs |= {"continues": continued.reference, "continues_identity": continued.identity}
        parents.append(continued.reference)
    draft = artifact.begin(
        root,
        "run",
        recipe.name,
        inputs=inputs,
        recipe=recipes.identity_recipe(recipe),
        stage_versions=STAGE_VERSIONS,
        parents=parents,
        version=recipe.version,
    )
    _refuse_taken(draft)
    return Plan(recipe, root, draft, mix, lock, parent_url, continues_url or None)


def _refuse_misfit(recipe: RunRecipe, lock: mixture.MixLock) -> None:
    data, model = recipe.data, recipe.model
    order = orders.make(data.order, lock, data.order_seed, data.order_chunk_instances)
    mixture.require(lock, sequence_length=data.sequence_length_tokens)
    if isinstance(order, orders.ReplayOrder):
        order.positions_in_epoch(data.global_batch_tokens // data.sequence_length_tokens)
    if lock.vocab_size > model.vocab_size or lock.eos_id != model.eos_token_id:
        raise Refused(
            f"mix {lock.name} has {lock.vocab_size} tokens and EOS {lock.eos_id}, the model of recipe {recipe.name} has "
            f"{model.vocab_size} rows and EOS {model.eos_token_id}: use the model of this tokenizer"
        )


def _refuse_no_model(parent: Manifest) -> None:
    if "model_config" not in parent.metadata:
        raise UsageError(
            f"init_from {parent.reference} holds no model: name a finished run, one of its checkpoints or a soup"
        )


def _refuse_other_tokenizer(lock: mixture.MixLock, parent: Manifest) -> None:
    """Ids of another tokenizer mean other text: its weights would be trained on noise, and no shape would show it."""
    sha256 = (parent.metadata.get("tokenizer") or {}).get("sha256")
    try:
        mixture.require(lock, tokenizer_sha256=sha256)
    except Refused as error:
        raise Refused(
            f"{error}, with which {parent.reference} was trained: build the mix with that tokenizer, or start from a "
            f"model of this one"
        ) from None


def _refuse_other_clock(recipe: RunRecipe, continued: Manifest) -> None:
    """Position and end are functions of tokens_seen: they must not lie behind, or between two batches."""
    seen, batch = continued.metadata["tokens_seen"], recipe.data.global_batch_tokens
    if seen >= recipe.stop_tokens:
        raise Refused(
            f"{continued.reference} has seen {seen} tokens and recipe {recipe.name} stops at {recipe.stop_tokens}: nothing is left to "
            f"train; raise stop_tokens, or begin anew with --fresh"
        )
    if seen % batch:
        raise Refused(
            f"{continued.reference} has seen {seen} tokens, no multiple of data.global_batch_tokens {batch} of recipe {recipe.name}: data "
            f"would be trained on again; choose a divisor of {seen}, or begin anew with --fresh"
        )


def resolve_parent(root: str, reference: str) -> tuple[str, Manifest, str]:
    """run/name[@version], run/name@version/checkpoints/tokens-..., or any artifact that holds a model
    -> (folder of its tensors, manifest, the reference with its version). Raises NotFound for a run that is not finished."""
    if f"/{checkpoint.CHECKPOINTS}/" in reference:
        url = storage.join(root, reference)
        return url, artifact.load_url(url), reference
    url = artifact.artifact_url(root, reference)
    manifest = artifact.load_url(url)
    return storage.join(url, manifest.metadata.get("checkpoint", "")), manifest, manifest.reference


def _to_continue(recipe: RunRecipe, root: str, inputs: dict[str, str], on_change: OnChange) -> str | None:
    """The checkpoint (a path below the root) of another recipe's unfinished run to go on from, or None. Raises Refused."""
    begun = _started_runs(root, recipe.name)
    mine = recipes.identity_recipe(recipe)
    for run in begun:
        same_release = run.stage_versions == STAGE_VERSIONS
        if (
            same_release
            and run.recipe == mine
            and {k: v for k, v in run.inputs.items() if not k.startswith("continues")} == inputs
        ):
            return run.continues  # this very recipe was begun: as it was begun then
    continued = {run.inputs.get("continues_identity") for run in begun}
    for run in begun:
        draft = Draft(url=storage.join(root, "run", f"{recipe.name}@{run.draft['version']}"), **run.draft)
        if artifact.committed(draft) is not None or not (tokens := checkpoint.committed(draft)):
            continue
        newest = checkpoint.draft(draft, tokens[-1])
        if newest.identity in continued:
            continue
        if on_change == "refuse":
            before = {"recipe": run.recipe, "inputs": run.inputs, "stage_versions": run.stage_versions}
            changes = recipes.difference(before, {"recipe": mine, "inputs": inputs, "stage_versions": STAGE_VERSIONS})
            what = "recipe" if run.stage_versions == STAGE_VERSIONS else "release"
            raise Refused(
                f"{draft.reference} is unfinished at {tokens[-1]} tokens under another {what} ({'; '.join(changes)}): finish it with the old "
                f"{what}, go on from it with --allow-recipe-change, or begin anew with --fresh"
            )
        return storage.join(draft.reference, checkpoint.CHECKPOINTS, checkpoint.folder_name(tokens[-1]))
    return None


def _started_runs(root: str, name: str) -> list[Started]:
    folders = [f for f in storage.folders(storage.join(root, "run")) if f.partition("@")[0] == name]
    found = [started(storage.join(root, "run", folder)) for folder in folders]
    return [run for run in found if run is not None]


def started(run_url: str) -> Started | None:
    """The marker of a run that was begun, at its folder; None if there is none."""
    try:
        return Started(**json.loads(storage.read(storage.join(run_url, STARTED))))
    except NotFound:
        return None


def _refuse_taken(draft: Draft) -> None:
    """A version that the user chose may hold another run, begun or finished."""
    artifact.committed(draft)
    begun = started(draft.url)
    if begun is not None and begun.draft["identity"] != draft.identity:
        raise LostRace(
            f"{draft.reference} is a run of another recipe, other data or another release: choose another version in the recipe"
        )


def mark_started(plan: Plan) -> None:
    """Leaves the marker by which a later plan finds this run while it has no manifest."""
    header = json.loads(plan.draft.header)
    fields = {name: getattr(plan.draft, name) for name in ("kind", "name", "version", "identity", "header")}
    continues = plan.continues_url and plan.continues_url.removeprefix(storage.join(plan.root) + "/")
    marker = {"draft": fields, "recipe": header["recipe"], "inputs": header["inputs"], "continues": continues}
    storage.put_if_absent(storage.join(plan.draft.url, STARTED), json.dumps(marker, sort_keys=True).encode())


def is_finished(plan: Plan) -> bool:
    return storage.exists(storage.join(plan.draft.url, MANIFEST))
