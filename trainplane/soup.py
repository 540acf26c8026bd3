"""The uniform average of the weights of several checkpoints: references in, one artifact of kind "checkpoint" out.

OLMo 2 ends mid-training this way (arXiv 2501.00656, section 4.5: three data orders, "no config, weights averaged"). Spans of rows are
read from every checkpoint by verified ranged reads, summed in fp64 and cast back once, so that one file being written (1 GiB, or one
larger tensor) and a span of 32 MiB a model are held, whatever their size. A soup has no optimizer state.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainplane.plan import resolve_parent
from triplane import artifact, hashing
from triplane.artifact import Draft, Manifest
from triplane.errors import Refused, UsageError
from triplane.lm import model_source, tensor_index, weights
from triplane.lm.weights import TensorEntry

STAGE_VERSIONS = {"soup": 2}
MAX_FILE_BYTES = 1 << 30
SPAN_BYTES = 32 << 20


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
    averaged = ({name: mean_of(name, ingredients) for name in names} for names in _files(ingredients[0].tensors))
    files = weights.save_groups(draft, "model", averaged)
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


def _files(tensors: Mapping[str, TensorEntry]) -> list[list[str]]:
    """Names by the file they will lie in: in order, at most `MAX_FILE_BYTES` each, or one tensor."""
    files: list[list[str]] = []
    size = 0
    for name, entry in tensors.items():
        length = sum(chunk.length for chunk in entry.chunks)
        if not files or size + length > MAX_FILE_BYTES:
            files.append([])
            size = 0
        files[-1].append(name)
        size += length
    return files


def mean_of(name: str, ingredients: Sequence[Ingredient]) -> Tensor:
    """The mean of one tensor over the ingredients, in its own dtype: spans of rows are summed in fp64 and rounded once."""
    entry = ingredients[0].tensors[name]
    if not entry.shape:
        return _rounded_mean([weights.read_tensor(one.url, one.tensors[name]) for one in ingredients])
    mean = torch.empty(entry.shape, dtype=tensor_index.DTYPES[entry.dtype])
    span = max(1, SPAN_BYTES // max(1, mean[0].nbytes))
    for first in range(0, entry.shape[0], span):
        count = min(span, entry.shape[0] - first)
        mean[first : first + count] = _rounded_mean([_rows(one, name, first, count) for one in ingredients])
    return mean


def _rounded_mean(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0].to(torch.float64)
    for part in parts[1:]:
        total += part
    return (total / len(parts)).to(parts[0].dtype)


def _rows(one: Ingredient, name: str, first: int, count: int) -> Tensor:
    """Rows [first, first + count) of a tensor, however many ranks wrote it, every block checked."""
    entry = one.tensors[name]
    rows = torch.empty((count, *entry.shape[1:]), dtype=tensor_index.DTYPES[entry.dtype])
    for chunk in entry.chunks:
        low, high = max(first, chunk.offsets[0]), min(first + count, chunk.offsets[0] + chunk.shape[0])
        inside = tuple(slice(o, o + n) for o, n in zip(chunk.offsets[1:], chunk.shape[1:], strict=True))
        for at, part in weights.read_rows(one.url, entry, chunk, low - chunk.offsets[0], max(0, high - low)):
            start = chunk.offsets[0] + at - first
            rows[(slice(start, start + len(part)), *inside)] = part
    return rows
