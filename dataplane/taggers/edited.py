"""Taggers that read an edited text: first each of `edits` cuts from it what it finds, in order, then all of `taggers` read what is left.

Columns: those of the edits and of the taggers. `tokenize` cuts the same spans, so tokens are counted here: `ngram_repetition` is one of `taggers`.
"""

import dataclasses
from typing import Any

import pyarrow as pa
from pydantic import Field, model_validator

from dataplane import edits
from dataplane.documents import Batch
from dataplane.tagger import Tagger
from triplane.recipe import Strict

COUNTS_TOKENS = "ngram_repetition"


class Entry(Strict):
    """A tagger with parameters; one without is written as its name alone."""

    name: str
    params: dict[str, Any] = Field({})


class Params(Strict):
    """tokenizer: for those of `taggers` that take one. versions: of the taggers, filled in, so that the columns are made anew when one changes."""

    tokenizer: str
    edits: list[str | Entry]
    taggers: list[str | Entry]
    versions: dict[str, int] = Field({})

    @model_validator(mode="before")
    @classmethod
    def _with_versions(cls, values: Any) -> Any:
        entries = [*values.get("edits", ()), *values.get("taggers", ())] if isinstance(values, dict) else []
        names = [one if isinstance(one, str) else dict(one).get("name") for one in entries]
        return {**values, "versions": {str(name): _tagger(str(name)).version for name in names}} if names else values

    @model_validator(mode="after")
    def _check(self) -> "Params":
        for tagger, values in resolved(self.edits, self.tokenizer):
            if edits.column(tagger.name) not in tagger.columns(values).names:
                raise ValueError(
                    f"edits: {tagger.name} edits nothing: name one that writes {edits.column(tagger.name)}"
                )
        readers = resolved(self.taggers, self.tokenizer)
        if COUNTS_TOKENS not in [tagger.name for tagger, _ in readers]:
            raise ValueError(f"taggers: tokens are counted after the edits: add {COUNTS_TOKENS}")
        if metadata := [tagger.name for tagger, _ in readers if tagger.needs_metadata]:
            raise ValueError(f"taggers: {metadata[0]} reads no text: name it outside")
        if len(set(names := columns(self).names)) < len(names):
            raise ValueError("edits and taggers: two of them write the same column: name each once")
        return self


def _tagger(name: str) -> Tagger:
    from dataplane.taggers.table import TAGGERS  # which lists this tagger

    if name not in TAGGERS or name == TAGGER.name:
        known = ", ".join(sorted(set(TAGGERS) - {TAGGER.name}))
        raise ValueError(f"tagger {name} is unknown here: known: {known}")
    return TAGGERS[name]


def resolved(entries: list[str | Entry], tokenizer: str) -> list[tuple[Tagger, Strict]]:
    """(tagger, parameters) of each. ValueError when there is no such tagger, or its parameters are wrong."""
    found = []
    for entry in entries:
        tagger = _tagger(entry if isinstance(entry, str) else entry.name)
        given = {"tokenizer": tokenizer} if "tokenizer" in tagger.params.model_fields else {}
        found.append(
            (tagger, tagger.params.model_validate(given if isinstance(entry, str) else {**given, **entry.params}))
        )
    return found


def columns(params: Params) -> pa.Schema:
    everything = resolved(params.edits + params.taggers, params.tokenizer)
    return pa.schema([field for tagger, values in everything for field in tagger.columns(values)])


def tag(batch: Batch, params: Params) -> pa.RecordBatch:
    schema, found = columns(params), []
    for tagger, values in resolved(params.edits, params.tokenizer):
        found.append(tagged := tagger.tag(batch, values))
        text = edits.applied(batch.text, tagged.column(edits.column(tagger.name)))
        batch = dataclasses.replace(batch, text=text)
    found += [tagger.tag(batch, values) for tagger, values in resolved(params.taggers, params.tokenizer)]
    arrays = [column for tagged in found for column in tagged.columns]
    return pa.record_batch([array.cast(field.type) for array, field in zip(arrays, schema, strict=True)], schema=schema)


TAGGER = Tagger("edited", 1, Params, columns, tag)
