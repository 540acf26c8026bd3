"""The first pass of `tokenize`: one document shard -> the token ids of its kept documents in the order of u(seed, key), and its held-out text.

Document shard + decisions -> three objects (token ids, a checksum per block, a table of documents) and, where documents are held out, one of
dolma JSON lines. Ids of tokens go through a local file in document order, and are copied from there in their new order. Memory: one batch
and, for each document, 40 bytes and its id.
"""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zstandard

from dataplane import documents, edits, gathering, ingestion, label_masks, recipe, spark_worker, tagging, text_columns
from dataplane.judgement import DROP, KEEP
from triplane import artifact, hashing
from triplane.block_writer import BlockWriter
from triplane.errors import Refused
from triplane.tokenizer import Tokenizer

ZSTD_LEVEL = 6
NO_TAIL = np.empty(0, np.uint32)


@dataclass(frozen=True)
class Decisions:
    """The selection's folder, and the decisions files of one source by shard number."""

    url: str
    files: tuple[artifact.FileEntry, ...]

    def read(self, index: int) -> pa.Table:
        """Decision, reason and planned tokens of every record of document shard `index`. Corrupt when they are not what was committed."""
        data = pa.BufferReader(artifact.read(self.url, self.files[index]))
        return pq.read_table(data, columns=["decision", "reason", "tokens"])


@dataclass(frozen=True)
class ScatterPlan:
    """One source's first pass: its decisions, its edits and label masks if it has any, and the tokenizer's URL."""

    source: str
    seed: int
    tokenizer: str
    scatter: artifact.Draft
    heldout: artifact.Draft | None
    decisions: Decisions
    text_columns: text_columns.TextColumns | None

    @property
    def with_mask(self) -> bool:
        """Whether the source has label masks."""
        return self.text_columns is not None and self.text_columns.label_mask is not None


def scatter_shard(plans: dict[str, ScatterPlan], task: ingestion.Task) -> dict[str, Any]:
    """Scatters document shard `index` of a source. Refused when it is not the shard that was tagged, or its tokens are not those planned."""
    plan, index = plans[task["source"]], int(task["index"])
    stem, decisions = ingestion.record_name(index), plan.decisions.read(index)
    with ingestion.fetched(task) as shard, tempfile.TemporaryDirectory(prefix="triplane-") as name:
        folder = Path(name)
        wanted = plan.text_columns
        columns = text_columns.ShardColumns() if wanted is None else wanted.read(index, decisions.num_rows)
        scatter = _Scatter(folder, plan, shard, decisions, columns)
        with scatter.open:
            for batch in documents.read(shard):
                scatter.add(batch)
        scatter.check()
        if plan.heldout is not None:
            held = scatter.held_documents
            files = [plan.heldout.put_file(folder / "heldout", stem, ".jsonl.zst", rows=held)] if held else []
            plan.heldout.record(stem, files, {"documents": held, "bytes": scatter.held_bytes, "name": shard.name})
        entries = scatter.sorted_files(stem)
    # Last: this record says that the shard is done, the held-out part included.
    plan.scatter.record(
        stem, entries, {"documents": scatter.num_documents, "tokens": scatter.num_tokens, "name": shard.name}
    )
    return {}


class _Scatter:
    """Encodes the kept documents of one shard into a local file, in document order, then writes them in the order of u(seed, key)."""

    def __init__(
        self,
        folder: Path,
        plan: ScatterPlan,
        shard: documents.DocumentShard,
        decisions: pa.Table,
        columns: text_columns.ShardColumns,
    ) -> None:
        self.folder, self.plan, self.shard, self.decisions, self.columns = folder, plan, shard, decisions, columns
        self.tokenizer = Tokenizer.load(plan.tokenizer)
        kept = pc.equal(decisions.column("decision"), KEEP)
        held = pc.and_(
            pc.equal(decisions.column("decision"), DROP), pc.equal(decisions.column("reason"), recipe.HELD_OUT)
        )
        self.is_kept, self.is_held = (
            pc.fill_null(flags, False).combine_chunks().to_numpy(zero_copy_only=False) for flags in (kept, held)
        )
        self.open = ExitStack()
        self.unsorted = self.open.enter_context((folder / "unsorted").open("wb"))
        held = self.open.enter_context((folder / "heldout").open("wb"))
        self.held_file = self.open.enter_context(zstandard.ZstdCompressor(ZSTD_LEVEL).stream_writer(held))
        self.num_records = self.num_documents = self.num_tokens = self.held_documents = self.held_bytes = 0
        self.ids: list[pa.Array] = []
        self.rows: list[np.ndarray] = []
        self.lengths: list[np.ndarray] = []

    def add(self, batch: documents.Batch) -> None:
        """Encodes the kept documents of a batch and writes out the held-out ones."""
        self.num_records += batch.num_records
        self._check(self.num_records <= len(self.is_kept), f"more than {len(self.is_kept)} records")
        kept, held = self.is_kept[batch.rows], self.is_held[batch.rows]
        ids, texts = self._documents(batch, kept)
        encoded, offsets = self.tokenizer.encode(texts)
        np.asarray(encoded, "<u4").tofile(self.unsorted)
        self.ids.append(ids)
        self.rows.append(batch.rows[kept])
        self.lengths.append(np.diff(offsets))
        if held.any():
            ids, texts = self._documents(batch, held)
            for row, document, text in zip(batch.rows[held].tolist(), ids.to_pylist(), texts.to_pylist(), strict=True):
                self._hold_out(row, document, text)

    def _documents(self, batch: documents.Batch, chosen: np.ndarray) -> tuple[pa.Array, pa.Array]:
        """Ids and edited texts of the documents with a true flag, bool [n]."""
        ids, texts = (column if chosen.all() else column.filter(pa.array(chosen)) for column in (batch.id, batch.text))
        rows = pa.array(batch.rows[chosen])
        return ids, edits.applied_all(texts, [spans.take(rows) for spans in self.columns.spans])

    def check(self) -> None:
        """Refused unless the shard gave exactly the documents and tokens that its decisions name."""
        self.num_documents = sum(map(len, self.rows))
        self.num_tokens = int(sum(lengths.sum() for lengths in self.lengths))
        planned = int(np.sum(self.decisions.column("tokens").to_numpy()[self.is_kept]))
        self._check(
            self.num_records == len(self.is_kept), f"{self.num_records} records, {len(self.is_kept)} were tagged"
        )
        self._check(
            self.num_documents == self.is_kept.sum(),
            f"{self.num_documents} documents, {self.is_kept.sum()} are to be kept",
        )
        self._check(self.num_tokens == planned, f"{self.num_tokens} tokens, {planned} were planned")

    def sorted_files(self, stem: str) -> list[artifact.FileEntry]:
        """Token ids in order, their checksums, and the table of documents, stored."""
        if self.num_documents == 0:
            return []
        rows, lengths = np.concatenate(self.rows), np.concatenate(self.lengths)
        u = hashing.u64(self.plan.seed, tagging.document_keys(self.plan.source, self.shard.name, rows))
        order = np.lexsort((rows, u))
        self._write_sorted(order, np.concatenate([[0], np.cumsum(lengths)]))
        columns = [
            pa.array(u[order]),
            pa.concat_arrays(self.ids).take(pa.array(order)).cast(pa.string()),
            pa.array(rows[order] + 1),
            pa.array(lengths[order]),
        ]
        if (regions := self.columns.regions) is not None:
            columns.append(label_masks.checked(regions.take(pa.array(rows[order])), lengths[order], self.shard.name))
        schema = gathering.documents_schema(with_mask=regions is not None)
        spark_worker.write_parquet(pa.table(columns, schema=schema), self.folder / "documents")
        put = self.plan.scatter.put_file
        return [
            put(self.folder / "tokens", stem, ".bin", tokens=self.num_tokens),
            put(self.folder / "checksums", stem, ".xxh3"),
            put(self.folder / "documents", stem, ".parquet", rows=self.num_documents),
        ]

    def _write_sorted(self, order: np.ndarray, starts: np.ndarray) -> None:
        """Copies documents from the unsorted file to `tokens`, with one checksum a block."""
        source = np.memmap(self.folder / "unsorted", "<u4", "r") if self.num_tokens else np.empty(0, "<u4")
        with ExitStack() as files:
            writer = BlockWriter(files, self.folder / "tokens", self.folder / "checksums", "<u4")
            writer.write(source, starts[order], starts[order + 1], NO_TAIL)
            writer.finish()

    def _hold_out(self, row: int, document: str, text: str) -> None:
        line = {
            "id": document,
            "text": text,
            "source": self.plan.source,
            "metadata": {"shard": self.shard.name, "line": row + 1},
        }
        self.held_file.write(orjson.dumps(line) + b"\n")
        self.held_documents += 1
        self.held_bytes += len(text.encode())

    def _check(self, holds: bool, found: str) -> None:
        if not holds:
            raise Refused(
                f"document shard {self.shard.name} of {self.plan.source}: {found}: remove the attributes and selection, then build again"
            )
