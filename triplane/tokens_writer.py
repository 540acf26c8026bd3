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

from triplane.block_writer import BLOCK_BYTES, BlockWriter, block_digests
from triplane.errors import UsageError

__all__ = [
    "BLOCK_BYTES",
    "CHECKSUMS_SUFFIX",
    "MASK_CHECKSUMS_SUFFIX",
    "MASK_SUFFIX",
    "PROVENANCE_SUFFIX",
    "TOKENS_SUFFIX",
    "TOKEN_BYTES",
    "ShardFiles",
    "ShardWriter",
    "block_digests",
]

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
        self._tokens = BlockWriter(self._open, self._paths[TOKENS_SUFFIX], self._paths[CHECKSUMS_SUFFIX], "<u4")
        self._mask = BlockWriter(self._open, *self._mask_paths, "|u1") if self._mask_paths else None
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
        if offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 0).any():
            raise UsageError(
                f"{self._where}: offsets must rise from 0 to {len(ids)}, not {offsets[0]} to {offsets[-1]}"
            )
        self.add_pieces(ids, offsets[:-1], offsets[1:], ids_str, src, loc, mask)

    def add_pieces(
        self,
        ids: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        ids_str: Sequence[str],
        src: Sequence[str],
        loc: Sequence[int],
        mask: np.ndarray | None = None,
    ) -> None:
        """As `add`, for documents that lie anywhere in `ids`: document d is ids[starts[d] : ends[d]]. starts, ends: int64 [docs]."""
        starts, ends = np.asarray(starts), np.asarray(ends)
        self._check(ids, starts, ends, (ids_str, src, loc), mask)
        self._tokens.write(ids, starts, ends, np.array([self._eos_id]))
        if self._mask is not None and mask is not None:
            self._mask.write(np.asarray(mask, np.bool_).view(np.uint8), starts, ends, np.array([True]))
        stops = (self._num_tokens + np.cumsum(ends - starts + 1)).tolist()
        self._rows.writerows(zip([self._num_tokens, *stops[:-1]], stops, ids_str, src, loc, strict=False))
        self._num_tokens = stops[-1] if stops else self._num_tokens
        self._num_documents += len(starts)

    @property
    def _where(self) -> str:
        return f"shard {self._paths[TOKENS_SUFFIX].name}"

    def _check(
        self,
        ids: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        columns: Sequence[Sequence],
        mask: np.ndarray | None,
    ) -> None:
        if any(len(column) != len(starts) for column in (ends, *columns)):
            raise UsageError(f"{self._where}: {len(starts)} documents need as many ids, sources and lines")
        if len(starts) and (starts.min() < 0 or ends.max() > len(ids) or (ends < starts).any()):
            raise UsageError(f"{self._where}: every document must lie within the {len(ids)} tokens given")
        if (mask is None) != (self._mask is None) or (mask is not None and len(mask) != len(ids)):
            raise UsageError(
                f"{self._where}: pass one mask value per token if and only if the shard was opened with a mask"
            )
        if self._num_tokens + int((ends - starts).sum()) + len(starts) > MAX_SHARD_TOKENS:
            raise UsageError(f"{self._where} would exceed {MAX_SHARD_TOKENS} tokens: write the source as more shards")

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
