"""Parquet document shards -> Arrow batches, every row accounted for.

A file whose name ends in `.parquet`, and which of its columns are id and text -> `Batch`es, as of JSON lines. A row number is the number of
the row in the file. Rows whose text or id is null, and texts that are too large, are quarantined; a file that cannot be read to its end
gives one quarantined record for the rest. A column that is not there or holds no text is a mistake of the recipe.

Format: https://parquet.apache.org/docs/file-format/, read by pyarrow.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataplane.documents import MAX_DOCUMENT_BYTES, Batch, DocumentShard, make_batch
from dataplane.quarantine import Quarantined, quarantined
from triplane import storage
from triplane.errors import UsageError

BATCH_ROWS = 1024  # a row group may hold gigabytes of text; its pages are decoded as they are needed


def read(
    shard: DocumentShard, batch_rows: int = BATCH_ROWS, max_document_bytes: int = MAX_DOCUMENT_BYTES
) -> Iterator[Batch]:
    """The batches of a shard. The `num_records` of all add up to the rows of the file, and one more if it is damaged.

    Raises NotFound; UsageError when a column of the recipe is not in the file or is not text.
    """
    row = 0
    with tempfile.TemporaryDirectory(prefix="triplane-") as folder:
        path = _on_disk(shard.url, Path(folder))
        try:
            with pq.ParquetFile(path) as file:
                names = _checked_columns(shard, file.schema_arrow)
                for table in file.iter_batches(batch_size=batch_rows, columns=names):
                    yield _batch(row, table, shard, max_document_bytes)
                    row += table.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            reason = str(error).splitlines()[0]
            empty = make_batch([], [], [])
            lost = quarantined(row, "corrupt_stream", f"parquet from row {row}: {reason}", b"")
            yield Batch(empty.rows, empty.id, empty.text, empty.source, None, (lost,))


def _on_disk(url: str, folder: Path) -> Path:
    """Parquet is read from its end: what is not local is copied first. Raises NotFound."""
    if not storage.is_local(url):
        storage.download(url, folder / "shard.parquet")
        return folder / "shard.parquet"
    storage.size(url)
    return storage.local_path(url)


def _checked_columns(shard: DocumentShard, schema: pa.Schema) -> list[str]:
    id_column, text_column = shard.columns
    for name, allowed in ((id_column, (_is_text, pa.types.is_integer)), (text_column, (_is_text,))):
        if name is None:
            continue
        if name not in schema.names:
            raise UsageError(
                f"{shard.url} has no column {name}: set columns to some of {', '.join(schema.names)} (id: null numbers the rows)"
            )
        kind = schema.field(name).type
        if not any(fits(kind) for fits in allowed):
            raise UsageError(f"{shard.url}: column {name} holds {kind}, not text: choose another in columns")
    return [name for name in dict.fromkeys(shard.columns) if name is not None]


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _batch(first_row: int, table: pa.RecordBatch, shard: DocumentShard, max_document_bytes: int) -> Batch:
    id_column, text_column = shard.columns
    rows = np.arange(first_row, first_row + table.num_rows)
    text = table.column(text_column).cast(pa.large_string())
    named = pa.array(rows) if id_column is None else table.column(id_column)
    ids = named.cast(pa.large_string())
    size = pc.fill_null(pc.binary_length(text), 0).to_numpy(zero_copy_only=False)
    refused: list[Quarantined] = []
    for index in np.flatnonzero(_flags(ids.is_null()) | _flags(text.is_null()) | (size > max_document_bytes)).tolist():
        refused.append(
            _refused(int(rows[index]), ids[index].is_valid, text[index].is_valid, int(size[index]), max_document_bytes)
        )
    keep = np.ones(len(rows), bool)
    keep[[record.row - first_row for record in refused]] = False
    kept = pa.array(keep)
    source = pa.nulls(int(keep.sum()), pa.large_string())
    return Batch(rows[keep], ids.filter(kept), text.filter(kept), source, None, tuple(refused))


def _flags(values: pa.Array) -> np.ndarray:
    return np.asarray(values.to_numpy(zero_copy_only=False), bool)


def _refused(row: int, has_id: bool, has_text: bool, size: int, limit: int) -> Quarantined:
    if not has_id:
        return quarantined(row, "missing_id", "the id is null", b"")
    if not has_text:
        return quarantined(row, "missing_text", "the text is null", b"")
    return quarantined(row, "too_large", f"{size} bytes, at most {limit} are allowed", b"")
