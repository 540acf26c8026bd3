"""A released model as a checkpoint of ours: a Hugging Face folder, local or remote -> `checkpoint/{name}@{version}` below the root.

One file of the folder is in memory at a time. The weights become fp32, as training holds them; there is no optimizer state, so whoever trains
on must warm up again. `layouts` says which folders are OLMo 2; pickle files are refused by name.
"""

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from triplane import artifact, storage
from triplane.artifact import Draft
from triplane.errors import NotFound, Refused, UsageError
from triplane.lm import layouts, model_source, weights
from triplane.lm.model import ModelConfig, Olmo2
from triplane.lm.model_source import ModelSource
from triplane.tokenizer import Tokenizer

STAGE_VERSIONS = {"released": 1}
MAX_FILE_BYTES = 1 << 30


def is_released(url: str) -> bool:
    """Is this a Hugging Face folder, and not a reference or an artifact of ours?"""
    return storage.exists(storage.join(url, model_source.CONFIG))


def plan(root: str, url: str, tokenizer: str | None = None) -> tuple[Draft, ModelSource, str]:
    """(what it will be, the folder, sha256 of its tokenizer); reads every weight file once, for its hash, and writes nothing.

    `tokenizer` is where a tokenizer.json is, if not in the folder. Raises NotFound, Refused, UsageError.
    """
    url = storage.absolute(url)
    source = model_source.find(url)
    if source.manifest is not None:
        raise UsageError(f"{url} is a checkpoint of ours: name it by its reference")
    sha256 = Tokenizer.load(tokenizer or url).sha256
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", url.rstrip("/").split("/")[-1]).strip("._-") or "released"
    draft = artifact.begin(
        root,
        "checkpoint",
        name,
        inputs={"weights": source.identity(), "tokenizer": sha256},
        recipe={},
        stage_versions=STAGE_VERSIONS,
    )
    return draft, source, sha256


def commit(root: str, url: str, tokenizer: str | None = None) -> str:
    """The reference of the checkpoint, made if it is not there yet. Raises as `plan`, and Corrupt."""
    draft, source, sha256 = plan(root, url, tokenizer)
    if artifact.committed(draft) is None:
        config = layouts.config_from_huggingface(source.config)
        draft.record("checkpoint", weights.save_tensors(draft, "model", _tensors(source, config), MAX_FILE_BYTES), {})
        described = {"sha256": sha256, "reference": _tokenizer_reference(root, sha256)}
        made = {"model_config": config.to_dict(), "tokenizer": described, "tokens_seen": 0, "step": 0}
        draft.commit({**made, "released": source.url})
    return draft.reference


def _tensors(source: ModelSource, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under our name, in the order of the files. Raises Refused unless they are exactly those of the config."""
    with torch.device("meta"):
        expected = {name: value.shape for name, value in Olmo2(config).state_dict().items()}
    seen: set[str] = set()
    for file in source.names:
        _, tensors = weights.read_file(storage.join(source.url, file))
        for theirs in list(tensors):
            name, tensor = theirs.removeprefix("model."), tensors.pop(theirs)
            if name in expected and tensor.shape != expected[name]:
                raise Refused(
                    f"{source.url}: {theirs} is {tuple(tensor.shape)}, its config wants {tuple(expected[name])}"
                )
            seen.add(name)
            yield name, tensor.float()
    layouts.refuse_other_names(seen, set(expected))


def _tokenizer_reference(root: str, sha256: str) -> str | None:
    for reference in artifact.references(root, "tokenizer"):
        try:
            if artifact.load(root, reference).metadata.get("sha256") == sha256:
                return reference
        except NotFound:
            continue
    return None
