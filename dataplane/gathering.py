"""The second pass of `tokenize`: documents scattered by u(seed, key) -> one token shard for each equal range of u.

Scattered token ids (one object a document shard, in order of u) -> `ShardWriter`. A shard's range is cut into buckets of about
`BUCKET_TOKENS`; each is read from every scatter by verified ranges, merged, and appended, so memory is bounded by a bucket. Of a scatter's
table of documents only the row groups that the range touches are read.
"""

import io
import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataplane import ingestion, label_masks
from triplane import artifact, storage, tokens
from triplane.tokenizer import Tokenizer

BUCKET_TOKENS = 32 << 20
DOCUMENTS = pa.schema([("u", pa.uint64()), ("id", pa.string()), ("line", pa.int64()), ("tokens", pa.int64())])
REGIONS = pa.field("regions", label_masks.REGIONS)
END = 1 << 64


def documents_schema(with_mask: bool) -> pa.Schema:
    """The table of a scatter's documents; with label masks also the regions of each."""
    return DOCUMENTS.append(REGIONS) if with_mask else DOCUMENTS


@dataclass(frozen=True)
class ScatterInput:
    """What one document shard was scattered to: `name` is the document shard's, `documents_bytes` the size of its table."""

    name: str
    tokens: str
    checksums: str
    documents: str
    documents_bytes: int
    num_tokens: int


@dataclass(frozen=True)
class GatherPlan:
    """One source's second pass. `num_tokens` counts an end-of-text token for each document; `with_mask`: its shards have label masks."""

    source: str
    draft: artifact.Draft
    tokenizer: str
    inputs: tuple[ScatterInput, ...]
    num_shards: int
    num_tokens: int
    with_mask: bool

    def tasks(self) -> list[ingestion.Task]:
        """One an output shard."""
        return [
            {"source": self.source, "index": index, "bytes": 4 * self.num_tokens // self.num_shards}
            for index in range(self.num_shards)
        ]

    @property
    def num_buckets(self) -> int:
        """Buckets of one shard."""
        return max(1, -(-self.num_tokens // max(1, self.num_shards * BUCKET_TOKENS)))


def scatter_input(url: str, record: artifact.Record) -> ScatterInput:
    """From the record that `scatter` made: token ids, checksums, documents, in this order."""
    ids, checksums, documents = record.files
    return ScatterInput(
        name=str(record.counts["name"]),
        tokens=storage.join(url, ids.name),
        checksums=storage.join(url, checksums.name),
        documents=storage.join(url, documents.name),
        documents_bytes=documents.bytes,
        num_tokens=int(record.counts["tokens"]),
    )


def gather_shard(plans: dict[str, GatherPlan], task: ingestion.Task) -> dict[str, Any]:
    """Writes output shard `index` of a source."""
    plan = plans[task["source"]]
    stem = ingestion.record_name(task["index"])
    first, num_buckets = int(task["index"]) * plan.num_buckets, plan.num_buckets
    edges = [bucket * END // (plan.num_shards * num_buckets) for bucket in range(first, first + num_buckets + 1)]
    runs = [_Run(entry, edges[0], edges[-1]) for entry in plan.inputs]
    with tempfile.TemporaryDirectory(prefix="triplane-") as folder:
        eos_id = Tokenizer.load(plan.tokenizer).eos_id
        with tokens.ShardWriter(Path(folder), stem, eos_id, plan.with_mask) as writer:
            for low, high in itertools.pairwise(edges):
                _write_bucket(writer, runs, low, high, plan.with_mask)
            files = writer.close()
        tokens.write_artifact_shard(
            plan.draft, files, stem, {"documents": files.num_documents, "tokens": files.num_tokens}
        )
    return {}


def _write_bucket(writer: tokens.ShardWriter, runs: list["_Run"], low: int, high: int, with_mask: bool) -> None:
    """Appends the documents with low <= u < high, ordered by (u, document shard, line)."""
    pieces = [(run.entry.name, *run.take(low, high)) for run in runs]
    pieces = [piece for piece in pieces if piece[1].num_rows]
    if not pieces:
        return
    table = pa.concat_tables([piece[1] for piece in pieces]).combine_chunks()
    ids = pieces[0][2] if len(pieces) == 1 else np.concatenate([piece[2] for piece in pieces])
    shard = np.repeat(np.arange(len(pieces)), [piece[1].num_rows for piece in pieces])
    order = np.lexsort((table.column("line").to_numpy(), shard, table.column("u").to_numpy()))
    starts = np.concatenate([[0], np.cumsum(table.column("tokens").to_numpy())])
    regions = table.column("regions").combine_chunks() if with_mask else None
    mask = None if regions is None else label_masks.mask(regions, starts[:-1], len(ids))
    names = [pieces[number][0] for number in shard[order].tolist()]
    taken = table.select(["id", "line"]).take(pa.array(order))
    origins = (taken.column("id").to_pylist(), names, taken.column("line").to_pylist())
    writer.add_pieces(ids, starts[order], starts[order + 1], *origins, mask)


class _Run:
    """The part of one scatter with low <= u < high: its documents, and its token ids on demand."""

    def __init__(self, entry: ScatterInput, low: int, high: int) -> None:
        self.entry = entry
        self.reader = tokens.Reader(tokens.Shard(entry.tokens, entry.checksums, entry.num_tokens))
        self.documents, before = _documents(entry, low, high)
        self.u = self.documents.column("u").to_numpy()
        self.starts = before + np.concatenate([[0], np.cumsum(self.documents.column("tokens").to_numpy())])

    def take(self, low: int, high: int) -> tuple[pa.Table, np.ndarray]:
        """Documents with low <= u < high and their token ids, uint32."""
        first = int(np.searchsorted(self.u, np.uint64(low)))
        last = len(self.u) if high >= END else int(np.searchsorted(self.u, np.uint64(high)))
        start, end = int(self.starts[first]), int(self.starts[last])
        return self.documents.slice(first, last - first), self.reader.read(start, end - start)


def _documents(entry: ScatterInput, low: int, high: int) -> tuple[pa.Table, int]:
    """The row groups that [low, high) touches, and how many tokens lie before them."""
    file = pq.ParquetFile(pa.PythonFile(_Ranges(entry.documents, entry.documents_bytes), "r"))
    groups, skipped = [], []
    for number in range(file.num_row_groups):
        bounds = file.metadata.row_group(number).column(0).statistics
        if bounds.max < low:
            skipped.append(number)
        elif bounds.min < high:
            groups.append(number)
    before = int(file.read_row_groups(skipped, columns=["tokens"]).column("tokens").to_numpy().sum()) if skipped else 0
    return file.read_row_groups(groups).cast(
        documents_schema(REGIONS.name in file.schema_arrow.names)
    ).combine_chunks(), before


class _Ranges(io.RawIOBase):
    """A stored object as a seekable file: what Parquet needs to read only some of it."""

    def __init__(self, url: str, size: int) -> None:
        self.url, self.size, self.position = url, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def read(self, length: int = -1) -> bytes:
        length = min(length if length >= 0 else self.size, self.size - self.position)
        data = storage.read_range(self.url, self.position, length)
        self.position += length
        return data
