"""What `tokenize` reads of a source's attributes besides decisions: what to cut from its texts, and which tokens its labels leave out.

A source of the recipe + the attributes that its selection was made from -> the columns, by record of a document shard; and what they depend on,
for the identity of what is made with them. Sources without edits and masks read no attributes.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataplane import edits, recipe
from dataplane.taggers import edited
from dataplane.taggers.table import TAGGERS
from triplane import artifact
from triplane.errors import Refused

LISTS = pa.list_(pa.int64())


@dataclass(frozen=True)
class ShardColumns:
    """The spans of each edit in order, and the regions if labels leave any out: list<int64>, by record of one document shard."""

    spans: tuple[pa.Array, ...] = ()
    regions: pa.Array | None = None


@dataclass(frozen=True)
class TextColumns:
    """The attributes files of a source by shard number; the columns of its edits in order, and of the regions its label masks leave out."""

    url: str
    files: tuple[artifact.FileEntry, ...]
    edits: tuple[str, ...]
    label_mask: str | None

    def read(self, index: int, num_records: int) -> ShardColumns:
        """The columns of document shard `index`. Refused when its attributes have another number of rows."""
        file = pq.ParquetFile(pa.BufferReader(artifact.read(self.url, self.files[index])))
        if file.metadata.num_rows != num_records:
            raise Refused(
                f"{self.files[index].name} in {self.url} has {file.metadata.num_rows} rows for {num_records} records: "
                "remove the attributes and build again"
            )
        spans = tuple(_column(file, name) for name in self.edits)
        return ShardColumns(spans, None if self.label_mask is None else _column(file, self.label_mask))


def _column(file: pq.ParquetFile, name: str) -> pa.Array:
    return file.read([name]).column(name).cast(LISTS).combine_chunks()


def of_source(root: str, source: recipe.SourceRecipe, parents: tuple[str, ...]) -> TextColumns | None:
    """None when the source has neither. parents: of its selection, the attributes among them."""
    if source.label_mask is None and not _edits(source):
        return None
    [reference] = [name for name in parents if name.startswith(f"attributes/{source.name}@")]
    files = tuple(record.files[0] for record in artifact.load(root, reference).records)
    return TextColumns(artifact.artifact_url(root, reference), files, _edits(source), source.label_mask)


def _edits(source: recipe.SourceRecipe) -> tuple[str, ...]:
    """The columns of a source's edits, in order: those of its tagger `edited`, which read tokens as they are after them."""
    values = recipe.taggers(source).get(recipe.EDITED)
    if values is None:
        return ()
    params = edited.Params.model_validate({"tokenizer": "", **values})
    return tuple(edits.column(tagger.name) for tagger, _ in edited.resolved(params.edits, ""))


def made_by(source: recipe.SourceRecipe, tokenizer_sha256: str, with_mask: bool) -> dict[str, Any]:
    """The taggers that write these columns, with version and parameters, by what is done with them. Empty for a source without them."""
    found = {}
    if columns := _edits(source):
        found["edits"] = _writer(source, columns[0], tokenizer_sha256)
    if with_mask and source.label_mask is not None:
        found["label_mask"] = _writer(source, source.label_mask, tokenizer_sha256)
    return found


def _writer(source: recipe.SourceRecipe, column: str, tokenizer_sha256: str) -> dict[str, Any]:
    for name, values in recipe.taggers(source).items():  # `recipe.checked` knows that one does
        params = recipe.tagger_params(name, values, tokenizer_sha256)
        if column in TAGGERS[name].columns(params).names:
            return {"tagger": name, "version": TAGGERS[name].version, "params": params.model_dump(mode="json")}
    raise Refused(f"source {source.name}: no tagger writes {column}: add the one that does to its taggers")
