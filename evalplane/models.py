"""What `--model` names: a committed checkpoint, a training run (its last one), or a Hugging Face folder; and its tokenizer.

In: a URL or a `run/name[@version]` reference, and the root. Out: a `ModelSource`, found without reading any weights of a
committed checkpoint, so that a finished evaluation is recognised before a model is loaded.
"""

import hashlib
import re
from dataclasses import dataclass

from triplane import artifact, hashing, storage
from triplane.artifact_format import MANIFEST
from triplane.errors import NotFound, Refused, UsageError

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class ModelSource:
    """Where a model and its tokenizer are. `identity` follows from the weights' content; `tokenizer_sha256` is None if unrecorded."""

    url: str
    name: str
    identity: str
    tokenizer_url: str
    tokenizer_sha256: str | None

    def describe(self) -> dict[str, str]:
        """As an evaluation records it."""
        return {"name": self.name, "url": self.url, "identity": self.identity}


def locate(model: str, root: str, tokenizer: str | None = None) -> ModelSource:
    """Finds the model; NotFound says where it looked, UsageError when no tokenizer is recorded and none is given."""
    url = _folder(model, root)
    if storage.exists(storage.join(url, "config.json")):
        return ModelSource(url, _name(url), _folder_identity(url), tokenizer or url, None)
    if not storage.exists(storage.join(url, MANIFEST)):
        url = _last_checkpoint(url)
    return _checkpoint(url, root, tokenizer)


def _folder(model: str, root: str) -> str:
    """A `run/...` reference becomes its folder under root; anything else is a URL already."""
    if not model.startswith("run/"):
        return model.rstrip("/")
    if "@" not in model:
        model = artifact.load(root, model).reference
    return storage.join(root, model).rstrip("/")


def _last_checkpoint(run_url: str) -> str:
    checkpoints = storage.join(run_url, CHECKPOINTS)
    for name in sorted(storage.folders(checkpoints), reverse=True):  # tokens-{15 digits}: sorted is by tokens
        if storage.exists(storage.join(checkpoints, name, MANIFEST)):
            return storage.join(checkpoints, name)
    raise NotFound(
        f"no model is at {run_url}: neither config.json, nor a checkpoint's manifest, nor committed checkpoints under it"
    )


def _checkpoint(url: str, root: str, tokenizer: str | None) -> ModelSource:
    manifest = artifact.load_url(url)
    if manifest.kind == "run":
        return _checkpoint(_last_checkpoint(url), root, tokenizer)
    if "model_config" not in manifest.metadata:
        raise UsageError(
            f"{url} is a {manifest.kind}, not a checkpoint; give a checkpoint, a run or a Hugging Face folder"
        )
    recorded = manifest.metadata.get("tokenizer") or {}
    weights = sorted((one.name, one.sha256) for one in manifest.files if one.name.split("/")[-1].startswith("model"))
    identity = hashing.identity(
        {"config": manifest.metadata["model_config"], "weights": [list(pair) for pair in weights]}
    )
    return ModelSource(
        url, _name(url), identity, _tokenizer_url(url, root, tokenizer, recorded), recorded.get("sha256")
    )


def _tokenizer_url(url: str, root: str, given: str | None, recorded: dict[str, str]) -> str:
    reference = given or recorded.get("reference")
    if reference is None:
        raise UsageError(f"{url} records no tokenizer; give one with --tokenizer")
    return artifact.artifact_url(root, reference) if reference.startswith("tokenizer/") else reference


def check_tokenizer(source: ModelSource, sha256: str) -> None:
    """Refused when the tokenizer found is not the one the model was trained with."""
    if source.tokenizer_sha256 not in (None, sha256):
        raise Refused(
            f"{source.url} was trained with tokenizer {str(source.tokenizer_sha256)[:12]}, "
            f"{source.tokenizer_url} is {sha256[:12]}; give the right one with --tokenizer"
        )


def _name(url: str) -> str:
    """`.../run/demo@1a2b/checkpoints/tokens-000000000001000` -> `demo-tokens-000000000001000`; a folder: its own name."""
    parts = url.split("/")
    shown = f"{parts[-3].split('@')[0]}-{parts[-1]}" if len(parts) > 2 and parts[-2] == CHECKPOINTS else parts[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", shown).strip("._-") or "model"


def _folder_identity(url: str) -> str:
    """Hash of config.json and of every safetensors file, content and name."""
    names = [name for name in storage.list_names(url) if name == "config.json" or name.endswith(".safetensors")]
    return hashing.identity({name: _sha256(storage.join(url, name)) for name in names})


def _sha256(url: str) -> str:
    digest = hashlib.sha256()
    with storage.open_stream(url) as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
