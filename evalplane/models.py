"""What `--model` names (`triplane.lm.model_source` says where it is), the name its results get, and its tokenizer.

In: a URL or a `run/name[@version]` reference, and the root; or, for another back end than ours, `transformers:FOLDER`, `vllm:FOLDER` or
`openai:URL#MODEL`. Out: a `Model`, found without reading any weights of a committed checkpoint, so that a finished evaluation is recognised
before a model is loaded.
"""

import re
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Literal

from triplane import artifact, storage
from triplane.errors import Corrupt, Refused, UsageError
from triplane.lm import model_source
from triplane.lm.model_source import CHECKPOINTS

Backend = Literal["native", "transformers", "vllm", "openai"]


@dataclass(frozen=True)
class Model:
    """Where a model and its tokenizer are. `identity` follows from the weights' content; `tokenizer_sha256` is None if unrecorded."""

    url: str
    name: str
    identity: str
    tokenizer_url: str
    tokenizer_sha256: str | None
    backend: Backend = "native"

    def describe(self) -> dict[str, str]:
        """As an evaluation records it; the back end where it is not ours."""
        other = {} if self.backend == "native" else {"backend": self.backend}
        return {"name": self.name, "url": self.url, "identity": self.identity, **other}


def locate(model: str, root: str, tokenizer: str | None = None) -> Model:
    """Finds the model; NotFound says where it looked, UsageError when no tokenizer is recorded and none is given."""
    prefix, _, rest = model.partition(":")
    if prefix == "openai":
        return _endpoint(rest, tokenizer)
    for other in ("transformers", "vllm"):
        if prefix == other:
            return replace(locate(rest, root, tokenizer), backend=other)
    found = model_source.find(_folder(model, root))
    if found.manifest is None:
        return Model(found.url, _name(found.url), found.identity(), tokenizer or found.url, None)
    recorded = found.manifest.metadata.get("tokenizer") or {}
    tokenizer_url = _tokenizer_url(found.url, root, tokenizer, recorded)
    return Model(found.url, _name(found.url), found.identity(), tokenizer_url, recorded.get("sha256"))


def _endpoint(where: str, tokenizer: str | None) -> Model:
    """Its identity is its address: nobody outside knows what weights it serves, or whether they changed."""
    url, _, name = where.partition("#")
    if not url.startswith(("http://", "https://")) or not name or tokenizer is None:
        raise UsageError(
            f"openai:{where} is not openai:URL#MODEL with a --tokenizer to count its tokens: give all three"
        )
    return Model(where, _name(name), sha256(where.encode()).hexdigest(), tokenizer, None, "openai")


def _folder(model: str, root: str) -> str:
    """A `run/...` reference becomes its folder under root; anything else is a URL already."""
    if not model.startswith("run/"):
        return model
    if "@" not in model:
        model = artifact.load(root, model).reference
    return storage.join(root, model)


def _tokenizer_url(url: str, root: str, given: str | None, recorded: dict[str, str]) -> str:
    reference = given or recorded.get("reference")
    if reference is None:
        raise UsageError(f"{url} records no tokenizer; give one with --tokenizer")
    return artifact.artifact_url(root, reference) if reference.startswith("tokenizer/") else reference


def check_tokenizer(model: Model, sha256: str) -> None:
    """Refused when the tokenizer found is not the one the model was trained with."""
    if model.tokenizer_sha256 not in (None, sha256):
        raise Refused(
            f"{model.url} was trained with tokenizer {str(model.tokenizer_sha256)[:12]}, "
            f"{model.tokenizer_url} is {sha256[:12]}; give the right one with --tokenizer"
        )


def check_identity(model: Model, identity: str) -> None:
    """Corrupt when the weights read are not those the evaluation was named after."""
    if identity != model.identity:
        raise Corrupt(
            f"{model.url} changed while it was evaluated ({model.identity[:12]} became {identity[:12]}); run the command again"
        )


def _name(url: str) -> str:
    """`.../run/demo@1a2b/checkpoints/tokens-000000000001000` -> `demo-tokens-000000000001000`; a folder: its own name."""
    parts = url.split("/")
    shown = f"{parts[-3].split('@')[0]}-{parts[-1]}" if len(parts) > 2 and parts[-2] == CHECKPOINTS else parts[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", shown).strip("._-") or "model"
