"""`ingest`: fixes which bytes are the documents, and hands them to the verbs that read them.

A source's location -> `documents/{source}@{version}`: one record a document shard, with its name, size and sha256. Documents that are
already one a row stay where they are, at the record's URL; other formats (`dataplane/ingest/`) are converted into shards of the artifact, and
what they were converted from is told apart by names, sizes and times of change. Whoever reads a shard later compares its bytes with that sha256.
"""

import functools
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataplane import documents, recipe, spark, spark_worker
from dataplane.ingest import text_tree
from triplane import artifact, hashing, storage
from triplane.errors import NotFound, Refused
from triplane.progress import Progress

VERSION = 1
Task = dict[
    str, Any
]  # source, index, name, url, bytes and, once ingested, sha256; to convert: files (name, bytes) below url


@dataclass(frozen=True)
class Documents:
    """A source's document shards as `ingest` fixed them."""

    source: str
    manifest: artifact.Manifest
    url: str  # the artifact's folder

    @property
    def identity(self) -> str:
        """A hash of names and bytes, wherever they are stored."""
        records = [record.counts for record in self.manifest.records]
        # Which columns are read decides what the same bytes say.
        columns = [counts["columns"] for counts in records if "columns" in counts]
        return hashing.identity([[counts["name"], counts["sha256"]] for counts in records] + columns)

    def tasks(self) -> list[Task]:
        """One a shard: what a worker needs to find it and to know it."""
        return [
            {"source": self.source, "index": index, **record.counts, "url": self._location(record)}
            for index, record in enumerate(self.manifest.records)
        ]

    def _location(self, record: artifact.Record) -> str:
        return storage.join(self.url, record.files[0].name) if record.files else str(record.counts["url"])


@dataclass(frozen=True)
class Listing:
    """What a location holds: how to make each of its shards, and a hash of what was seen."""

    shards: tuple[Task, ...]
    num_files: int
    identity: str

    @property
    def stored_bytes(self) -> int:
        return sum(int(shard["bytes"]) for shard in self.shards)


def listing(source: recipe.SourceRecipe) -> Listing:
    """Lists a source's location; reads no document. UsageError when it holds none."""
    if source.format == "text_tree":
        return _text_tree(source)
    found = documents.shards(source.documents)
    shards: list[Task] = [{"name": shard.name, "url": shard.url, "bytes": shard.bytes} for shard in found]
    if source.columns is not None:
        shards = [{**shard, "columns": source.columns.model_dump()} for shard in shards]
    return _listing(source, shards, len(shards), [[shard.name, shard.bytes] for shard in found])


def _text_tree(source: recipe.SourceRecipe) -> Listing:
    found = text_tree.listing(source.documents, source.suffixes)
    shards = [
        {
            "name": f"{record_name(index)}.jsonl.zst",
            "url": source.documents,
            "bytes": sum(entry.bytes for entry in files),
            "files": [(entry.name, entry.bytes) for entry in files],
        }
        for index, files in enumerate(text_tree.groups(found))
    ]
    # `ascii`: a local name need not be Unicode.
    return _listing(source, shards, len(found), [[ascii(entry.name), entry.bytes, entry.modified] for entry in found])


def _listing(source: recipe.SourceRecipe, shards: list[Task], num_files: int, seen: list[Any]) -> Listing:
    tasks = ({"source": source.name, "index": index, **shard} for index, shard in enumerate(shards))
    return Listing(tuple(tasks), num_files, hashing.identity(seen))


def record_name(index: int) -> str:
    """The record of a source's shard number `index`, and the stem of its objects."""
    return f"part-{index:05d}"


def ingest(start: spark.Start, root: str, build: recipe.BuildRecipe, progress: Progress) -> dict[str, Documents]:
    """The documents of each source. UsageError when a location holds none."""
    found = {source.name: listing(source) for source in build.sources}
    drafts = {source.name: _draft(root, source, found[source.name]) for source in build.sources}
    standing = {name: artifact.committed(draft) for name, draft in drafts.items()}
    tasks = [task for name, one in found.items() if standing[name] is None for task in one.shards]
    run_missing(start, drafts, functools.partial(_ingest_shard, drafts), tasks, "ingest", progress)
    manifests = {
        source.name: standing[source.name] or drafts[source.name].commit(_metadata(source, found[source.name]))
        for source in build.sources
    }
    return {name: Documents(name, manifest, drafts[name].url) for name, manifest in manifests.items()}


def _draft(root: str, source: recipe.SourceRecipe, found: Listing) -> artifact.Draft:
    made_by: dict[str, Any] = {"format": source.format, "licence": source.licence}
    if source.format == "text_tree":
        made_by["suffixes"] = list(source.suffixes)
    if source.columns is not None:
        made_by["columns"] = source.columns.model_dump()
    return artifact.begin(
        root,
        "documents",
        source.name,
        inputs={"location": source.documents, "listing": found.identity},
        recipe=made_by,
        stage_versions={"ingest": VERSION},
    )


def _metadata(source: recipe.SourceRecipe, found: Listing) -> dict[str, Any]:
    return {
        "source": source.name,
        "location": source.documents,
        "format": source.format,
        "licence": source.licence,
        "files": found.num_files,
        "stored_bytes": found.stored_bytes,
    }


def run_missing(
    start: spark.Start,
    drafts: Mapping[str, artifact.Draft],
    function: spark_worker.ShardFunction,
    tasks: list[Task],
    title: str,
    progress: Progress,
) -> None:
    """Runs the tasks whose shard has no record in the draft of its source yet."""
    done = {name: draft.records for name, draft in drafts.items()} if tasks else {}
    missing = [task for task in tasks if record_name(task["index"]) not in done[task["source"]]]
    weights = [int(task["bytes"]) for task in missing]
    if missing:
        session = start()
        with progress.bar(title, sum(weights), "bytes") as bar:
            spark.map_shards(session, function, missing, weights, bar)


@contextmanager
def fetched(task: Task) -> Iterator[documents.DocumentShard]:
    """The document shard on local disk, its bytes compared with what was ingested. Refused when it changed or vanished."""
    with _on_disk(str(task["url"])) as path:
        if hashing.sha256_file(path) != task["sha256"]:
            raise Refused(
                f"document shard {task['url']} changed after it was ingested: restore it, or build from a new location"
            )
        columns = task.get("columns", {"id": "id", "text": "text"})
        read = (columns["id"], columns["text"])
        yield documents.DocumentShard(str(task["name"]), str(path), int(task["bytes"]), read)


@contextmanager
def _on_disk(url: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="triplane-") as folder:
        path = storage.local_path(url) if storage.is_local(url) else Path(folder) / url.rsplit("/", 1)[-1]
        try:
            if not storage.is_local(url):
                storage.download(url, path)
            elif not path.is_file():
                raise NotFound(url)
        except NotFound:
            raise Refused(
                f"document shard {url} vanished after it was listed: restore it, or build from a new location"
            ) from None
        yield path


def _ingest_shard(drafts: dict[str, artifact.Draft], task: Task) -> dict[str, Any]:
    draft, stem = drafts[task["source"]], record_name(task["index"])
    if "files" in task:
        entry = _converted(draft, stem, task)
        stored = {"name": task["name"], "bytes": entry.bytes, "sha256": entry.sha256, "records": entry.rows}
        draft.record(stem, [entry], stored)
        return {}
    with _on_disk(str(task["url"])) as path:
        known = {name: task[name] for name in ("name", "url", "bytes", "columns") if name in task}
        counts = known | {"sha256": hashing.sha256_file(path)}
    draft.record(stem, [], counts)
    return {}


def _converted(draft: artifact.Draft, stem: str, task: Task) -> artifact.FileEntry:
    with tempfile.TemporaryDirectory(prefix="triplane-") as folder:
        path = Path(folder) / str(task["name"])
        text_tree.write_shard(path, str(task["url"]), task["files"], str(task["source"]))
        return draft.put_file(path, stem, ".jsonl.zst", rows=len(task["files"]))
