"""Artifacts: folders `kind/name@version` that become visible, whole, by one put-if-absent of their manifest.

Files made by shards -> records (existence = that shard is done) -> a manifest. Object names carry their content's hash, so no late attempt changes
bytes that a record describes; a crash leaves nothing readable, and the same command again finishes what is missing. Design decision 4
(docs/adr); the commit protocol follows Iceberg's and Delta's: immutable data, one conditional put.
"""

import dataclasses
import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata as installed
from pathlib import Path
from typing import Any, TypeVar

from triplane import hashing, storage
from triplane.artifact_format import (
    CONTENT_HASH,
    KINDS,
    MANIFEST,
    RECORDS,
    SCHEMA_VERSION,
    FileEntry,
    Manifest,
    Record,
    identity_of,
    is_inside,
    manifest_from,
    record_from,
    split_reference,
    to_bytes,
)
from triplane.artifact_gc import collect_garbage
from triplane.artifact_verify import verify
from triplane.errors import Corrupt, LostRace, NotFound, UsageError

__all__ = [
    "CONTENT_HASH",
    "KINDS",
    "SCHEMA_VERSION",
    "Draft",
    "FileEntry",
    "Manifest",
    "Record",
    "artifact_url",
    "begin",
    "collect_garbage",
    "committed",
    "describe",
    "load",
    "load_url",
    "read",
    "references",
    "verify",
]

A = TypeVar("A")
B = TypeVar("B")

VERSION_DIGITS = 12
CALLS_AT_ONCE = 16
READ_BYTES = 4 << 20


@dataclass(frozen=True)
class Draft:
    """An artifact being made: strings only, so that it travels to workers. `header` is the JSON of what the identity hashes."""

    url: str
    kind: str
    name: str
    version: str
    identity: str
    header: str

    @property
    def reference(self) -> str:
        """kind/name@version."""
        return f"{self.kind}/{self.name}@{self.version}"

    @property
    def records(self) -> dict[str, Record]:
        """What is done already, by shard. Raises LostRace when the folder holds shards of another identity."""
        names = [name for name in storage.list_names(storage.join(self.url, RECORDS)) if name.endswith(".json")]
        found = _at_once(lambda name: self._standing(name.removesuffix(".json")), names)
        return {record.shard: record for record in found}

    def put_file(
        self, path: Path, stem: str, suffix: str, rows: int | None = None, tokens: int | None = None
    ) -> FileEntry:
        """Stores a local file as `{stem}-{first 12 digits of its sha256}{suffix}`."""
        entry = _entry(stem, suffix, hashing.sha256_file(path), Path(path).stat().st_size, rows, tokens)
        storage.put_file(storage.join(self.url, entry.name), Path(path))
        return entry

    def put_bytes(
        self, data: bytes, stem: str, suffix: str, rows: int | None = None, tokens: int | None = None
    ) -> FileEntry:
        """As `put_file`, from memory."""
        entry = _entry(stem, suffix, sha256(data).hexdigest(), len(data), rows, tokens)
        storage.put(storage.join(self.url, entry.name), data)
        return entry

    def record(self, shard: str, files: Sequence[FileEntry], counts: Mapping[str, Any]) -> Record:
        """Says that a shard is done -> the record that stands: ours, or that of the attempt that was first. Raises LostRace."""
        if not is_inside(shard):
            raise UsageError(f"shard {shard!r} is no name: use a relative path without ..")
        mine = to_bytes(Record(shard, tuple(files), dict(counts), self.identity))
        if storage.put_if_absent(self._record_url(shard), mine):
            return record_from(mine, self._record_url(shard))
        return self._standing(shard)

    def commit(self, metadata: Mapping[str, Any]) -> Manifest:
        """Collates the records and makes the artifact visible -> the manifest that stands. Raises LostRace."""
        records = (dataclasses.replace(record, identity="") for _, record in sorted(self.records.items()))
        mine = to_bytes(
            Manifest(
                schema_version=SCHEMA_VERSION,
                kind=self.kind,
                name=self.name,
                version=self.version,
                identity=self.identity,
                code_version=_code_version(),
                records=tuple(records),
                metadata=dict(metadata),
                **json.loads(self.header),
            )
        )
        storage.put_if_absent(storage.join(self.url, MANIFEST), mine)
        standing = committed(self)
        if standing is None:
            raise NotFound(f"{self.url} lost its manifest while it was committed: run the same command again")
        return standing

    def _record_url(self, shard: str) -> str:
        return storage.join(self.url, RECORDS, f"{shard}.json")

    def _standing(self, shard: str) -> Record:
        url = self._record_url(shard)
        record = record_from(storage.read(url), url)
        if record.identity != self.identity:
            raise self._lost(record.identity)
        return record

    def _lost(self, other: str) -> LostRace:
        return LostRace(
            f"{self.reference} at {self.url} belongs to other inputs, recipe or stage versions ({other[:VERSION_DIGITS]}, "
            f"not {self.identity[:VERSION_DIGITS]}): choose another version, or none to have it named by its content"
        )


def _entry(stem: str, suffix: str, digest: str, size: int, rows: int | None, tokens: int | None) -> FileEntry:
    name = f"{stem}-{digest[:12]}{suffix}"
    if not is_inside(name):
        raise UsageError(f"{name!r} is no object name: use a relative path without ..")
    return FileEntry(name, digest, size, None if rows is None else int(rows), None if tokens is None else int(tokens))


def _code_version() -> str:
    """The installed release, never a commit: an upgrade re-makes nothing and a rebuild of the same release changes no byte."""
    try:
        return installed.version("triplane")
    except installed.PackageNotFoundError:
        return "unknown"


def begin(
    root: str,
    kind: str,
    name: str,
    *,
    inputs: Mapping[str, str],
    recipe: Mapping[str, Any],
    stage_versions: Mapping[str, int],
    parents: Iterable[str] = (),
    version: str | None = None,
    url: str | None = None,
) -> Draft:
    """Names an artifact from what makes it; writes nothing. `version` defaults to the first 12 digits of the identity.

    `url` puts the folder elsewhere than `{root}/{kind}/{name}@{version}` (a checkpoint lies inside its run). Raises UsageError.
    """
    header: dict[str, Any] = {
        "inputs": dict(inputs),
        "parents": list(parents),
        "recipe": dict(recipe),
        "stage_versions": dict(stage_versions),
    }
    identity = identity_of(kind, **header)
    version = version or identity[:VERSION_DIGITS]
    split_reference(f"{kind}/{name}@{version}")
    folder = url or storage.join(root, kind, f"{name}@{version}")
    return Draft(folder, kind, name, version, identity, json.dumps(header, sort_keys=True))


def committed(draft: Draft) -> Manifest | None:
    """The manifest if the artifact is there already. Raises LostRace if it was made of something else."""
    try:
        standing = load_url(draft.url)
    except NotFound:
        return None
    if standing.identity != draft.identity:
        raise draft._lost(standing.identity)
    return standing


def load(root: str, reference: str) -> Manifest:
    """The manifest of kind/name@version, or of the newest version of kind/name. Raises NotFound, Refused, Corrupt, UsageError."""
    return load_url(artifact_url(root, reference))


def load_url(url: str) -> Manifest:
    """The manifest in an artifact's folder. Raises NotFound, Refused (schema version), Corrupt."""
    manifest_url = storage.join(url, MANIFEST)
    try:
        return manifest_from(storage.read(manifest_url), manifest_url)
    except NotFound as error:
        raise NotFound(f"{url} holds no committed artifact: check the name, or run the step that makes it") from error


def read(url: str, entry: FileEntry) -> bytes:
    """The bytes of one file below a folder URL, checked against what is said of it. Raises NotFound, Corrupt."""
    where = storage.join(url, entry.name)
    data = storage.read(where)
    digest = sha256(data).hexdigest()
    if (len(data), digest) != (entry.bytes, entry.sha256):
        raise Corrupt(
            f"{where} holds {len(data)} bytes with sha256 {digest}, expected {entry.bytes} with {entry.sha256}: restore it from a "
            f"copy, or make it again"
        )
    return data


def describe(url: str, name: str) -> FileEntry:
    """What `read` needs of a file below a folder URL that no manifest describes; read once, in pieces. Raises NotFound."""
    digest, length = sha256(), 0
    with storage.open_stream(storage.join(url, name)) as stream:
        while piece := stream.read(READ_BYTES):
            digest.update(piece)
            length += len(piece)
    return FileEntry(name, digest.hexdigest(), length)


def artifact_url(root: str, reference: str) -> str:
    """The folder of a reference; without a version, of the newest committed one. Raises NotFound, UsageError."""
    kind, name, version = split_reference(reference)
    if version is None:
        found = references(root, kind, name)
        if not found:
            raise NotFound(f"no committed {kind}/{name} at {root}{_near(root, kind, name)}: run the step that makes it")
        reference = found[0]
    return storage.join(root, reference)


def _near(root: str, kind: str, name: str) -> str:
    names = sorted({folder.partition("@")[0] for folder in storage.folders(storage.join(root, kind))})
    close = difflib.get_close_matches(name, names, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def references(root: str, kind: str, name: str | None = None) -> list[str]:
    """Committed artifacts of a kind (and name), newest first by the time of their manifest, ties by name."""
    folders = [
        folder
        for folder in storage.folders(storage.join(root, kind))
        if "@" in folder and name in (None, folder.partition("@")[0])
    ]
    times = _at_once(lambda folder: _commit_time(storage.join(root, kind, folder)), folders)
    dated = sorted((-time, f"{kind}/{folder}") for folder, time in zip(folders, times, strict=True) if time is not None)
    return [reference for _, reference in dated]


def _commit_time(url: str) -> float | None:
    try:
        return storage.modified(storage.join(url, MANIFEST))
    except NotFound:
        return None


def _at_once(function: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """`function` of each, in order: small objects on a remote store cost a round trip each, so many go at once."""
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(CALLS_AT_ONCE, len(items))) as pool:
        return list(pool.map(function, items))
