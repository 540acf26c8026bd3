"""Re-reads an artifact and compares every byte with its manifest.

A folder URL -> a list of problems in words, empty when all is well. Sizes and sha256 of every file; of token shards also rows, coverage and block
checksums (the format of `triplane.tokens`); of a run also its checkpoints, which are artifacts inside it.
"""

from collections.abc import Iterator
from hashlib import sha256

import numpy as np

from triplane import storage, tokens_provenance
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
from triplane.tokens_writer import (
    BLOCK_BYTES,
    CHECKSUMS_SUFFIX,
    MASK_CHECKSUMS_SUFFIX,
    MASK_SUFFIX,
    PROVENANCE_SUFFIX,
    TOKEN_BYTES,
    TOKENS_SUFFIX,
    block_digests,
)

READ_BYTES = 64 * BLOCK_BYTES
# The longer endings first: each name has one role.
ENDINGS = (MASK_SUFFIX, MASK_CHECKSUMS_SUFFIX, TOKENS_SUFFIX, CHECKSUMS_SUFFIX, PROVENANCE_SUFFIX)
CHECKPOINTS = "checkpoints"


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
    nested = _checkpoint_problems(url, manifest) if manifest.kind == "run" else []
    return [*_identity_problems(manifest), *problems, *nested]


def _checkpoint_problems(url: str, run: Manifest) -> list[str]:
    """Problems of every committed checkpoint of a run, and of the one its manifest names."""
    below = [f"{CHECKPOINTS}/{folder}" for folder in storage.folders(storage.join(url, CHECKPOINTS))]
    committed = {name for name in below if storage.exists(storage.join(url, name, MANIFEST))}
    named = {str(run.metadata["checkpoint"])} if run.metadata.get("checkpoint") else set()
    return [f"{name}: {problem}" for name in sorted(committed | named) for problem in verify(storage.join(url, name))]


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
            blocks += block_digests(np.frombuffer(data, np.uint8)).tobytes()
    problems = []
    if length != file.bytes:
        problems.append(f"{file.name} holds {length} bytes, expected {file.bytes}")
    if digest.hexdigest() != file.sha256:
        problems.append(f"{file.name} has sha256 {digest.hexdigest()}, expected {file.sha256}")
    return problems, bytes(blocks)


def _token_problems(url: str, record: Record, blocks: dict[str, bytes]) -> Iterator[str]:
    plain = {_role(file.name): file for file in record.files}
    tokens = plain.get(TOKENS_SUFFIX)
    if tokens is None:
        return
    count = tokens.bytes // TOKEN_BYTES
    if tokens.bytes % TOKEN_BYTES or tokens.tokens not in (None, count):
        yield f"{tokens.name} holds {tokens.bytes / TOKEN_BYTES:g} tokens, expected {tokens.tokens}"
    for array, sums in ((TOKENS_SUFFIX, CHECKSUMS_SUFFIX), (MASK_SUFFIX, MASK_CHECKSUMS_SUFFIX)):
        if array in plain and sums in plain:
            expected = storage.read(storage.join(url, plain[sums].name))
            yield from _block_problems(plain[array].name, blocks[plain[array].name], expected)
    if MASK_SUFFIX in plain and plain[MASK_SUFFIX].bytes != count:
        yield f"{plain[MASK_SUFFIX].name} masks {plain[MASK_SUFFIX].bytes} tokens, expected {count}"
    if PROVENANCE_SUFFIX in plain:
        yield from _provenance_problems(url, plain[PROVENANCE_SUFFIX], count)


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
    """What `tokens_provenance.read` refuses, and rows other than declared."""
    rows = 0
    try:
        for _ in tokens_provenance.read(storage.join(url, file.name), num_tokens):
            rows += 1
    except Corrupt as error:
        yield str(error)
        return
    if file.rows not in (None, rows):
        yield f"{file.name} holds {rows} rows, expected {file.rows}"
