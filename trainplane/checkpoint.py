"""Checkpoints of a run: model, optimizer, trainer state and ledger rows, committed together by one manifest.

`{run}/checkpoints/tokens-{tokens_seen:015d}/` is an artifact of kind "checkpoint": safetensors files and JSON, no pickle anywhere. Its
one record names the files; the manifest makes it visible. A run killed between the two is finished by committing what is
recorded, so weights and rows of one attempt always stand together. Resuming reads the newest one; nothing else remembers
where a run is.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from trainplane import ledger, optim
from trainplane.loop import TrainState
from triplane import artifact, storage
from triplane.artifact import Draft, FileEntry, Manifest
from triplane.artifact_format import MANIFEST
from triplane.errors import Corrupt, LostRace, Refused
from triplane.lm import weights
from triplane.lm.model_source import CHECKPOINTS

RECORD = "checkpoint"
STAGE_VERSIONS = {"checkpoint": 2}


def folder_name(tokens_seen: int) -> str:
    """Names sort as tokens do."""
    return f"tokens-{tokens_seen:015d}"


def draft(run: Draft, tokens_seen: int) -> Draft:
    """The checkpoint of a run at a token count; writes nothing."""
    return artifact.begin(
        run.url,
        "checkpoint",
        run.name,
        inputs={"run": run.reference, "run_identity": run.identity, "tokens_seen": str(tokens_seen)},
        recipe={},
        stage_versions=STAGE_VERSIONS,
        parents=[run.reference],
        version=f"{run.version}.{folder_name(tokens_seen)}",
        url=storage.join(run.url, CHECKPOINTS, folder_name(tokens_seen)),
    )


def save(
    run: Draft,
    model: Any,
    optimizer: torch.optim.Optimizer,
    state: TrainState,
    rows: Sequence[ledger.Row],
    metadata: Mapping[str, Any],
) -> Manifest:
    """Commits a checkpoint with the ledger rows since the one before. `metadata`: model_config and tokenizer, for readers.

    Raises LostRace when another attempt recorded other content for this token count: two attempts are running.
    """
    target = draft(run, state.tokens_seen)
    files = [
        *weights.save_tensors(target, "model", model.state_dict()),
        *weights.save_tensors(target, "optimizer", optim.state_tensors(model, optimizer)),
        target.put_bytes(json.dumps(dataclasses.asdict(state), sort_keys=True).encode(), "state", ".json"),
        target.put_bytes(ledger.to_jsonl(rows), "ledger", ".jsonl", rows=len(rows)),
    ]
    described = {**metadata, "tokens_seen": state.tokens_seen, "step": state.step}
    standing = target.record(RECORD, files, {"metadata": described})
    if [file.sha256 for file in standing.files] != [file.sha256 for file in files]:
        raise LostRace(
            f"{target.url} was recorded by another attempt of {run.reference} with other content: end the other process and "
            f"run the same command again"
        )
    return target.commit(described)


def committed(run: Draft) -> list[int]:
    """tokens_seen of every committed checkpoint of a run, ascending; first commits those that are recorded and lack only their manifest."""
    found = []
    for name in storage.folders(storage.join(run.url, CHECKPOINTS)):
        target = draft(run, int(name.removeprefix("tokens-")))
        manifest = artifact.committed(target)
        if manifest is None and (records := target.records):
            manifest = target.commit(records[RECORD].counts["metadata"])
        if manifest is not None:
            found.append(int(manifest.metadata["tokens_seen"]))
    return sorted(found)


def load(url: str, model: Any, optimizer: torch.optim.Optimizer) -> TrainState:
    """Restores model and optimizer in place, verified -> the state. Raises Corrupt, NotFound, Refused (not this model)."""
    manifest = artifact.load_url(url)
    load_tensors(url, manifest, model, optimizer)
    (entry,) = _named(manifest, "state-")
    state = json.loads(artifact.read(url, entry))
    return TrainState(
        step=state["step"],
        tokens_seen=state["tokens_seen"],
        loss_history=tuple(state["loss_history"]),
        grad_norm_history=tuple(state["grad_norm_history"]),
    )


def load_tensors(url: str, manifest: Manifest, model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Weights and, where the artifact has it (a soup has not), optimizer state. Raises Refused for another model."""
    expected = model.config.to_dict()
    if manifest.metadata.get("model_config") != expected:
        raise Refused(f"{url} holds a model of {manifest.metadata.get('model_config')}, the recipe asks for {expected}")
    tensors = weights.load_tensors(url, _named(manifest, "model"))
    model.load_state_dict(tensors)
    if entries := _named(manifest, "optimizer"):
        try:
            optim.load_state_tensors(model, optimizer, weights.load_tensors(url, entries))
        except (KeyError, ValueError) as error:
            raise Corrupt(
                f"{url}: its optimizer state is not of its model ({error}); use another checkpoint"
            ) from error


def rows_of(url: str) -> list[ledger.Row]:
    """The ledger rows committed with one checkpoint."""
    return [
        row
        for entry in _named(artifact.load_url(url), "ledger-")
        for row in ledger.from_jsonl(artifact.read(url, entry))
    ]


def _named(manifest: Manifest, prefix: str) -> list[FileEntry]:
    return [entry for entry in manifest.files if entry.name.startswith(prefix)]


def read_ledger(run_url: str) -> list[ledger.Row]:
    """All committed rows of a run, in order of steps, finished or not."""
    urls = [storage.join(run_url, CHECKPOINTS, name) for name in storage.folders(storage.join(run_url, CHECKPOINTS))]
    ready = [url for url in urls if storage.exists(storage.join(url, MANIFEST))]
    return sorted((row for url in ready for row in rows_of(url)), key=lambda row: row["step"])
