"""The writer of token shards: documents -> `.npy`, `.csv.gz`, `.xxh3` and masks on local disk, in bounded memory.

The format is described in `triplane/tokens.py`, which uploads and reads what this writes. Source: dolma's tokenizer output.
"""

import csv
import gzip
import io
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from xxhash import xxh3_64_intdigest

from triplane.errors import UsageError

BLOCK_BYTES = 16 * 1024
TOKEN_BYTES = 4
MAX_SHARD_TOKENS = 2**32 - 1  # OLMo-core's index files are uint32
GZIP_LEVEL = 6
TOKENS_SUFFIX, PROVENANCE_SUFFIX, CHECKSUMS_SUFFIX = ".npy", ".csv.gz", ".xxh3"
MASK_SUFFIX = "_mask.npy"
MASK_CHECKSUMS_SUFFIX = "_mask.xxh3"


@dataclass(frozen=True)
class ShardFiles:
    """One finished shard on local disk."""

    tokens: Path
    provenance: Path
    checksums: Path
    mask: Path | None
    mask_checksums: Path | None
    num_tokens: int
    num_documents: int


class ShardWriter:
    """Streams documents into one shard; memory is bounded by one call of `add`. Same documents, same bytes."""

    def __init__(self, folder: Path, stem: str, eos_id: int, with_mask: bool = False) -> None:
        self._eos_id = eos_id
        self._num_tokens = 0
        self._num_documents = 0
        suffixes = (TOKENS_SUFFIX, PROVENANCE_SUFFIX, CHECKSUMS_SUFFIX)
        self._paths = {suffix: folder / f"{stem}{suffix}" for suffix in suffixes}
        self._mask_paths = (
            (folder / f"{stem}{MASK_SUFFIX}", folder / f"{stem}{MASK_CHECKSUMS_SUFFIX}") if with_mask else None
        )
        self._open = ExitStack()
        self._tokens = _BlockFile(self._open, self._paths[TOKENS_SUFFIX], self._paths[CHECKSUMS_SUFFIX])
        self._mask = _BlockFile(self._open, *self._mask_paths) if self._mask_paths else None
        # Name and time stay out of the gzip header: equal documents give equal bytes.
        raw = self._open.enter_context(self._paths[PROVENANCE_SUFFIX].open("wb"))
        packed = self._open.enter_context(gzip.GzipFile("", "wb", GZIP_LEVEL, raw, mtime=0))
        text = self._open.enter_context(io.TextIOWrapper(packed, "utf-8", errors="surrogatepass", newline=""))
        self._rows = csv.writer(text)

    def add(
        self,
        ids: np.ndarray,
        offsets: np.ndarray,
        ids_str: Sequence[str],
        src: Sequence[str],
        loc: Sequence[int],
        mask: np.ndarray | None = None,
    ) -> None:
        """Appends documents, EOS after each.

        ids: uint32 [n]. offsets: int64 [docs + 1] from 0 to n. ids_str, src, loc: [docs]. mask: bool [n], required exactly
        when the shard has one; the EOS is trained on. Raises UsageError when the lengths disagree or the shard is full.
        """
        num_documents = len(offsets) - 1
        self._check(ids, offsets, (ids_str, src, loc), mask)
        ends = np.asarray(offsets[1:])
        self._tokens.write(np.insert(np.asarray(ids, "<u4"), ends, self._eos_id))
        if self._mask is not None and mask is not None:
            self._mask.write(np.insert(np.asarray(mask, np.bool_), ends, True))
        stops = (self._num_tokens + ends + np.arange(1, num_documents + 1)).tolist()
        starts = [self._num_tokens, *stops[:-1]]
        self._rows.writerows(zip(starts, stops, ids_str, src, loc, strict=False))
        self._num_tokens += len(ids) + num_documents
        self._num_documents += num_documents

    def _check(
        self, ids: np.ndarray, offsets: np.ndarray, columns: Sequence[Sequence], mask: np.ndarray | None
    ) -> None:
        where = f"shard {self._paths[TOKENS_SUFFIX].name}"
        num_documents = len(offsets) - 1
        if offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 0).any():
            raise UsageError(f"{where}: offsets must rise from 0 to {len(ids)}, not {offsets[0]} to {offsets[-1]}")
        if any(len(column) != num_documents for column in columns):
            raise UsageError(f"{where}: {num_documents} documents need as many ids, sources and lines")
        if (mask is None) != (self._mask is None) or (mask is not None and len(mask) != len(ids)):
            raise UsageError(f"{where}: pass one mask value per token if and only if the shard was opened with a mask")
        if self._num_tokens + len(ids) + num_documents > MAX_SHARD_TOKENS:
            raise UsageError(f"{where} would exceed {MAX_SHARD_TOKENS} tokens: write the source as more shards")

    def close(self) -> ShardFiles:
        """Finishes all files and says what they hold."""
        self._tokens.finish()
        if self._mask is not None:
            self._mask.finish()
        self._open.close()
        mask, mask_checksums = self._mask_paths or (None, None)
        return ShardFiles(
            tokens=self._paths[TOKENS_SUFFIX],
            provenance=self._paths[PROVENANCE_SUFFIX],
            checksums=self._paths[CHECKSUMS_SUFFIX],
            mask=mask,
            mask_checksums=mask_checksums,
            num_tokens=self._num_tokens,
            num_documents=self._num_documents,
        )

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()


class _BlockFile:
    """A file written in pieces of any size, with its sidecar of one checksum per block."""

    def __init__(self, stack: ExitStack, path: Path, sidecar: Path) -> None:
        self._file = stack.enter_context(path.open("wb"))
        self._sidecar = stack.enter_context(sidecar.open("wb"))
        self._pending = np.empty(0, np.uint8)

    def write(self, values: np.ndarray) -> None:
        data = np.ascontiguousarray(values).view(np.uint8)
        self._file.write(data.data)
        data = np.concatenate([self._pending, data])
        whole = len(data) // BLOCK_BYTES * BLOCK_BYTES
        self._sidecar.write(block_digests(data[:whole]).data)
        self._pending = data[whole:].copy()

    def finish(self) -> None:
        self._sidecar.write(block_digests(self._pending).data)
        self._pending = self._pending[:0]


def block_digests(data: np.ndarray) -> np.ndarray:
    """xxh3-64 of each 16 KiB block, the last one possibly shorter. data: uint8 [n]. Returns uint64 [ceil(n / 16384)]."""
    blocks = range(0, len(data), BLOCK_BYTES)
    view = data.data
    return np.fromiter((xxh3_64_intdigest(view[i : i + BLOCK_BYTES]) for i in blocks), "<u8", len(blocks))
