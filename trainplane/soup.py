"""The uniform average of the weights of several checkpoints: references in, one artifact of kind "checkpoint" out.

OLMo 2 ends mid-training this way (arXiv 2501.00656, section 4.5: three data orders, "no config, weights averaged"). Tensor by tensor:
each is read from every checkpoint by a verified ranged read, summed in fp64 and cast back once, so at most one tensor in fp64, one as
stored and one file being written are held, whatever the size of the model. A soup has no optimizer state.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainplane.plan import resolve_parent
from triplane import artifact, hashing
from triplane.artifact import Draft, Manifest
from triplane.errors import Refused, UsageError
from triplane.lm import model_source, weights
from triplane.lm.weights import TensorEntry

STAGE_VERSIONS = {"soup": 2}
MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class Soup:
    """A committed average; `url` is a folder that `triplane.lm.weights.load_model` reads."""

    reference: str
    url: str


@dataclass(frozen=True)
class Ingredient:
    """One checkpoint: where its tensors are, what it says of itself, and its index."""

    reference: str
    url: str
    manifest: Manifest
    tensors: dict[str, TensorEntry]


def average(root: str, name: str, references: Sequence[str], version: str | None = None) -> Soup:
    """Commits `checkpoint/{name}@{version}` below `root`, or finds it committed already.

    References are runs (their last checkpoint), checkpoints of runs, or other soups; their order does not matter. UsageError for fewer
    than two or the same one twice; Refused when they are not of one model and tokenizer; NotFound; Corrupt.
    """
    ingredients = sorted((_ingredient(root, reference) for reference in references), key=lambda one: one.reference)
    check(ingredients)
    draft = artifact.begin(
        root,
        "checkpoint",
        name,
        inputs={one.reference: _weights_identity(one) for one in ingredients},
        recipe={"average": "uniform"},
        stage_versions=STAGE_VERSIONS,
        parents=[one.reference for one in ingredients],
        version=version,
    )
    if artifact.committed(draft) is None:
        commit(draft, ingredients)
    return Soup(draft.reference, draft.url)


def _ingredient(root: str, reference: str) -> Ingredient:
    url, _, pinned = resolve_parent(root, reference)
    manifest = artifact.load_url(url)
    return Ingredient(pinned, url, manifest, weights.read_index(url, model_source.model_files(manifest)))


def _weights_identity(ingredient: Ingredient) -> str:
    return hashing.identity([entry.sha256 for entry in model_source.model_files(ingredient.manifest)])


def check(ingredients: Sequence[Ingredient]) -> None:
    """UsageError or Refused, naming the two that differ and in what, unless an average of these means something."""
    references = [one.reference for one in ingredients]
    if len(references) < 2 or len(set(references)) < len(references):
        raise UsageError(f"a soup of {references}: give at least two checkpoints, each once")
    first = ingredients[0]
    for other in ingredients[1:]:
        for what, mine, theirs in _compared(first, other):
            if mine != theirs:
                raise Refused(f"{other.reference} has another {what} than {first.reference}: they cannot be averaged")


def _compared(a: Ingredient, b: Ingredient) -> Iterator[tuple[str, Any, Any]]:
    yield "model config", a.manifest.metadata.get("model_config"), b.manifest.metadata.get("model_config")
    yield "tokenizer", _tokenizer_sha256(a), _tokenizer_sha256(b)
    yield "set of tensors", _shapes(a), _shapes(b)


def _tokenizer_sha256(one: Ingredient) -> str | None:
    return (one.manifest.metadata.get("tokenizer") or {}).get("sha256")


def _shapes(one: Ingredient) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (row.dtype, row.shape) for name, row in one.tensors.items()}


def commit(draft: Draft, ingredients: Sequence[Ingredient]) -> Manifest:
    """Averages into the draft and makes it visible."""
    averaged = ((name, mean_of(name, ingredients)) for name in ingredients[0].tensors)
    files = weights.save_tensors(draft, "model", averaged, MAX_FILE_BYTES)
    draft.record("checkpoint", files, {})
    described = ingredients[0].manifest.metadata
    return draft.commit(
        {
            "model_config": described["model_config"],
            "tokenizer": described.get("tokenizer"),
            "tokens_seen": max(one.manifest.metadata.get("tokens_seen", 0) for one in ingredients),
            "step": max(one.manifest.metadata.get("step", 0) for one in ingredients),
            "ingredients": [one.reference for one in ingredients],
        }
    )


def mean_of(name: str, ingredients: Sequence[Ingredient]) -> Tensor:
    """The mean of one tensor over the ingredients, in its own dtype: summed in fp64, rounded once."""
    first = weights.read_tensor(ingredients[0].url, ingredients[0].tensors[name])
    total = first.to(torch.float64)
    for one in ingredients[1:]:
        total += weights.read_tensor(one.url, one.tensors[name])
    return (total / len(ingredients)).to(first.dtype)
