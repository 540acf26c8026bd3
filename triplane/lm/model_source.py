"""What a model's URL names: a committed checkpoint, a run (its last one) or a Hugging Face folder -> `ModelSource`.

The only resolver, and the only identity: the loader (`weights`) and whoever must name a model before loading it agree. Reads manifests
and JSON; no torch, and of the weights nothing but the sha256 of a Hugging Face folder's files, which no manifest says.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triplane import artifact, hashing, storage
from triplane.artifact import FileEntry, Manifest
from triplane.artifact_format import MANIFEST
from triplane.errors import Corrupt, NotFound, Refused

CHECKPOINTS = "checkpoints"  # the folder of a run that holds tokens-{15 digits}/
_FOLDER = re.compile(r"tokens-[0-9]{15,}")
CONFIG = "config.json"


@dataclass(frozen=True)
class ModelSource:
    """A model's folder: the config as it is written there, the names of the weights' files; `manifest` is None for Hugging Face."""

    url: str
    config: dict[str, Any]
    names: tuple[str, ...]
    manifest: Manifest | None

    def files(self) -> list[FileEntry]:
        """The weights' files with their sha256: from the manifest, else each is read once."""
        if self.manifest is not None:
            return model_files(self.manifest)
        return [artifact.describe(self.url, name) for name in self.names]

    def identity(self, sha256_by_name: Mapping[str, str] | None = None) -> str:
        """64 hex digits that follow from the config and the weights' content. Without the hashes, those of `files`."""
        found = sha256_by_name or {entry.name: entry.sha256 for entry in self.files()}
        return hashing.identity({"config": self.config, "weights": [list(pair) for pair in sorted(found.items())]})


def find(url: str) -> ModelSource:
    """The model at a folder URL. A run means the checkpoint its manifest names or, unfinished, its newest committed one.

    NotFound when nothing is there; Refused for another artifact, or for weights in files that are not safetensors; Corrupt.
    """
    url = url.rstrip("/")
    if storage.exists(storage.join(url, MANIFEST)):
        manifest = artifact.load_url(url)
        if "checkpoint" in manifest.metadata:
            return _checkpoint(storage.join(url, manifest.metadata["checkpoint"]))
        return _checkpoint(url if manifest.kind != "run" else _newest_checkpoint(url))
    if storage.exists(storage.join(url, CONFIG)):
        return ModelSource(url, read_json(storage.join(url, CONFIG)), tuple(_huggingface_files(url)), None)
    return _checkpoint(_newest_checkpoint(url))


def model_files(manifest: Manifest) -> list[FileEntry]:
    """The files of the model among those of a checkpoint (the others: optimizer, trainer state, ledger)."""
    return [entry for entry in manifest.files if entry.name.split("/")[-1].startswith("model")]


def _checkpoint(url: str) -> ModelSource:
    manifest = artifact.load_url(url)
    config = manifest.metadata.get("model_config")
    if not isinstance(config, dict):
        raise Refused(f"{url} is a {manifest.kind}, not a model checkpoint: its metadata has no model_config; give one")
    return ModelSource(url, config, tuple(entry.name for entry in model_files(manifest)), manifest)


def checkpoint_folders(run_url: str) -> list[str]:
    """Names of the folders of a run's checkpoints, committed or not, ascending by tokens; what else lies there is none of ours."""
    return sorted(name for name in storage.folders(storage.join(run_url, CHECKPOINTS)) if _FOLDER.fullmatch(name))


def _newest_checkpoint(run_url: str) -> str:
    for name in reversed(checkpoint_folders(run_url)):
        if storage.exists(storage.join(run_url, CHECKPOINTS, name, MANIFEST)):
            return storage.join(run_url, CHECKPOINTS, name)
    raise NotFound(
        f"no model is at {run_url}: neither {MANIFEST} nor {CONFIG}, nor committed {CHECKPOINTS} under it; give a checkpoint, a "
        f"run or a Hugging Face folder"
    )


def read_json(url: str) -> dict[str, Any]:
    """The JSON object in a file. Raises NotFound, Corrupt."""
    try:
        value = json.loads(storage.read(url))
    except ValueError as error:
        raise Corrupt(f"{url} is not JSON ({error}): restore it from a copy") from error
    if not isinstance(value, dict):
        raise Corrupt(f"{url} holds a {type(value).__name__}, not an object: restore it from a copy")
    return value


def _huggingface_files(url: str) -> Sequence[str]:
    if storage.exists(storage.join(url, "model.safetensors")):
        return ["model.safetensors"]
    index_url = storage.join(url, "model.safetensors.index.json")
    if storage.exists(index_url):
        names = set(read_json(index_url).get("weight_map", {}).values())
        if outside := [name for name in names if "/" in name]:
            raise Refused(f"{index_url} names files outside its folder, {outside}: they are not read")
        return sorted(names)
    raise Refused(
        f"{url} has no model.safetensors: other formats (pytorch_model.bin) run code when read, so they are not"
    )
