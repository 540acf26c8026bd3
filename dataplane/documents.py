"""Document shards -> Arrow batches, every physical record accounted for.

A folder, file or glob of dolma JSON lines (`.json`, `.jsonl`, `.ndjson`, plain, gzip or zstd) or Parquet, on any store -> `Batch`es. A row
number is the number of the physical record in its file, from 0, records that are not documents included: they are in `Batch.quarantined` with the
reason. Memory is bounded by the batch and the largest document allowed, whatever the file holds.

Format: allenai/dolma `docs/data-format.md`. The reasons and the policies behind them: `quarantine.py`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from dataplane.kernels import json_lines, words
from dataplane.quarantine import BYTE_ORDER_MARK, SAMPLE_BYTES, Document, NotADocument, Quarantined, parse, quarantined
from triplane import decompression, storage
from triplane.errors import UsageError

FORMATS = ("jsonl",)
PARQUET_SUFFIX = ".parquet"
BATCH_BYTES = 16 << 20
MAX_DOCUMENT_BYTES = 64 << 20


@dataclass(frozen=True)
class DocumentShard:
    """One input object. name: relative to the folder it was listed in, the `shard` of every table; bytes: as stored.

    columns: of Parquet, which are a document's id and text; an id of None is the row's number.
    """

    name: str
    url: str
    bytes: int
    columns: tuple[str | None, str] = ("id", "text")


@dataclass(frozen=True)
class Batch:
    """Documents of one stretch of a shard.

    rows: int64 [n], ascending. id, text: [n], never null. source: [n], null where the record has none. metadata: [n] raw JSON, if asked for.
    quarantined: the records of this stretch that are not documents, by row.
    """

    rows: np.ndarray
    id: pa.LargeStringArray
    text: pa.LargeStringArray
    source: pa.LargeStringArray
    metadata: pa.LargeStringArray | None
    quarantined: tuple[Quarantined, ...]

    @property
    def num_documents(self) -> int:
        return len(self.rows)

    @property
    def num_records(self) -> int:
        return len(self.rows) + len(self.quarantined)

    def text_buffers(self) -> tuple[np.ndarray, np.ndarray]:
        """What kernels take: offsets int64 [n + 1], data uint8."""
        return string_buffers(self.text)

    @cached_property
    def words(self) -> words.Words:
        """Where the whitespace words of the texts are; found once, shared by all taggers."""
        return words.split(*self.text_buffers())


def string_buffers(strings: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """An Arrow large string array -> offsets int64 [n + 1], data uint8, without a copy and read-only."""
    _, offset_buffer, data_buffer = strings.buffers()
    offsets, data = np.zeros(1, np.int64), np.zeros(0, np.uint8)
    if len(strings) > 0:
        offsets = np.frombuffer(offset_buffer, np.int64)[strings.offset : strings.offset + len(strings) + 1]
    if data_buffer is not None:
        data = np.frombuffer(data_buffer, np.uint8)
    for array in (offsets, data):
        array.flags.writeable = False  # always, because numba compiles a kernel once more for writable arrays
    return offsets, data


def make_batch(
    rows: Sequence[int] | np.ndarray,
    ids: Sequence[str],
    texts: Sequence[str],
    sources: Sequence[str | None] | None = None,
) -> Batch:
    """A batch of texts that come from somewhere else: edits, another format, a test."""
    columns = [pa.array(list(values), pa.large_string()) for values in (ids, texts, sources or [None] * len(ids))]
    return Batch(np.asarray(rows, np.int64), columns[0], columns[1], columns[2], None, ())


def shards(url: str, format: str = "jsonl") -> list[DocumentShard]:
    """The document files of a folder (recursive), a glob (`*`, `?`, `**`) or one file, sorted by name.

    Other files are passed over. Raises UsageError for an unknown format or when nothing is found.
    """
    if format not in FORMATS:
        raise UsageError(
            f"document format {format} of {url} is not one of {', '.join(FORMATS)}: convert it with an ingest step"
        )
    folder, pattern = _split_glob(url)
    if not pattern and storage.exists(url):
        return [DocumentShard(url.rsplit("/", 1)[-1], url, storage.size(url))]
    wanted = _glob_expression(pattern) if pattern else re.compile("")
    found = [
        DocumentShard(entry.name, storage.join(folder, entry.name), entry.bytes)
        for entry in storage.entries(folder)
        if _is_documents(entry.name) and wanted.match(entry.name)
    ]
    if not found:
        raise UsageError(f"{url} holds no document files ({decompression.DOCUMENT_FORMS}, or .parquet): check the path")
    return found


def _is_documents(name: str) -> bool:
    return name.endswith(PARQUET_SUFFIX) or decompression.DOCUMENT_SUFFIX.search(name) is not None


def _split_glob(url: str) -> tuple[str, str]:
    """A URL -> the folder before the first wildcard, the pattern behind it ("" if there is none)."""
    special = re.search(r"[*?]", url)
    if special is None:
        return url, ""
    folder, _, _ = url[: special.start()].rpartition("/")
    return folder or ".", url[len(folder) :].lstrip("/")


def _glob_expression(pattern: str) -> re.Pattern[str]:
    pieces = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(pieces.get(piece, re.escape(piece)) for piece in re.split(r"(\*\*/|\*\*|\*|\?)", pattern)) + "$"
    )


def read(
    shard: DocumentShard,
    batch_bytes: int = BATCH_BYTES,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    metadata: bool = False,
) -> Iterator[Batch]:
    """The batches of a shard, about `batch_bytes` of JSON each. The `num_records` of all add up to the physical records:
    lines, and one for whatever lies behind the place where a stream is cut or corrupt.

    Raises NotFound; TriplaneError when storage cannot be read (that is never quarantined).
    """
    if shard.name.endswith(PARQUET_SUFFIX):
        from dataplane import parquet_documents  # which needs this module

        yield from parquet_documents.read(shard, max_document_bytes=max_document_bytes)
        return
    row = 0
    with storage.open_stream(shard.url) as stream:
        for block in _blocks(decompression.chunks(stream, shard.name), batch_bytes, max_document_bytes):
            batch = (
                _lost_batch(row, block)
                if isinstance(block, _Lost)
                else _batch(row, block, max_document_bytes, metadata)
            )
            row += batch.num_records
            if batch.num_records:
                yield batch


@dataclass(frozen=True)
class _Lost:
    """One record that was not kept in memory."""

    reason: str
    detail: str
    head: bytes


def _blocks(chunks: Iterator[bytes], batch_bytes: int, max_document_bytes: int) -> Iterator[bytes | _Lost]:
    """Whole lines, and the records that are too large or cut off, in order."""
    buffer, searched, oversize, head = bytearray(), 0, 0, b""
    damage: decompression.Damaged | None = None
    while True:
        try:
            chunk = next(chunks)
        except StopIteration:
            break
        except decompression.Damaged as error:
            damage = error
            break
        if oversize:
            line_end = chunk.find(b"\n")
            oversize += len(chunk) if line_end < 0 else line_end
            if line_end < 0:
                continue
            yield _too_large(oversize, max_document_bytes, head)
            oversize, chunk = 0, chunk[line_end + 1 :]
        buffer += chunk
        if len(buffer) < batch_bytes:
            continue
        line_end = buffer.rfind(b"\n", searched)
        searched = len(buffer)
        if line_end >= 0:
            yield bytes(memoryview(buffer)[: line_end + 1])
            del buffer[: line_end + 1]
            searched = len(buffer)
        if len(buffer) > max_document_bytes:
            oversize, head, searched = len(buffer), bytes(buffer[:SAMPLE_BYTES]), 0
            buffer.clear()
    yield from _last_blocks(bytes(buffer), oversize, head, max_document_bytes, damage)


def _last_blocks(
    rest: bytes, oversize: int, head: bytes, max_document_bytes: int, damage: decompression.Damaged | None
) -> Iterator[bytes | _Lost]:
    if damage is not None:
        line_end = rest.rfind(b"\n") + 1
        yield rest[:line_end]
        yield _Lost(damage.reason, damage.detail, head if oversize else rest[line_end : line_end + SAMPLE_BYTES])
    elif oversize:
        yield _too_large(oversize, max_document_bytes, head)
    else:
        yield rest


def _too_large(size: int, limit: int, head: bytes) -> _Lost:
    return _Lost("too_large", f"{size} bytes, at most {limit} are allowed", head)


def _lost_batch(row: int, lost: _Lost) -> Batch:
    empty = make_batch([], [], [])
    return Batch(
        empty.rows, empty.id, empty.text, empty.source, None, (quarantined(row, lost.reason, lost.detail, lost.head),)
    )


def _batch(first_row: int, block: bytes, max_document_bytes: int, metadata: bool) -> Batch:
    """A block of whole lines. Almost always every line is accepted by the scan, and no Python object is made for a document."""
    data = np.frombuffer(block, np.uint8)
    if first_row == 0 and block.startswith(BYTE_ORDER_MARK):
        data = data[len(BYTE_ORDER_MARK) :]
    scan = json_lines.scan(data)
    columns = [_arrow(strings) for strings in (scan.id, scan.text, scan.source, scan.metadata)]
    lines = scan.documents
    refused: list[Quarantined] = []
    is_long = np.diff(scan.lines) > max_document_bytes
    if len(lines) < len(is_long) or is_long.any():
        keep = ~is_long[lines]
        if not keep.all():
            lines, columns = lines[keep], [column.filter(pa.array(keep)) for column in columns]
        rest = np.setdiff1d(np.arange(len(is_long)), lines)
        found, refused = _examine(data, scan.lines, rest, first_row, max_document_bytes)
        lines, columns = _merge(lines, columns, found)
    return Batch(
        first_row + lines, columns[0], columns[1], columns[2], columns[3] if metadata else None, tuple(refused)
    )


def _arrow(strings: json_lines.Strings) -> pa.LargeStringArray:
    count = len(strings.valid)
    valid = None if strings.valid.all() else pa.py_buffer(np.packbits(strings.valid, bitorder="little"))
    buffers = [valid, pa.py_buffer(np.ascontiguousarray(strings.offsets)), pa.py_buffer(strings.data)]
    return pa.Array.from_buffers(pa.large_string(), count, buffers)


def _examine(
    data: np.ndarray, starts: np.ndarray, lines: np.ndarray, first_row: int, max_document_bytes: int
) -> tuple[dict[int, Document], list[Quarantined]]:
    """The slow path, line by line."""
    found: dict[int, Document] = {}
    refused: list[Quarantined] = []
    for number in lines.tolist():
        line = data[starts[number] : starts[number + 1]].tobytes().removesuffix(b"\n")
        try:
            if len(line) > max_document_bytes:
                lost = _too_large(len(line), max_document_bytes, b"")
                raise NotADocument(lost.reason, lost.detail)
            found[number] = parse(line)
        except NotADocument as error:
            refused.append(quarantined(first_row + number, error.reason, error.detail, line))
    return found, refused


def _merge(lines: np.ndarray, columns: list[pa.Array], found: dict[int, Document]) -> tuple[np.ndarray, list[pa.Array]]:
    """Puts the documents of the slow path where their lines are."""
    if not found:
        return lines, columns
    lines = np.concatenate([lines, np.fromiter(found, np.int64)])
    order = np.argsort(lines, kind="stable")
    names = ("id", "text", "source", "metadata")
    more = [pa.array([getattr(document, name) for document in found.values()], pa.large_string()) for name in names]
    merged = [
        pa.concat_arrays([column, extra]).take(pa.array(order)) for column, extra in zip(columns, more, strict=True)
    ]
    return lines[order], merged
