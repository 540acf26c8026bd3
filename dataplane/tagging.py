"""`tag`: what is known about each document, as one attributes table a document shard.

Document shards + taggers -> `attributes/{source}@{version}`: Parquet with the same rows in the same order as the physical records of the
shard, quarantined ones included. Columns: `row`, `id`, `key` (low 64 bits of the document key), `text_bytes`, `quarantine` (reason, null
for a document), then the taggers' own. Each record says what came in: records, documents, bytes and tokens of text, quarantined by reason.
"""

import functools
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataplane import documents, ingestion, recipe, spark, spark_worker
from dataplane.taggers.table import TAGGERS
from triplane import artifact, hashing
from triplane.errors import Refused
from triplane.progress import Progress

VERSION = 1
COUNTED = ("records", "documents", "bytes", "tokens")
BASE_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("key", pa.uint64()),
        ("text_bytes", pa.int64()),
        ("quarantine", pa.string()),
    ]
)


@dataclass(frozen=True)
class TagParams:
    """What a worker needs to tag a shard of one source: `taggers` is (name, parameters as JSON values) in declared order."""

    draft: artifact.Draft
    taggers: tuple[tuple[str, dict[str, Any]], ...]


def tag(
    start: spark.Start,
    root: str,
    build: recipe.BuildRecipe,
    ingested: dict[str, ingestion.Documents],
    tokenizer: tuple[str, str],
    progress: Progress,
) -> dict[str, artifact.Manifest]:
    """The attributes of each source. `tokenizer` is (URL, sha256). Refused when a shard is not what was ingested, or rows do not align."""
    url, sha256 = tokenizer
    params = {
        source.name: TagParams(_draft(root, source, ingested[source.name], sha256), tuple(_params(source, url).items()))
        for source in build.sources
    }
    drafts = {name: one.draft for name, one in params.items()}
    standing = {name: artifact.committed(draft) for name, draft in drafts.items()}
    tasks = [task for name, found in ingested.items() if standing[name] is None for task in found.tasks()]
    ingestion.run_missing(start, drafts, functools.partial(_tag_shard, params), tasks, "tag", progress)
    return {name: standing[name] or draft.commit(_metadata(ingested[name], draft)) for name, draft in drafts.items()}


def _params(source: recipe.SourceRecipe, tokenizer: str) -> dict[str, dict[str, Any]]:
    return {
        name: recipe.tagger_params(name, values, tokenizer).model_dump(mode="json")
        for name, values in recipe.taggers(source).items()
    }


def _draft(root: str, source: recipe.SourceRecipe, found: ingestion.Documents, tokenizer_sha256: str) -> artifact.Draft:
    taggers = _params(
        source, tokenizer_sha256
    )  # named by content: the same tokenizer elsewhere gives the same attributes
    return artifact.begin(
        root,
        "attributes",
        source.name,
        inputs={"documents": found.identity},
        recipe={"source": source.name, "taggers": taggers},
        stage_versions={"tag": VERSION, **{name: TAGGERS[name].version for name in taggers}},
    )


def _metadata(found: ingestion.Documents, draft: artifact.Draft) -> dict[str, Any]:
    # The documents are named here and not as a parent: the same bytes elsewhere have the same attributes.
    counts = [record.counts for record in draft.records.values()]
    return {
        "source": found.source,
        "ingested": found.manifest.reference,
        **{name: sum(int(str(count[name])) for count in counts) for name in COUNTED},
    }


def _tag_shard(params: dict[str, TagParams], task: ingestion.Task) -> dict[str, Any]:
    """Reads one document shard, writes one attributes file and its record."""
    source, stem = str(task["source"]), ingestion.record_name(task["index"])
    taggers = [(TAGGERS[name], TAGGERS[name].params.model_validate(values)) for name, values in params[source].taggers]
    schema = attributes_schema(taggers)
    counts, quarantined = Counter(dict.fromkeys(COUNTED, 0)), Counter[str]()
    with ingestion.fetched(task) as shard, tempfile.TemporaryDirectory(prefix="triplane-") as folder:
        path = Path(folder) / "attributes.parquet"
        with spark_worker.parquet_writer(path, schema) as writer:
            batches = documents.read(shard, metadata=any(tagger.needs_metadata for tagger, _ in taggers))
            for table in row_groups(batch_table(batch, taggers, schema, source, shard.name) for batch in batches):
                _check_rows(table, counts["records"], shard)
                writer.write_table(table, row_group_size=spark_worker.ROW_GROUP_ROWS)
                _count(table, counts, quarantined)
        entry = params[source].draft.put_file(path, stem, ".parquet", rows=counts["records"])
    values = {
        **counts,
        "quarantined": dict(sorted(quarantined.items())),
        "name": shard.name,
        "sha256": str(task["sha256"]),
    }
    params[source].draft.record(stem, [entry], values)
    return {}


def attributes_schema(taggers: list[tuple[Any, Any]]) -> pa.Schema:
    """The base columns and those of the taggers (tagger, parameters)."""
    schema = BASE_SCHEMA
    for tagger, values in taggers:
        for field in tagger.columns(values):
            schema = schema.append(field.with_nullable(True))
    return schema


def batch_table(
    batch: documents.Batch, taggers: list[tuple[Any, Any]], schema: pa.Schema, source: str, shard: str
) -> pa.Table:
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


def _check_rows(table: pa.Table, first_row: int, shard: documents.DocumentShard) -> None:
    rows = table.column("row").to_numpy()
    if not np.array_equal(rows, np.arange(first_row, first_row + len(rows))):
        raise Refused(
            f"document shard {shard.name}: records {first_row} to {first_row + len(rows)} were not read once each, in order: report this file"
        )


def _count(table: pa.Table, counts: Counter[str], quarantined: Counter[str]) -> None:
    reasons = table.column("quarantine").drop_null().to_pylist()
    quarantined.update(reasons)
    counts["records"] += table.num_rows
    counts["documents"] += table.num_rows - len(reasons)
    for unit, column in (("bytes", "text_bytes"), ("tokens", recipe.TOKEN_COUNT)):
        counts[unit] += int(table.column(column).drop_null().to_numpy().sum())
