"""The index of a set of tensors: which bytes of which file hold which box of which tensor, and the checksum of every block of them.

JSON <-> frozen dataclasses, checked strictly on the way in: types, sizes, file lengths, and that the boxes of a tensor cover it exactly
once. So nothing that is read later is out of bounds, and nothing is missing. Version 1 (one box a tensor, one hash over it) is read as a tensor
whose only block is the whole. Source: the metadata of torch.distributed.checkpoint, which is pickle there.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import xxhash
from pydantic import ConfigDict, TypeAdapter, ValidationError

from triplane.errors import Corrupt, Refused

FORMAT_VERSION = 2
BLOCK_BYTES = 4 << 20
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAME_OF_DTYPE = {dtype: name for name, dtype in DTYPES.items()}
_STRICT = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True)
class Chunk:
    """Box [offsets, offsets + shape) of a tensor, row-major, as bytes [start, start + length) of `file`; xxh3-128 of each block of them."""

    __pydantic_config__ = _STRICT
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    start: int
    length: int
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: its dtype and global shape, and the chunks that cover it."""

    __pydantic_config__ = _STRICT
    name: str
    dtype: str
    shape: tuple[int, ...]
    block_bytes: int
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class _Index:
    __pydantic_config__ = _STRICT
    format_version: int
    tensors: tuple[TensorEntry, ...]


@dataclass(frozen=True)
class _EntryV1:
    __pydantic_config__ = _STRICT
    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    length: int
    xxh3_128: str


@dataclass(frozen=True)
class _IndexV1:
    __pydantic_config__ = _STRICT
    format_version: int
    tensors: tuple[_EntryV1, ...]


_V1, _V2 = TypeAdapter(_IndexV1), TypeAdapter(_Index)


def block_hashes(data: bytes | bytearray | memoryview) -> tuple[str, ...]:
    """The xxh3-128 of each block of `BLOCK_BYTES`, the last one shorter; none for no bytes."""
    view = memoryview(data)
    return tuple(xxhash.xxh3_128_hexdigest(view[at : at + BLOCK_BYTES]) for at in range(0, len(view), BLOCK_BYTES))


def to_bytes(entries: Iterable[TensorEntry]) -> bytes:
    """Canonical JSON, tensors by name, chunks by place: the same whichever rank was first."""
    ordered = sorted((_ordered(entry) for entry in entries), key=lambda entry: entry.name)
    index = dataclasses.asdict(_Index(FORMAT_VERSION, tuple(ordered)))
    return json.dumps(index, sort_keys=True, separators=(",", ":")).encode()


def _ordered(entry: TensorEntry) -> TensorEntry:
    return dataclasses.replace(entry, chunks=tuple(sorted(entry.chunks, key=lambda chunk: chunk.offsets)))


def merged(parts: Iterable[Sequence[TensorEntry]]) -> list[TensorEntry]:
    """The entries of several writers, each with its own chunks, as one entry a tensor."""
    found: dict[str, TensorEntry] = {}
    for entry in (entry for part in parts for entry in part):
        before = found.get(entry.name)
        chunks = (*before.chunks, *entry.chunks) if before else entry.chunks
        found[entry.name] = dataclasses.replace(entry, chunks=chunks)
    return list(found.values())


def from_dict(value: Any) -> TensorEntry:
    """An entry that another rank of this run wrote down with `dataclasses.asdict`."""
    return _V2.validate_json(json.dumps({"format_version": FORMAT_VERSION, "tensors": [value]})).tensors[0]


def parse(text: bytes, where: str, sizes: Mapping[str, int]) -> dict[str, TensorEntry]:
    """Entries by name. `sizes`: bytes of the files that the manifest names. Raises Corrupt, and Refused for an unknown version."""
    try:
        version = json.loads(text)["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Corrupt(f"{where} is not an index of tensors: restore it from a copy") from error
    if version not in (1, FORMAT_VERSION):
        raise Refused(f"{where} has format_version {version!r}: this release reads 1 and {FORMAT_VERSION}")
    try:
        entries = _V2.validate_json(text).tensors if version == FORMAT_VERSION else _from_v1(text)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise Corrupt(f"{where} is not an index of tensors ({at}: {first['msg']}): restore it from a copy") from error
    for entry in entries:
        if problem := _problem(entry, sizes):
            raise Corrupt(f"{where}: {entry.name} {problem}; restore it from a copy")
    found = {entry.name: entry for entry in entries}
    if len(found) < len(entries):
        raise Corrupt(f"{where} names a tensor twice: restore it from a copy")
    return found


def _from_v1(text: bytes) -> tuple[TensorEntry, ...]:
    return tuple(
        TensorEntry(
            row.name,
            row.dtype,
            row.shape,
            max(1, row.length),
            (
                Chunk(
                    (0,) * len(row.shape),
                    row.shape,
                    row.file,
                    row.start,
                    row.length,
                    (row.xxh3_128,) if row.length else (),
                ),
            ),
        )
        for row in _V1.validate_json(text).tensors
    )


def _problem(entry: TensorEntry, sizes: Mapping[str, int]) -> str | None:
    """What is wrong with an entry, in words."""
    if entry.dtype not in DTYPES:
        return f"has the unknown dtype {entry.dtype}"
    if any(size < 0 for size in entry.shape) or entry.block_bytes < 1:
        return f"has shape {entry.shape} and blocks of {entry.block_bytes} bytes"
    for chunk in entry.chunks:
        if problem := _chunk_problem(entry, chunk, sizes):
            return problem
    covered = sum(math.prod(chunk.shape) for chunk in entry.chunks)
    if covered != math.prod(entry.shape) or _overlap(entry.chunks):
        return f"of shape {entry.shape} is not covered exactly once by its {len(entry.chunks)} chunks"
    return None


def _chunk_problem(entry: TensorEntry, chunk: Chunk, sizes: Mapping[str, int]) -> str | None:
    box = (chunk.offsets, chunk.shape)
    if not len(entry.shape) == len(chunk.offsets) == len(chunk.shape):
        return f"of shape {entry.shape} has a chunk {box} of other dimensions"
    if any(o < 0 or n < 0 or o + n > size for o, n, size in zip(*box, entry.shape, strict=True)):
        return f"of shape {entry.shape} has a chunk {box} outside it"
    if not chunk.file.endswith(".safetensors") or chunk.file not in sizes:
        return f"lies in {chunk.file!r}, which is no safetensors file of the manifest"
    if chunk.start < 0 or chunk.length != math.prod(chunk.shape) * DTYPES[entry.dtype].itemsize:
        return f"has {chunk.length} bytes at {chunk.start} for a chunk of shape {chunk.shape}"
    if chunk.start + chunk.length > sizes[chunk.file]:
        return f"ends at {chunk.start + chunk.length} of {chunk.file}, which has {sizes[chunk.file]} bytes"
    if len(chunk.blocks) != -(-chunk.length // entry.block_bytes):
        return f"has {len(chunk.blocks)} checksums for {chunk.length} bytes"
    return None


def _overlap(chunks: Sequence[Chunk]) -> bool:
    """Whether two boxes share an element. Sorted by their first rows, a box is compared only with those that begin before it ends."""
    filled = sorted((c for c in chunks if math.prod(c.shape)), key=lambda c: c.offsets[:1])
    for i, one in enumerate(filled):
        for other in filled[i + 1 :]:
            if one.offsets and other.offsets[0] >= one.offsets[0] + one.shape[0]:
                break
            if all(
                a < b + m and b < a + n
                for a, n, b, m in zip(one.offsets, one.shape, other.offsets, other.shape, strict=True)
            ):
                return True
    return False
