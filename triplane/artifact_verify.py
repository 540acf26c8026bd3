"""Re-reads an artifact and compares every byte with its manifest.

A folder URL -> a list of problems in words, empty when all is well. Sizes and sha256 of every file; of token shards also rows, coverage and block
checksums (the format of `triplane.tokens`: headerless uint32, CSV of start,end,id,src,loc, xxh3-64 of each 16 KiB block).
"""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from hashlib import sha256

import xxhash

from triplane import storage
from triplane.artifact_format import (
    MANIFEST,
    RECORDS,
    FileEntry,
    Manifest,
    Record,
    identity_of,
    manifest_from,
    record_from,
)
from triplane.errors import Corrupt, NotFound, Refused

READ_BYTES = 1 << 20
BLOCK_BYTES = 16 << 10
TOKEN_BYTES = 4
ENDINGS = ("_mask.npy", "_mask.xxh3", ".npy", ".xxh3", ".csv.gz")


def verify(url: str) -> list[str]:
    """Problems of the artifact in a folder; [] is good. Raises Refused for an unknown schema version."""
    where = storage.join(url, MANIFEST)
    try:
        manifest = manifest_from(storage.read(where), where)
    except Refused:
        raise
    except (NotFound, Corrupt) as error:
        return [str(error)]
    problems = [problem for record in manifest.records for problem in _record_problems(url, manifest, record)]
    return [*_identity_problems(manifest), *problems]


def _identity_problems(manifest: Manifest) -> Iterator[str]:
    expected = identity_of(manifest.kind, manifest.inputs, manifest.parents, manifest.recipe, manifest.stage_versions)
    if manifest.identity != expected:
        yield f"{MANIFEST} has identity {manifest.identity}, but what it says it was made of gives {expected}: it was edited"


def _record_problems(url: str, manifest: Manifest, record: Record) -> Iterator[str]:
    yield from _standing_problems(url, manifest, record)
    blocks: dict[str, bytes] = {}
    for file in record.files:
        try:
            problems, blocks[file.name] = _file_problems(url, file)
        except NotFound:
            problems = [f"{file.name} is missing: make the artifact again"]
        yield from problems
    if manifest.kind == "tokens" and all(file.name in blocks for file in record.files):
        yield from _token_problems(url, record, blocks)


def _standing_problems(url: str, manifest: Manifest, record: Record) -> Iterator[str]:
    """A record object that says other than the manifest means that someone edited either."""
    where = storage.join(url, RECORDS, f"{record.shard}.json")
    try:
        standing = record_from(storage.read(where), where)
    except NotFound:
        return  # the manifest is enough to read the artifact: a copy may leave the records out
    except Corrupt as error:
        yield str(error)
        return
    if (standing.files, standing.counts, standing.identity) != (record.files, record.counts, manifest.identity):
        yield f"records/{record.shard}.json differs from the manifest: one of them was edited"


def _file_problems(url: str, file: FileEntry) -> tuple[list[str], bytes]:
    """Problems of one file, and the xxh3-64 of each of its blocks as its sidecar would hold them."""
    digest, length, blocks = sha256(), 0, bytearray()
    with storage.open_stream(storage.join(url, file.name)) as stream:
        while data := stream.read(READ_BYTES):
            digest.update(data)
            length += len(data)
            for start in range(0, len(data), BLOCK_BYTES):
                blocks += xxhash.xxh3_64_intdigest(data[start : start + BLOCK_BYTES]).to_bytes(8, "little")
    problems = []
    if length != file.bytes:
        problems.append(f"{file.name} holds {length} bytes, expected {file.bytes}")
    if digest.hexdigest() != file.sha256:
        problems.append(f"{file.name} has sha256 {digest.hexdigest()}, expected {file.sha256}")
    return problems, bytes(blocks)


def _token_problems(url: str, record: Record, blocks: dict[str, bytes]) -> Iterator[str]:
    plain = {_role(file.name): file for file in record.files}
    tokens = plain.get(".npy")
    if tokens is None:
        return
    count = tokens.bytes // TOKEN_BYTES
    if tokens.bytes % TOKEN_BYTES or tokens.tokens not in (None, count):
        yield f"{tokens.name} holds {tokens.bytes / TOKEN_BYTES:g} tokens, expected {tokens.tokens}"
    for array, sums in ((".npy", ".xxh3"), ("_mask.npy", "_mask.xxh3")):
        if array in plain and sums in plain:
            expected = storage.read(storage.join(url, plain[sums].name))
            yield from _block_problems(plain[array].name, blocks[plain[array].name], expected)
    if "_mask.npy" in plain and plain["_mask.npy"].bytes != count:
        yield f"{plain['_mask.npy'].name} masks {plain['_mask.npy'].bytes} tokens, expected {count}"
    if ".csv.gz" in plain:
        yield from _provenance_problems(url, plain[".csv.gz"], count)


def _role(name: str) -> str:
    """The part a file plays in a token shard, by the end of its name."""
    return next((ending for ending in ENDINGS if name.endswith(ending)), name)


def _block_problems(name: str, found: bytes, expected: bytes) -> Iterator[str]:
    if len(found) != len(expected):
        yield f"{name} has {len(found) // 8} blocks, its sidecar {len(expected) // 8}"
    for at in range(0, min(len(found), len(expected)), 8):
        if found[at : at + 8] != expected[at : at + 8]:
            yield f"{name} differs from its sidecar in block {at // 8} (16 KiB each)"
            return


def _provenance_problems(url: str, file: FileEntry, num_tokens: int) -> Iterator[str]:
    """Rows must be as many as declared, follow each other without a gap, and cover the tokens."""
    rows, end = 0, 0
    try:
        with storage.open_stream(storage.join(url, file.name)) as stream, gzip.GzipFile(fileobj=stream) as plain:
            for row in csv.reader(io.TextIOWrapper(plain, "utf-8", newline="")):
                if int(row[0]) != end or int(row[1]) < end:
                    yield f"{file.name} row {rows + 1} spans {row[0]}..{row[1]}, expected a start at {end}"
                    return
                rows, end = rows + 1, int(row[1])
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        yield f"{file.name} row {rows + 1} cannot be read ({error})"
        return
    if file.rows not in (None, rows):
        yield f"{file.name} holds {rows} rows, expected {file.rows}"
    if end != num_tokens:
        yield f"{file.name} covers {end} tokens, expected {num_tokens}"
