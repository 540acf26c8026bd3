"""Parquet document shards -> Arrow batches, every row accounted for.

A file whose name ends in `.parquet`, and which of its columns are id and text -> `Batch`es, as of JSON lines. A row number is the number of
the row in the file. Rows whose text or id is null or not UTF-8, and texts that are too large, are quarantined; a file that cannot be read to its end
gives one quarantined record for the rest. A column that is not there or holds no text is a mistake of the recipe.

Memory: a row group may hold gigabytes, and a dictionary of one text may stand for a million. Few enough rows are decoded at once, texts stay in their
dictionary until a batch takes them, no page above `MAX_PAGE_BYTES` is decoded, and what expands without end is left as a bomb is in other formats.

Format: https://parquet.apache.org/docs/file-format/, read by pyarrow.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataplane import parquet_pages
from dataplane.documents import BATCH_BYTES, MAX_DOCUMENT_BYTES, Batch, DocumentShard, make_batch
from dataplane.quarantine import Quarantined, quarantined
from triplane import storage
from triplane.decompression import EXPANSION_ALLOWANCE_BYTES, MAX_EXPANSION, Damaged
from triplane.errors import UsageError

BATCH_ROWS = 1024
MAX_PAGE_BYTES = 1 << 30  # decoded: a writer fills a page with 1,024 values before it looks at its size


def read(
    shard: DocumentShard, batch_rows: int = BATCH_ROWS, max_document_bytes: int = MAX_DOCUMENT_BYTES
) -> Iterator[Batch]:
    """The batches of a shard. The `num_records` of all add up to the rows of the file, and one more if it is damaged.

    Raises NotFound; UsageError when a column of the recipe is not in the file or is not text.
    """
    row, excess = 0, 0.0
    with tempfile.TemporaryDirectory(prefix="triplane-") as folder:
        path = _on_disk(shard.url, Path(folder))
        try:
            names = _checked_columns(shard, pq.read_schema(path))
            with pq.ParquetFile(path, read_dictionary=[shard.columns[1]]) as file:
                for table, expected in _tables(path, file, names, batch_rows):
                    for batch in _batches(row, table, shard, max_document_bytes):
                        excess = max(0.0, excess + len(batch.text_buffers()[1]) - expected * batch.num_records)
                        if excess > EXPANSION_ALLOWANCE_BYTES:
                            raise _bomb()
                        yield batch
                        row += batch.num_records
        except (pa.ArrowInvalid, OSError, parquet_pages.BadPage) as error:
            yield _lost(row, "corrupt_stream", str(error).splitlines()[0])
        except Damaged as error:
            yield _lost(row, error.reason, error.detail)


def _lost(row: int, reason: str, detail: str) -> Batch:
    empty = make_batch([], [], [])
    lost = quarantined(row, reason, f"parquet from row {row}: {detail}", b"")
    return Batch(empty.rows, empty.id, empty.text, empty.source, None, (lost,))


def _tables(
    path: Path, file: pq.ParquetFile, names: list[str], batch_rows: int
) -> Iterator[tuple[pa.RecordBatch, float]]:
    """Rows in the order of the file, about as many at once as fit a batch; and how many bytes of text a row may have that is no bomb. Raises Damaged
    or BadPage behind the rows before damage."""
    groups: list[int] = []
    stored, rows = 0, batch_rows
    damage: Exception | None = None
    for group in range(file.num_row_groups):
        known = file.metadata.row_group(group)
        every = (known.column(i) for i in range(known.num_columns))
        chunks = [chunk for chunk in every if chunk.path_in_schema.split(".")[0] in names]
        try:
            _check_pages(path, chunks)
        except (Damaged, parquet_pages.BadPage) as error:
            damage = error
            break
        groups.append(group)
        stored += sum(chunk.total_compressed_size for chunk in chunks)
        rows = min(rows, BATCH_BYTES * known.num_rows // max(1, sum(c.total_uncompressed_size for c in chunks)))
    expected = MAX_EXPANSION * stored / max(1, sum(file.metadata.row_group(group).num_rows for group in groups))
    if groups:
        for table in file.iter_batches(batch_size=max(1, rows), row_groups=groups, columns=names):
            yield table, expected
    if damage is not None:
        raise damage


def _bomb() -> Damaged:
    what = (
        f"the data expands more than {MAX_EXPANSION} times, by more than {EXPANSION_ALLOWANCE_BYTES} bytes beyond that"
    )
    return Damaged("decompression_bomb", what)


def _check_pages(path: Path, chunks: list[pq.ColumnChunkMetaData]) -> None:
    """Raises Damaged for a page that would take too much memory."""
    with path.open("rb") as file:
        for chunk in chunks:
            for page in parquet_pages.pages(file, chunk):
                if page.decoded > MAX_PAGE_BYTES:
                    raise Damaged("too_large", f"a page of {page.decoded} bytes, at most {MAX_PAGE_BYTES} are allowed")
                if page.decoded - MAX_EXPANSION * page.stored > EXPANSION_ALLOWANCE_BYTES:
                    raise _bomb()


def _sizes(text: pa.DictionaryArray) -> np.ndarray:
    """Bytes of each text, int64 [n]; 0 for null."""
    sizes = pc.fill_null(pc.binary_length(text.dictionary), 0).cast(pa.int64())
    return pc.fill_null(sizes.take(text.indices), 0).to_numpy(zero_copy_only=False)


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


def _batches(first_row: int, table: pa.RecordBatch, shard: DocumentShard, max_document_bytes: int) -> Iterator[Batch]:
    """The rows of a table in batches of about `BATCH_BYTES` of text: a dictionary is spelled out no further than that."""
    sizes = _sizes(table.column(shard.columns[1]))
    done = np.cumsum(np.where(sizes > max_document_bytes, 0, sizes))
    start = 0
    while start < table.num_rows:
        before = done[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(done, before + BATCH_BYTES, "right")))
        part = slice(start, end)
        yield _batch(first_row + start, table.slice(start, end - start), sizes[part], shard, max_document_bytes)
        start = end


def _batch(
    first_row: int, table: pa.RecordBatch, size: np.ndarray, shard: DocumentShard, max_document_bytes: int
) -> Batch:
    id_column, text_column = shard.columns
    rows = np.arange(first_row, first_row + table.num_rows)
    text = table.column(text_column)
    named = pa.array(rows) if id_column is None else table.column(id_column)
    ids = named.cast(pa.large_string())
    has_text = ~_flags(text.is_null()) & ~_flags(text.dictionary.is_null().take(text.indices).fill_null(True))
    refused: list[Quarantined] = []
    for index in np.flatnonzero(_flags(ids.is_null()) | ~has_text | (size > max_document_bytes)).tolist():
        refused.append(
            _refused(int(rows[index]), ids[index].is_valid, bool(has_text[index]), int(size[index]), max_document_bytes)
        )
    keep = np.ones(len(rows), bool)
    keep[[record.row - first_row for record in refused]] = False
    kept = pa.array(keep)
    texts = text.dictionary.cast(pa.large_string()).take(text.indices.filter(kept))
    rows, ids = rows[keep], ids.filter(kept)
    if (wrong := _not_utf8(ids) | _not_utf8(texts)).any():
        refused += [quarantined(row, "invalid_utf8", "the id or the text", b"") for row in rows[wrong].tolist()]
        refused.sort(key=lambda record: record.row)
        rows, ids, texts = rows[~wrong], ids.filter(pa.array(~wrong)), texts.filter(pa.array(~wrong))
    return Batch(rows, ids, texts, pa.nulls(len(rows), pa.large_string()), None, tuple(refused))


def _not_utf8(strings: pa.LargeStringArray) -> np.ndarray:
    """bool [n]: true where the bytes are not UTF-8. A Parquet file says that its strings are, and its reader takes its word."""
    try:
        strings.validate(full=True)
    except pa.ArrowInvalid:
        return np.array([not _decodes(value) for value in strings.cast(pa.large_binary()).to_pylist()])
    return np.zeros(len(strings), bool)


def _decodes(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _flags(values: pa.Array) -> np.ndarray:
    return np.asarray(values.to_numpy(zero_copy_only=False), bool)


def _refused(row: int, has_id: bool, has_text: bool, size: int, limit: int) -> Quarantined:
    if not has_id:
        return quarantined(row, "missing_id", "the id is null", b"")
    if not has_text:
        return quarantined(row, "missing_text", "the text is null", b"")
    return quarantined(row, "too_large", f"{size} bytes, at most {limit} are allowed", b"")
