"""Contamination: which evaluation items a document holds, against an index that every worker maps.

Columns: `contamination_{preset}` float64, the best score of an item that the preset flags, 0 for none; `contamination_hits`, the best matches of all
presets (preset, task, item, score, start and end in bytes of the text), one an item, all of them; `contamination_spans`, the bytes that the first
preset would cut: a tagger named under `edited.edits` cuts them, and a rule `contamination_strict > 0` drops the document.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from dataplane import contamination, contamination_index, edits
from dataplane.documents import Batch
from dataplane.kernels import contamination_words
from dataplane.tagger import Rule, Tagger
from dataplane.taggers import models
from triplane.recipe import Strict

HIT = pa.struct(
    [
        ("preset", pa.string()),
        ("task", pa.string()),
        ("item", pa.string()),
        ("score", pa.float64()),
        ("start", pa.int64()),
        ("end", pa.int64()),
    ]
)


class Params(Strict):
    """index: the URL of a file that `triplane data decontamination index` made. sha256: of that file. presets: which rules, the first the one that
    cuts. flan_ngram_words: the n of `flan`; the paper does not say it."""

    index: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    presets: list[str] = Field(min_length=1)
    flan_ngram_words: int = contamination.FLAN_NGRAM

    @field_validator("presets")
    @classmethod
    def _known(cls, presets: list[str]) -> list[str]:
        for preset in presets:
            if preset not in contamination.PRESETS or presets.count(preset) > 1:
                raise ValueError(f"preset {preset}: name each once, of {', '.join(contamination.PRESETS)}")
        return presets


@lru_cache(maxsize=2)
def _load(url: str, sha256: str) -> contamination_index.Index:
    """The index, mapped once a worker process; a remote one lies in a file that has no name any more."""
    with models.fetched(url, sha256) as path:
        return contamination_index.open_file(path)


def _columns(params: Params | None) -> pa.Schema:
    """Of all presets where none are chosen: which columns there could be."""
    presets = contamination.PRESETS if params is None else params.presets
    scores = [(f"contamination_{preset}", pa.float64()) for preset in presets]
    return pa.schema([*scores, ("contamination_hits", pa.list_(HIT)), (edits.column("contamination"), edits.SPANS)])


def _tag(batch: Batch, params: Params) -> pa.RecordBatch:
    index, buffers = _load(params.index, params.sha256), batch.text_buffers()
    words = contamination_words.fold(*buffers)
    found = [contamination.match(*buffers, words, index, preset, params.flan_ngram_words) for preset in params.presets]
    hits: list[list[dict[str, Any]]] = [[] for _ in range(batch.num_documents)]
    for preset, matches in zip(params.presets, found, strict=True):
        _add_hits(hits, preset, matches, index)
    spans: list[list[int]] = [[] for _ in range(batch.num_documents)]
    for document, start, end in found[0].spans.tolist():
        spans[document] += [start, end]
    scores = [pa.array(_best(matches, batch.num_documents)) for matches in found]
    return pa.record_batch(
        [*scores, pa.array(hits, pa.list_(HIT)), pa.array(spans, edits.SPANS)], schema=_columns(params)
    )


def _best(matches: contamination.Matches, num_documents: int) -> np.ndarray:
    best = np.zeros(num_documents)
    np.maximum.at(best, matches.document, matches.score)
    return best


def _add_hits(
    hits: list[list[dict[str, Any]]], preset: str, matches: contamination.Matches, index: contamination_index.Index
) -> None:
    """By falling score; `matches` is sorted so."""
    for document, item, score, start, end in zip(
        *(column.tolist() for column in (matches.document, matches.item, matches.score, matches.start, matches.end)),
        strict=True,
    ):
        named = {"preset": preset, "task": index.set_of(item).task, "item": index.name(item)}
        hits[document].append({**named, "score": score, "start": start, "end": end})


TAGGER = Tagger("contamination", 3, Params, _columns, _tag, (Rule("contaminated", "contamination_strict", ">", 0.0),))
