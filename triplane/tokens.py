"""Token shards, the contract between data and training: documents -> files on storage -> verified ranges of tokens.

A shard is a headerless little-endian uint32 `.npy`, each document followed by EOS, and beside it, names beginning alike:
`.csv.gz` rows start,end,id,src,loc (end exclusive, contiguous, covering the array; loc is the 1-based line of src),
`.xxh3` one uint64 per 16 KiB block, and optionally `_mask.npy` (one bool a token, True = train) with `_mask.xxh3`.

Source: dolma's tokenizer output, read unchanged by OLMo-core 3.0.0 `NumpyFSLDataset`. OLMo-core splits the `.csv.gz` by
line, not by CSV: an id that holds a line break is read back here, not there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from triplane import artifact, blocks, hashing, storage, tokens_provenance
from triplane.errors import Corrupt, LostRace, UsageError
from triplane.tokens_provenance import Provenance
from triplane.tokens_writer import (
    BLOCK_BYTES,
    CHECKSUMS_SUFFIX,
    MASK_CHECKSUMS_SUFFIX,
    MASK_SUFFIX,
    PROVENANCE_SUFFIX,
    TOKEN_BYTES,
    TOKENS_SUFFIX,
    ShardFiles,
    ShardWriter,
    block_digests,
)

__all__ = [
    "BLOCK_BYTES",
    "TOKEN_BYTES",
    "Provenance",
    "Reader",
    "Shard",
    "ShardFiles",
    "ShardWriter",
    "block_digests",
    "documents_in",
    "mask_file",
    "provenance",
    "shards",
    "token_file",
    "write_artifact_shard",
]


@dataclass(frozen=True)
class Shard:
    """One shard on storage, as URLs. `num_tokens` comes from the manifest: a file of another length is corrupt. None for the checksums: shards
    of others, read unverified."""

    url_tokens: str
    url_checksums: str | None
    num_tokens: int
    url_mask: str | None = None
    url_mask_checksums: str | None = None
    url_provenance: str | None = None


class Reader:
    """Verified random access to one shard; holds no open file, so a process may keep thousands. Many rows at a time: `triplane.token_rows`."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self._tokens, self._mask = token_file(shard), mask_file(shard)

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens [start, start + count), uint32 [count], writable.

        Every 16 KiB block touched is checked. Raises Corrupt (file, block, expected, found), NotFound, and UsageError
        for a range outside the shard.
        """
        self._check_range(start, count)
        return blocks.read(self._tokens, start * TOKEN_BYTES, count * TOKEN_BYTES).view("<u4")

    def read_mask(self, start: int, count: int) -> np.ndarray:
        """Label mask of tokens [start, start + count), bool [count], True = train; all True where the shard has none."""
        self._check_range(start, count)
        if self._mask is None:
            return np.ones(count, np.bool_)
        return blocks.read(self._mask, start, count).view(np.bool_)

    def _check_range(self, start: int, count: int) -> None:
        if start < 0 or count < 0 or start + count > self.shard.num_tokens:
            end, held = start + count, self.shard.num_tokens
            raise UsageError(f"{self.shard.url_tokens} holds {held} tokens; [{start}, {end}) is not within them")


def token_file(shard: Shard) -> blocks.BlockFile:
    """The tokens of a shard, for verified reads."""
    return blocks.BlockFile(shard.url_tokens, shard.num_tokens * TOKEN_BYTES, shard.url_checksums)


def mask_file(shard: Shard) -> blocks.BlockFile | None:
    """The label mask of a shard, for verified reads; None if it has none."""
    return (shard.url_mask and blocks.BlockFile(shard.url_mask, shard.num_tokens, shard.url_mask_checksums)) or None


def provenance(shard: Shard) -> Iterator[Provenance]:
    """The documents of a shard in order, streamed. Raises Corrupt unless they are contiguous and cover all tokens."""
    url = shard.url_provenance
    if url is None:
        raise UsageError(f"{shard.url_tokens} was opened without provenance; name its .csv.gz in the shard")
    yield from tokens_provenance.read(url, shard.num_tokens)


def documents_in(shard: Shard, start: int, count: int) -> list[Provenance]:
    """The documents that own tokens [start, start + count), in order."""
    found = []
    for entry in provenance(shard):
        if entry.start >= start + count:
            break
        if entry.end > start:
            found.append(entry)
    return found


def write_artifact_shard(
    draft: artifact.Draft, files: ShardFiles, shard: str, counts: Mapping[str, int | float | str | dict]
) -> artifact.Record:
    """Uploads a shard's files and records them. Returns the record that stands.

    All names begin with that of the token file, which carries the first 12 digits of its sha256. A shard without tokens
    is recorded with its counts and no file. Raises LostRace when an earlier attempt wrote other provenance or files.
    """
    entries = _upload(draft, files) if files.num_tokens else []
    record = draft.record(shard, entries, dict(counts))
    if list(record.files) != entries:
        raise LostRace(
            f"{draft.reference} shard {shard} is recorded with other files than this attempt made from the same inputs: "
            "a stage is not deterministic, or changed without raising its version"
        )
    return record


def _upload(draft: artifact.Draft, files: ShardFiles) -> list[artifact.FileEntry]:
    tokens = draft.put_file(files.tokens, files.tokens.stem, TOKENS_SUFFIX, tokens=files.num_tokens)
    base = tokens.name.removesuffix(TOKENS_SUFFIX)
    entries = [
        tokens,
        _put_provenance(draft, files, f"{base}{PROVENANCE_SUFFIX}"),
        draft.put_file(files.checksums, base, CHECKSUMS_SUFFIX),
    ]
    if files.mask and files.mask_checksums:
        entries.append(draft.put_file(files.mask, base, MASK_SUFFIX))
        entries.append(draft.put_file(files.mask_checksums, base, MASK_CHECKSUMS_SUFFIX))
    return entries


def _put_provenance(draft: artifact.Draft, files: ShardFiles, name: str) -> artifact.FileEntry:
    # The one sibling whose name cannot carry its own hash (OLMo-core derives it), so other bytes are never written over.
    url, data = storage.join(draft.url, name), files.provenance.read_bytes()
    if not storage.put_if_absent(url, data):
        if storage.read(url) != data:
            raise LostRace(
                f"{url} holds other documents for the same tokens; remove the unfinished artifact (triplane gc)"
            )
        # What a crashed attempt left is as old as that attempt: made young again, gc spares it until it is recorded.
        storage.put(url, data)
    digest = hashing.sha256_file(files.provenance)
    return artifact.FileEntry(name=name, sha256=digest, bytes=len(data), rows=files.num_documents)


def shards(root: str, manifest: artifact.Manifest) -> list[Shard]:
    """The shards of a committed tokens artifact, in shard order. Raises Corrupt for a record without checksums."""
    url = artifact.artifact_url(root, manifest.reference)
    return [_shard(url, record, entry) for record in manifest.records for entry in _token_files(record)]


def _token_files(record: artifact.Record) -> list[artifact.FileEntry]:
    return [
        entry for entry in record.files if entry.name.endswith(TOKENS_SUFFIX) and not entry.name.endswith(MASK_SUFFIX)
    ]


def _shard(url: str, record: artifact.Record, entry: artifact.FileEntry) -> Shard:
    base = entry.name.removesuffix(TOKENS_SUFFIX)
    names = [file.name for file in record.files if file.name.startswith(base) and file.name != entry.name]

    def sibling(suffix: str) -> str | None:
        return next((storage.join(url, name) for name in names if name.endswith(suffix)), None)

    checksums = next(
        (name for name in names if name.endswith(CHECKSUMS_SUFFIX) and not name.endswith(MASK_CHECKSUMS_SUFFIX)), None
    )
    if checksums is None or entry.bytes % TOKEN_BYTES:
        raise Corrupt(f"{storage.join(url, entry.name)} has no checksums or half a token; make the artifact again")
    return Shard(
        url_tokens=storage.join(url, entry.name),
        url_checksums=storage.join(url, checksums),
        num_tokens=entry.bytes // TOKEN_BYTES,
        url_mask=sibling(MASK_SUFFIX),
        url_mask_checksums=sibling(MASK_CHECKSUMS_SUFFIX),
        url_provenance=sibling(PROVENANCE_SUFFIX),
    )
