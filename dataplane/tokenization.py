"""`tokenize`: kept documents -> shuffled token shards with provenance, and held-out documents as dolma JSON lines.

Documents + selection -> `tokens/{source}@{version}` and, where documents are held out, `heldout/{source}@{version}`. Two passes, tokens
only between them: `scatter` reads each document shard once and writes its token ids in the order of u(seed, key), with a sidecar of
checksums and a table of documents; `gather` makes output shard i of n from the documents with u in [i/n, (i+1)/n), merged over all
scatters. The order of documents is a pure function of seed and keys, so bytes do not depend on workers, tasks or restarts. Every document
ends with one end-of-text token. A small source is one shard.

Memory: scatter holds one batch and, for each document, 40 bytes and its id (ids go through a local file); gather holds one bucket of about
`BUCKET_TOKENS`. Formats: `triplane.tokens`; dolma documents.
"""

import functools
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

from dataplane import documents, gathering, ingestion, recipe, selection, spark, spark_worker, tagging
from triplane import artifact, hashing, storage, tokens
from triplane.errors import NotFound, Refused
from triplane.progress import Progress
from triplane.tokenizer import Tokenizer

VERSION = 1
SCATTER = (
    "scatter"  # the folder of the first pass, inside the unfinished tokens artifact; removed once that is committed
)
COPY_TOKENS = 8 << 20
ZSTD_LEVEL = 6


@dataclass(frozen=True)
class TokenizeParams:
    """What workers need for one source: the drafts, where its decisions are by shard number, and the tokenizer's URL."""

    source: str
    seed: int
    tokenizer: str
    tokens: artifact.Draft
    scatter: artifact.Draft
    heldout: artifact.Draft | None
    decisions: tuple[str, ...]


@dataclass(frozen=True)
class Tokenized:
    """The committed artifacts of one source; no held-out artifact when nothing is to be held out."""

    tokens: artifact.Manifest
    heldout: artifact.Manifest | None


def tokenize(
    start: spark.Start,
    root: str,
    build: recipe.BuildRecipe,
    ingested: dict[str, ingestion.Documents],
    selected: selection.Selected,
    tokenizer: artifact.Manifest,
    progress: Progress,
) -> dict[str, Tokenized]:
    """Tokenizes every source. Refused when a document shard changed since it was tagged, or tokens are not those that were planned."""
    params = {name: _params(root, build, found, selected, tokenizer) for name, found in ingested.items()}
    stage = _Stage(start, root, build, ingested, selected, tokenizer, progress)
    while missing := {name: one for name, one in params.items() if artifact.committed(one.tokens) is None}:
        try:
            _make(stage, missing)
        except NotFound:
            # Another build of the same tokens may have committed them and removed the first pass under our hands.
            if all(artifact.committed(one.tokens) is None for one in missing.values()):
                raise
    heldout = {name: _commit_heldout(one) for name, one in params.items()}
    for one in params.values():
        _remove_scatter(one)  # of whatever stands committed: its build may have been killed right here
    return {name: Tokenized(artifact.load_url(one.tokens.url), heldout[name]) for name, one in params.items()}


@dataclass(frozen=True)
class _Stage:
    """What `tokenize` was called with."""

    start: spark.Start
    root: str
    build: recipe.BuildRecipe
    ingested: dict[str, ingestion.Documents]
    selected: selection.Selected
    tokenizer: artifact.Manifest
    progress: Progress


def _make(stage: _Stage, missing: dict[str, TokenizeParams]) -> None:
    """Both passes and the commit of the sources that are not there yet. NotFound when the first pass vanishes before the second has read it."""
    tasks = [task for name in missing for task in stage.ingested[name].tasks()]
    scatters = {name: one.scatter for name, one in missing.items()}
    scatter = functools.partial(_scatter_shard, missing)
    ingestion.run_missing(stage.start, scatters, scatter, tasks, "tokenize", stage.progress)
    for one in missing.values():
        _commit_heldout(one)
    plans = {name: _gather_plan(stage.root, one, stage.build.shard_tokens) for name, one in missing.items()}
    tasks = [task for plan in plans.values() for task in plan.tasks()]
    drafts = {name: one.tokens for name, one in missing.items()}
    gather = functools.partial(gathering.gather_shard, plans)
    ingestion.run_missing(stage.start, drafts, gather, tasks, "shuffle", stage.progress)
    tokenizer = Tokenizer.load(artifact.artifact_url(stage.root, stage.tokenizer.reference))
    for name, one in missing.items():
        _commit_tokens(one, stage.ingested[name], stage.selected, tokenizer)


def _params(
    root: str,
    build: recipe.BuildRecipe,
    found: ingestion.Documents,
    selected: selection.Selected,
    tokenizer: artifact.Manifest,
) -> TokenizeParams:
    source = found.source
    url = artifact.artifact_url(root, selected.manifest.reference)
    records = [selected.record(source, index) for index in range(len(found.manifest.records))]
    made_of: dict[str, Any] = {
        "inputs": {
            "documents": found.identity,
            "decisions": selected.identity(source),
            "tokenizer": tokenizer.files[0].sha256,
        },
        "stage_versions": {"tokenize": VERSION},
    }
    draft = artifact.begin(
        root,
        "tokens",
        source,
        recipe={"source": source, "seed": build.seed, "shard_tokens": build.shard_tokens},
        **made_of,
    )
    scatter = artifact.begin(
        root,
        "tokens",
        source,
        recipe={"source": source, "seed": build.seed},
        url=storage.join(draft.url, SCATTER),
        **made_of,
    )
    heldout = (
        artifact.begin(root, "heldout", source, recipe={"source": source}, **made_of)
        if build.held_out_fraction > 0
        else None
    )
    decisions = tuple(storage.join(url, record.files[0].name) for record in records)
    return TokenizeParams(
        source, build.seed, artifact.artifact_url(root, tokenizer.reference), draft, scatter, heldout, decisions
    )


def _commit_heldout(params: TokenizeParams) -> artifact.Manifest | None:
    if params.heldout is None:
        return None
    if (standing := artifact.committed(params.heldout)) is not None:
        return standing
    counts = [record.counts for record in params.heldout.records.values()]
    return params.heldout.commit(
        {"source": params.source, **{name: sum(count[name] for count in counts) for name in ("documents", "bytes")}}
    )


def _gather_plan(root: str, params: TokenizeParams, shard_tokens: int) -> gathering.GatherPlan:
    records = [record for _, record in sorted(params.scatter.records.items())]
    num_tokens = sum(record.counts["tokens"] + record.counts["documents"] for record in records)
    inputs = tuple(gathering.scatter_input(params.scatter.url, record) for record in records if record.files)
    num_shards = -(-num_tokens // shard_tokens)
    return gathering.GatherPlan(params.source, params.tokens, params.tokenizer, inputs, num_shards, num_tokens)


def _commit_tokens(
    params: TokenizeParams, found: ingestion.Documents, selected: selection.Selected, tokenizer: Tokenizer
) -> None:
    """Compares what was written with what was planned, and commits."""
    counts = [record.counts for record in params.tokens.records.values()]
    num_documents, num_tokens = (sum(count[name] for count in counts) for name in ("documents", "tokens"))
    selected.check_tokens(params.source, num_documents, num_tokens)
    params.tokens.commit(
        {
            "source": params.source,
            "tokenizer": {"sha256": tokenizer.sha256, "eos_id": tokenizer.eos_id, "vocab_size": tokenizer.vocab_size},
            "num_tokens": num_tokens,
            "num_documents": num_documents,
            "dtype": "uint32",
            "documents": found.manifest.reference,
            "selection": selected.manifest.reference,
        }
    )


def _remove_scatter(params: TokenizeParams) -> None:
    for name in storage.list_names(params.scatter.url):
        storage.delete(storage.join(params.scatter.url, name))


def _scatter_shard(all_params: dict[str, TokenizeParams], task: ingestion.Task) -> dict[str, Any]:
    params = all_params[task["source"]]
    stem = ingestion.record_name(task["index"])
    decisions = _read_decisions(params.decisions[task["index"]])
    with ingestion.fetched(task) as shard, tempfile.TemporaryDirectory(prefix="triplane-") as name:
        folder = Path(name)
        pass_one = _Scatter(folder, params, shard, decisions)
        with pass_one.open:
            for batch in documents.read(shard):
                pass_one.add(batch)
        pass_one.check()
        if params.heldout is not None:
            files = (
                [params.heldout.put_file(folder / "heldout", stem, ".jsonl.zst", rows=pass_one.held_documents)]
                if pass_one.held_documents
                else []
            )
            params.heldout.record(
                stem, files, {"documents": pass_one.held_documents, "bytes": pass_one.held_bytes, "name": shard.name}
            )
        entries = pass_one.sorted_files(stem)
    # Last: this record says that the shard is done, the held-out part included.
    params.scatter.record(
        stem, entries, {"documents": pass_one.num_documents, "tokens": pass_one.num_tokens, "name": shard.name}
    )
    return {}


def _read_decisions(url: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read(url)), columns=["decision", "reason", "tokens"])


class _Scatter:
    """Encodes the kept documents of one shard into a local file, in document order, then writes them in the order of u(seed, key)."""

    def __init__(
        self, folder: Path, params: TokenizeParams, shard: documents.DocumentShard, decisions: pa.Table
    ) -> None:
        self.folder, self.params, self.shard, self.decisions = folder, params, shard, decisions
        self.tokenizer = Tokenizer.load(params.tokenizer)
        kept = pc.equal(decisions.column("decision"), selection.KEEP)
        held = pc.and_(
            pc.equal(decisions.column("decision"), selection.DROP),
            pc.equal(decisions.column("reason"), recipe.HELD_OUT),
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
        encoded, offsets = self.tokenizer.encode(batch.text.filter(pa.array(kept)))
        np.asarray(encoded, "<u4").tofile(self.unsorted)
        self.ids.append(batch.id.filter(pa.array(kept)))
        self.rows.append(batch.rows[kept])
        self.lengths.append(np.diff(offsets))
        for position in np.flatnonzero(held).tolist():
            self._hold_out(int(batch.rows[position]), batch.id[position].as_py(), batch.text[position].as_py())

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
        """Token ids in order, their checksums, and the table of documents (u, id, line, tokens), stored."""
        if self.num_documents == 0:
            return []
        rows, lengths = np.concatenate(self.rows), np.concatenate(self.lengths)
        u = hashing.u64(self.params.seed, tagging.document_keys(self.params.source, self.shard.name, rows))
        order = np.lexsort((rows, u))
        self._write_sorted(order, np.concatenate([[0], np.cumsum(lengths)]))
        columns = [
            pa.array(u[order]),
            pa.concat_arrays(self.ids).take(pa.array(order)),
            pa.array(rows[order] + 1),
            pa.array(lengths[order]),
        ]
        table = pa.table([columns[0], columns[1].cast(pa.string()), *columns[2:]], schema=gathering.DOCUMENTS)
        spark_worker.write_parquet(table, self.folder / "documents")
        put = self.params.scatter.put_file
        return [
            put(self.folder / "tokens", stem, ".bin", tokens=self.num_tokens),
            put(self.folder / "checksums", stem, ".xxh3"),
            put(self.folder / "documents", stem, ".parquet", rows=self.num_documents),
        ]

    def _write_sorted(self, order: np.ndarray, starts: np.ndarray) -> None:
        """Copies documents from the unsorted file to `tokens`, about `COPY_TOKENS` at a time, with one checksum a block."""
        source = np.memmap(self.folder / "unsorted", "<u4", "r") if self.num_tokens else np.empty(0, "<u4")
        with (self.folder / "tokens").open("wb") as output:
            done = np.cumsum(starts[order + 1] - starts[order])
            for part in np.split(order, np.searchsorted(done, np.arange(COPY_TOKENS, self.num_tokens, COPY_TOKENS))):
                np.concatenate([source[:0], *(source[starts[d] : starts[d + 1]] for d in part.tolist())]).tofile(output)
        with (self.folder / "tokens").open("rb") as data, (self.folder / "checksums").open("wb") as sidecar:
            while block := data.read(1024 * tokens.BLOCK_BYTES):
                tokens.block_digests(np.frombuffer(block, np.uint8)).tofile(sidecar)

    def _hold_out(self, row: int, document: str, text: str) -> None:
        line = {
            "id": document,
            "text": text,
            "source": self.params.source,
            "metadata": {"shard": self.shard.name, "line": row + 1},
        }
        self.held_file.write(orjson.dumps(line) + b"\n")
        self.held_documents += 1
        self.held_bytes += len(text.encode())

    def _check(self, holds: bool, found: str) -> None:
        if not holds:
            raise Refused(
                f"document shard {self.shard.name} of {self.params.source}: {found}: remove the attributes and selection, then build again"
            )
