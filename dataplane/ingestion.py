"""`ingest`: fixes which bytes are the documents, and hands them to the verbs that read them.

A source's location -> `documents/{source}@{version}`: one record a document shard, with its name, URL, size and sha256. Documents that are
already one a row stay where they are; other formats are converted first (`dataplane/ingest/`). Whoever reads a shard later compares its
bytes with that sha256.
"""

import functools
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataplane import documents, recipe, spark, spark_worker
from triplane import artifact, hashing, storage
from triplane.errors import NotFound, Refused
from triplane.progress import Progress

VERSION = 1
Task = dict[str, Any]  # source, index, name, url, bytes and, once ingested, sha256


@dataclass(frozen=True)
class Documents:
    """A source's document shards as `ingest` fixed them."""

    source: str
    manifest: artifact.Manifest

    @property
    def identity(self) -> str:
        """A hash of names and bytes, wherever they are stored."""
        return hashing.identity([[record.counts["name"], record.counts["sha256"]] for record in self.manifest.records])

    def tasks(self) -> list[Task]:
        """One a shard: what a worker needs to find it and to know it."""
        return [
            {"source": self.source, "index": index, **record.counts}
            for index, record in enumerate(self.manifest.records)
        ]


def record_name(index: int) -> str:
    """The record of a source's shard number `index`, and the stem of its objects."""
    return f"part-{index:05d}"


def ingest(start: spark.Start, root: str, build: recipe.BuildRecipe, progress: Progress) -> dict[str, Documents]:
    """The documents of each source. UsageError when a location holds none."""
    found = {source.name: documents.shards(source.documents) for source in build.sources}
    drafts = {source.name: _draft(root, source, found[source.name]) for source in build.sources}
    standing = {name: artifact.committed(draft) for name, draft in drafts.items()}
    tasks = [
        {"source": name, "index": index, "name": shard.name, "url": shard.url, "bytes": shard.bytes}
        for name, shards in found.items()
        for index, shard in enumerate(shards)
        if standing[name] is None
    ]
    run_missing(start, drafts, functools.partial(_ingest_shard, drafts), tasks, "ingest", progress)
    return {
        source.name: Documents(
            source.name, standing[source.name] or drafts[source.name].commit(_metadata(source, found[source.name]))
        )
        for source in build.sources
    }


def _draft(root: str, source: recipe.SourceRecipe, found: list[documents.DocumentShard]) -> artifact.Draft:
    return artifact.begin(
        root,
        "documents",
        source.name,
        inputs={
            "location": source.documents,
            "listing": hashing.identity([[shard.name, shard.bytes] for shard in found]),
        },
        recipe={"format": source.format, "licence": source.licence},
        stage_versions={"ingest": VERSION},
    )


def _metadata(source: recipe.SourceRecipe, found: list[documents.DocumentShard]) -> dict[str, Any]:
    stored_bytes = sum(shard.bytes for shard in found)
    return {
        "source": source.name,
        "location": source.documents,
        "format": source.format,
        "licence": source.licence,
        "stored_bytes": stored_bytes,
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
        yield documents.DocumentShard(str(task["name"]), str(path), int(task["bytes"]))


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
    with _on_disk(str(task["url"])) as path:
        counts = {name: task[name] for name in ("name", "url", "bytes")} | {"sha256": hashing.sha256_file(path)}
    drafts[task["source"]].record(record_name(task["index"]), [], counts)
    return {}
