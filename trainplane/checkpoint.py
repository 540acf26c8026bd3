"""Checkpoints of a run: model, optimizer, trainer state and ledger rows, committed together by one manifest.

`{run}/checkpoints/tokens-{tokens_seen:015d}/` is an artifact of kind "checkpoint": safetensors files and JSON, no pickle anywhere. Its
one record names the files; the manifest makes it visible. A run killed between the two is finished by committing what is
recorded, so weights and rows of one attempt always stand together. Resuming reads the newest one, into any number of ranks; nothing else
remembers where a run is. Writing, in the background: `checkpoint_writer`.

There is no random state to keep: OLMo 2 has no dropout. Chance is used twice, and both times follows from seeds of the recipe alone: weights
before the first step (`init_seed`) and the order of the data (`order_seed`, a permutation evaluated at a position, which is tokens_seen).
Skip-step's history is in the state.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from trainplane import checkpoint_reader, ledger, optim
from trainplane.loop import TrainState
from triplane import artifact, storage
from triplane.artifact import Draft, FileEntry, Manifest
from triplane.artifact_format import MANIFEST
from triplane.errors import Corrupt, LostRace, Refused
from triplane.lm import tensor_index, weights
from triplane.lm.model_source import CHECKPOINTS, checkpoint_folders
from triplane.lm.tensor_index import TensorEntry

RECORD = "checkpoint"
STAGE_VERSIONS = {"checkpoint": 2}
_STATE = TypeAdapter(TrainState)


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


@dataclasses.dataclass(frozen=True)
class Written:
    """What the ranks have uploaded: data files, and the tensors in them by set ("model", "optimizer")."""

    files: list[FileEntry]
    tensors: dict[str, list[TensorEntry]]


def tensors_of(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The live tensors of a checkpoint, by `model/{name}` and `optimizer/{key}/{name}`."""
    found = {f"model/{name}": tensor.detach() for name, tensor in model.state_dict().items()}
    return found | {f"optimizer/{name}": tensor for name, tensor in optim.state_tensors(model, optimizer).items()}


def commit(
    target: Draft,
    written: Written,
    state: TrainState,
    rows: Sequence[ledger.Row],
    metadata: Mapping[str, Any],
    permanent: bool = True,
) -> Manifest:
    """Makes a checkpoint whose tensors are uploaded visible. `metadata`: model_config and tokenizer, for readers.

    Raises LostRace when another attempt recorded other content for this token count: two attempts are running.
    """
    indexes = [
        target.put_bytes(tensor_index.to_bytes(entries), f"{stem}.index", ".json")
        for stem, entries in sorted(written.tensors.items())
    ]
    files = [
        *written.files,
        *indexes,
        target.put_bytes(json.dumps(dataclasses.asdict(state), sort_keys=True).encode(), "state", ".json"),
        target.put_bytes(ledger.to_jsonl(rows), "ledger", ".jsonl", rows=len(rows)),
    ]
    described = {**metadata, "tokens_seen": state.tokens_seen, "step": state.step, "permanent": permanent}
    standing = target.record(RECORD, files, {"metadata": described})
    if [file.sha256 for file in standing.files] != [file.sha256 for file in files]:
        raise LostRace(
            f"{target.url} was recorded by another attempt of this run with other content: end the other process and "
            f"run the same command again"
        )
    return target.commit(described)


def committed(run: Draft) -> list[int]:
    """tokens_seen of every committed checkpoint of a run, ascending; first commits those that are recorded and lack only their manifest.
    Raises Refused for one that another release wrote."""
    found = []
    for name in checkpoint_folders(run.url):
        target = draft(run, int(name.removeprefix("tokens-")))
        manifest = _standing(target)
        if manifest is None and (records := target.records):
            manifest = target.commit(records[RECORD].counts["metadata"])
        if manifest is not None:
            found.append(int(manifest.metadata["tokens_seen"]))
    return sorted(found)


def _standing(target: Draft) -> Manifest | None:
    """The manifest, if the checkpoint is committed."""
    try:
        return artifact.committed(target)
    except LostRace:
        versions = artifact.load_url(target.url).stage_versions
        if versions == STAGE_VERSIONS:
            raise
        raise Refused(
            f"{target.url} was written by another release (checkpoint version {versions.get('checkpoint')}, this one's is "
            f"{STAGE_VERSIONS['checkpoint']}): finish the run with that release, or begin anew with --fresh"
        ) from None


def load(url: str, model: Any, optimizer: torch.optim.Optimizer) -> TrainState:
    """Restores model and optimizer in place, verified -> the state. Raises Corrupt, NotFound, Refused (not this model)."""
    manifest = artifact.load_url(url)
    (entry,) = _named(manifest, "state-")
    state = _state(artifact.read(url, entry), storage.join(url, entry.name))
    load_tensors(url, manifest, model, optimizer)
    return state


def _state(data: bytes, where: str) -> TrainState:
    try:
        return _STATE.validate_json(data)
    except ValidationError as error:
        raise Corrupt(
            f"{where} is not the state of a run ({error.errors()[0]['msg']}): use another checkpoint"
        ) from error


def load_tensors(url: str, manifest: Manifest, model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Weights and, where the artifact has it (a soup has not), optimizer state. Raises Refused for another model, with the difference."""
    _refuse_other_config(url, manifest, model)
    live = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    index = weights.read_index(url, _named(manifest, "model"))
    checkpoint_reader.refuse_other_tensors(url, "weights", index, live)
    checkpoint_reader.read_into(url, index, live)
    if entries := _named(manifest, "optimizer"):
        index = weights.read_index(url, entries)
        state = _empty_state(model, index)
        checkpoint_reader.refuse_other_tensors(url, "optimizer state", index, state)
        checkpoint_reader.read_into(url, index, state)
        try:
            optim.load_state_tensors(model, optimizer, state)
        except (KeyError, ValueError) as error:
            raise Corrupt(
                f"{url}: its optimizer state is not of its model ({error}); use another checkpoint"
            ) from error


def _refuse_other_config(url: str, manifest: Manifest, model: Any) -> None:
    found, expected = manifest.metadata.get("model_config"), model.config.to_dict()
    if found != expected:
        found = found if isinstance(found, dict) else {}
        names = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
        differences = [f"{name}: {found.get(name)} -> {expected.get(name)}" for name in names]
        raise Refused(
            f"{url} holds a model of another config than the recipe's ({'; '.join(differences)}): use its own"
        )


def _empty_state(model: Any, index: Mapping[str, TensorEntry]) -> dict[str, Tensor]:
    """Tensors to read the optimizer's state into: as the parameter is sharded, or, where the index has a scalar, that."""
    empty = {}
    for name, parameter in model.named_parameters():
        for key in optim.STATE_KEYS:
            entry = index.get(f"{key}/{name}")
            if entry is not None:
                dtype = tensor_index.DTYPES[entry.dtype]
                one = torch.zeros((), dtype=dtype) if entry.shape == () else torch.empty_like(parameter, dtype=dtype)
                empty[f"{key}/{name}"] = one.detach()
    return empty


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
    """All committed rows of a run, in order of steps, each once, finished or not. A checkpoint after one that may be removed holds the
    rows of both."""
    urls = [storage.join(run_url, CHECKPOINTS, name) for name in checkpoint_folders(run_url)]
    ready = [url for url in urls if storage.exists(storage.join(url, MANIFEST))]
    by_step = {row["step"]: row for url in ready for row in rows_of(url)}
    return [by_step[step] for step in sorted(by_step)]
