"""A later pass of `tag`: the table of the pass before, and columns for the documents that its rules let through.

An attributes table + the batches of the same shard -> the same rows with more columns, null where a document was not to be read. Rows are
matched by record number and key; what does not match is refused.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataplane import documents, judgement, spark_worker
from dataplane.attributes import Taggers, chosen_documents, document_keys
from dataplane.tagger import Rule
from triplane import artifact
from triplane.errors import Refused


@dataclass(frozen=True)
class Earlier:
    """What a later pass reads: the table before it, its files by shard number, and the rules that choose documents."""

    url: str
    files: tuple[artifact.FileEntry, ...]
    where: tuple[Rule, ...]


def earlier_table(earlier: Earlier, index: int) -> pq.ParquetFile:
    """The attributes that the passes before wrote of shard number `index`. Corrupt when they are not what was committed."""
    return pq.ParquetFile(pa.BufferReader(artifact.read(earlier.url, earlier.files[index])))


def later_tables(
    before: pq.ParquetFile,
    batches: Iterable[documents.Batch],
    taggers: Taggers,
    schema: pa.Schema,
    where: Sequence[Rule],
    shard: tuple[str, str],
) -> Iterator[pa.Table]:
    """The rows of `before`, each with the taggers' columns: null in records that are no document, empty ones, and those that a rule of `where` drops.

    shard: source and name. Refused unless `before` has one row a record, with its key.
    """
    waiting = before.schema_arrow.empty_table()
    groups = before.iter_batches(batch_size=spark_worker.ROW_GROUP_ROWS)
    for batch in batches:
        while waiting.num_rows < batch.num_records and (group := next(groups, None)) is not None:
            waiting = pa.concat_tables([waiting, pa.Table.from_batches([group])])
        rows, waiting = waiting.slice(0, batch.num_records), waiting.slice(batch.num_records)
        _check_keys(rows, batch, shard)
        yield _with_columns(rows, batch, taggers, schema, judgement.judge(rows, where).kept)
    if waiting.num_rows or next(groups, None) is not None:
        raise Refused(_misaligned(shard, "it has more rows than its documents"))


def _check_keys(rows: pa.Table, batch: documents.Batch, shard: tuple[str, str]) -> None:
    records = np.sort(np.concatenate([batch.rows, np.array([one.row for one in batch.quarantined], np.int64)]))
    if rows.num_rows < batch.num_records:
        raise Refused(_misaligned(shard, f"it ends before record {records[rows.num_rows]}"))
    if not np.array_equal(rows.column("row").to_numpy(), records) or not np.array_equal(
        rows.column("key").to_numpy(), document_keys(*shard, records)
    ):
        raise Refused(_misaligned(shard, f"its rows from record {records[0]} are of other documents"))


def _misaligned(shard: tuple[str, str], what: str) -> str:
    return f"attributes of {shard[1]} in source {shard[0]}: {what}: remove them and build again"


def _with_columns(
    rows: pa.Table, batch: documents.Batch, taggers: Taggers, schema: pa.Schema, passed: np.ndarray
) -> pa.Table:
    """`rows` [records] and the taggers' columns for the documents with `passed`, bool [records]."""
    columns = dict(zip(rows.column_names, rows.columns, strict=True))
    place = np.cumsum(passed) - 1
    if batch.num_documents:
        is_document = rows.column("quarantine").is_null().to_numpy()
        chosen = passed[is_document]
        batch = batch if chosen.all() else chosen_documents(batch, chosen)
    for tagger, values in taggers if passed.any() else []:
        tagged = tagger.tag(batch, values)
        taken = pa.array(place, pa.int64(), mask=~passed)
        columns |= {name: tagged.column(name).take(taken) for name in tagged.schema.names}
    none = (field for field in schema if field.name not in columns)
    columns |= {field.name: pa.nulls(rows.num_rows, field.type) for field in none}
    return pa.table([columns[field.name].cast(field.type) for field in schema], schema=schema)
