"""Labelled documents for a classifier: samples of document locations -> lines with a label, split into training and validation.

A document's chance to be sampled is u(seed, key of where it is), so a larger sample holds the smaller one; its side of the split and
its place in training follow from the hash of its text, so equal texts are never on both sides. No order of reading, shard size or number of
workers changes any of it. A line is the text as DCLM scores it: `" ".join(text.strip().splitlines())` (mlfoundations/dclm
`baselines/mappers/enrichers/quality_prediction_enrichers_calc_fasttext.py`).
"""

import heapq
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from pydantic import Field

from dataplane import documents
from triplane import hashing
from triplane.errors import UsageError
from triplane.recipe import Strict

LABEL_PREFIX, END_OF_LINE = "__label__", "</s>"
NAME = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
FASTTEXT_SPACE = re.compile(r"[ \t\n\v\f\r\0]+")
SPLIT, ORDER = 1, 2  # added to the recipe's seed: independent chances for sampling, splitting and ordering


class SampleRecipe(Strict):
    """Up to `sample` documents of a location; null: all of them. Sampled documents are held in memory."""

    name: str = NAME
    documents: str  # JSON lines: a folder, an object or a glob, on any store
    sample: int | None = Field(ge=1)


class ClassRecipe(Strict):
    """One class: its label and where its documents are."""

    label: str = NAME
    sources: tuple[SampleRecipe, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Example:
    """A labelled line. order: u in [0, 1), its place among the lines of its side."""

    label: str
    source: str
    id: str
    line: str
    is_held_out: bool
    order: float


@dataclass(frozen=True)
class Examples:
    """All lines by `order`. counts: by source, documents read, sampled and used (neither empty nor a repeated or contested text)."""

    examples: tuple[Example, ...]
    counts: dict[str, dict[str, int]]

    def side(self, is_held_out: bool) -> list[Example]:
        """The training lines, or the validation lines."""
        return [example for example in self.examples if example.is_held_out == is_held_out]


def gather(classes: Sequence[ClassRecipe], seed: int, validation_fraction: float) -> Examples:
    """Reads, samples and splits. UsageError for a location without documents. A text of both classes is used for neither."""
    counts: dict[str, dict[str, int]] = {}
    found: dict[str, tuple[str, str, str]] = {}
    contested: set[str] = set()
    for one in classes:
        for source in one.sources:
            num_read, sampled = _sample(source, seed)
            counts[source.name] = {"read": num_read, "sampled": len(sampled), "used": 0}
            for id, line in sampled:
                label = found.setdefault(line, (one.label, source.name, id))[0]
                if not line or label != one.label:
                    contested.add(line)
    lines = [line for line in found if line not in contested]
    keys = np.array([xxhash.xxh3_64_intdigest(line.encode()) for line in lines], np.uint64)
    held_out = hashing.units(seed + SPLIT, keys) < validation_fraction
    examples = [
        Example(*found[line], line, bool(is_held_out), float(order))
        for line, is_held_out, order in zip(lines, held_out, hashing.units(seed + ORDER, keys), strict=True)
    ]
    for example in examples:
        counts[example.source]["used"] += 1
    return Examples(tuple(sorted(examples, key=lambda example: (example.order, example.line))), counts)


def _sample(source: SampleRecipe, seed: int) -> tuple[int, list[tuple[str, str]]]:
    """Documents read, and (id, line) of those with the smallest u, by u; memory for the sample only."""
    heap: list[tuple[float, int, str, str]] = []
    num_read = 0
    for chance, key, id, text in _documents(source, seed):
        num_read += 1
        if source.sample is None or len(heap) < source.sample:
            heapq.heappush(heap, (-chance, -key, id, normalised(text)))
        elif (-chance, -key) > heap[0][:2]:
            heapq.heapreplace(heap, (-chance, -key, id, normalised(text)))
    if num_read == 0:
        raise UsageError(
            f"source {source.name} at {source.documents} has no documents: check the location, or leave the source out"
        )
    return num_read, [(id, line) for _, _, id, line in sorted(heap, reverse=True)]


def _documents(source: SampleRecipe, seed: int) -> Iterator[tuple[float, int, str, str]]:
    """(u, key, id, text) of each document."""
    for shard in documents.shards(source.documents):
        for batch in documents.read(shard):
            keys = [hashing.document_key(source.name, shard.name, row) for row in batch.rows.tolist()]
            chances = hashing.units(seed, np.array([hashing.fold(key) for key in keys], np.uint64))
            texts = (text.as_py() for text in batch.text)
            yield from zip(chances.tolist(), keys, batch.id.to_pylist(), texts, strict=True)


def normalised(text: str) -> str:
    """The one line that is scored."""
    return " ".join(text.strip().splitlines())


def training_line(example: Example) -> str:
    """The line as fastText reads it, label first, with what the scorer would not see left out.

    In training a word `__label__x` would be a label and the words behind `</s>` another line; the scorer skips the one and stops at
    the other.
    """
    words = FASTTEXT_SPACE.split(example.line)
    if END_OF_LINE in words:
        words = words[: words.index(END_OF_LINE)]
    kept = (word for word in words if word and not word.startswith(LABEL_PREFIX))
    return f"{LABEL_PREFIX}{example.label} {' '.join(kept)}\n"
