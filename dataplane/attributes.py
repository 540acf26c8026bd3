"""Attribute tables: one row a physical record, in record order, whatever the batches were.

`Batch`es + taggers -> Arrow tables with the base columns `row`, `id`, `key` (low 64 bits of the document key), `text_bytes`, `quarantine`
(reason, null for a document), then the taggers' own.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from dataplane import documents, spark_worker
from triplane import hashing

LARGE_DOCUMENT_BYTES = 4 << 20
BASE_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("key", pa.uint64()),
        ("text_bytes", pa.int64()),
        ("quarantine", pa.string()),
    ]
)
Taggers = list[tuple[Any, Any]]  # (tagger, its parameters)


def attributes_schema(taggers: Taggers, before: pa.Schema = BASE_SCHEMA) -> pa.Schema:
    """The columns before and those of the taggers (tagger, parameters)."""
    schema = before
    for tagger, values in taggers:
        for field in tagger.columns(values):
            schema = schema.append(field.with_nullable(True))
    return schema


def batch_table(batch: documents.Batch, taggers: Taggers, schema: pa.Schema, source: str, shard: str) -> pa.Table:
    """The attributes of a batch, one row a physical record in record order; all but row, key and reason are null in quarantined rows."""
    offsets, _ = batch.text_buffers()
    columns: dict[str, pa.Array] = {
        "row": pa.array(batch.rows, pa.int64()),
        "id": batch.id,
        "key": pa.array(document_keys(source, shard, batch.rows), pa.uint64()),
        "text_bytes": pa.array(np.diff(offsets), pa.int64()),
        "quarantine": pa.nulls(batch.num_documents, pa.string()),
    }
    for tagger, values in taggers:
        tagged = tagger.tag(batch, values)
        columns |= {name: tagged.column(name) for name in tagged.schema.names}
    table = pa.table([columns[name].cast(schema.field(name).type) for name in schema.names], schema=schema)
    return (
        pa.concat_tables([table, _quarantined_table(batch, schema, source, shard)]).sort_by("row")
        if batch.quarantined
        else table
    )


def _quarantined_table(batch: documents.Batch, schema: pa.Schema, source: str, shard: str) -> pa.Table:
    rows = np.array([record.row for record in batch.quarantined], np.int64)
    known = {
        "row": rows,
        "key": document_keys(source, shard, rows),
        "quarantine": [record.reason for record in batch.quarantined],
    }
    columns = [pa.array(known[f.name], f.type) if f.name in known else pa.nulls(len(rows), f.type) for f in schema]
    return pa.table(columns, schema=schema)


def document_keys(source: str, shard: str, rows: np.ndarray) -> np.ndarray:
    """The low 64 bits of each document's key, uint64 [n]."""
    return np.fromiter(
        (hashing.document_key(source, shard, row) & hashing.U64 for row in rows.tolist()), np.uint64, len(rows)
    )


def row_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of whole row groups, so that a file's bytes do not depend on what a batch held."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        rows = sum(piece.num_rows for piece in waiting)
        if rows >= spark_worker.ROW_GROUP_ROWS:
            joined, whole = pa.concat_tables(waiting).combine_chunks(), rows - rows % spark_worker.ROW_GROUP_ROWS
            yield joined.slice(0, whole)
            waiting = [joined.slice(whole)]
    if any(piece.num_rows for piece in waiting):
        yield pa.concat_tables(waiting).combine_chunks()


def lanes(batches: Iterable[documents.Batch]) -> Iterator[documents.Batch]:
    """The same records with every document above `LARGE_DOCUMENT_BYTES` in a batch of its own: what a kernel allocates for it is not added to what
    it holds for others."""
    for batch in batches:
        large = np.flatnonzero(np.diff(batch.text_buffers()[0]) > LARGE_DOCUMENT_BYTES)
        edges = np.unique(np.concatenate([[0], large, large + 1, [batch.num_documents]])).tolist()
        if len(large) == 0 or batch.num_records == 1:
            yield batch
            continue
        for start, end in itertools.pairwise(edges):
            yield _part(batch, start, end)


def _part(batch: documents.Batch, start: int, end: int) -> documents.Batch:
    """Documents [start, end), and the quarantined records between them; the first part has those before it and the last those behind."""
    low = batch.rows[start] if start else -1
    high = batch.rows[end] if end < batch.num_documents else np.inf
    chosen = chosen_documents(batch, slice(start, end))
    return dataclasses.replace(chosen, quarantined=tuple(one for one in batch.quarantined if low < one.row < high))


def chosen_documents(batch: documents.Batch, chosen: slice | np.ndarray) -> documents.Batch:
    """A slice of the documents, or those with a true flag (bool [n]); no quarantined record."""

    def of(column: pa.LargeStringArray) -> pa.LargeStringArray:
        return column[chosen] if isinstance(chosen, slice) else column.filter(pa.array(chosen))

    return documents.Batch(
        batch.rows[chosen],
        of(batch.id),
        of(batch.text),
        of(batch.source),
        None if batch.metadata is None else of(batch.metadata),
        (),
    )
