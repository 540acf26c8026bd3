"""The one copy of an asynchronous checkpoint: what this rank writes, as safetensors files in memory.

(tensors of the state, plain or DTensor) -> `Image`s, filled from the live tensors; uploading them needs no other copy and no lock on the
model. Which rank writes which box is decided by the planner of torch.distributed.checkpoint, once, as long as names, shapes and dtypes
stay: of replicas (HSDP, plain tensors) the lowest rank writes. Memory: one copy of what this rank writes, kept from save to save.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from trainplane import parallel
from trainplane.exchange import Exchange
from triplane.artifact import Draft, FileEntry
from triplane.errors import TriplaneError
from triplane.lm import tensor_index
from triplane.lm.tensor_index import DTYPES, NAME_OF_DTYPE, Chunk, TensorEntry

MAX_FILE_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class Piece:
    """Rows from `first` on of what `item` names, as a box of a tensor. `stem` is the set of tensors it belongs to."""

    stem: str
    name: str
    dtype: str
    tensor_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    item: WriteItem
    first: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclasses.dataclass(frozen=True)
class Image:
    """A safetensors file in memory: pieces, where each begins, and a view of each into the buffer."""

    stem: str
    pieces: tuple[Piece, ...]
    starts: tuple[int, ...]
    buffer: bytearray
    views: tuple[Tensor, ...]

    def put(self, target: Draft, number: int) -> tuple[FileEntry, list[TensorEntry]]:
        """Stores the file -> what the manifest and the index say of it."""
        data = cast(bytes, self.buffer)  # what stores take: not copied
        file = target.put_bytes(data, f"{self.stem}-r{parallel.rank():05d}-{number:05d}", ".safetensors")
        memory = memoryview(self.buffer)
        entries = []
        for piece, start in zip(self.pieces, self.starts, strict=True):
            blocks = tensor_index.block_hashes(memory[start : start + piece.bytes])
            chunk = Chunk(piece.offsets, piece.shape, file.name, start, piece.bytes, blocks)
            shape, block_bytes = piece.tensor_shape, tensor_index.BLOCK_BYTES
            entries.append(TensorEntry(piece.name, piece.dtype, shape, block_bytes, (chunk,)))
        return file, entries


class Staging:
    """Copies a state into images that are kept: the plan and the memory are made at the first copy and when the state changes its form."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._form: Any = None
        self._images: list[Image] = []

    @torch.no_grad()
    def copy(self, tensors: Mapping[str, Tensor]) -> list[Image]:
        """`tensors` by `{stem}/{name}`. Every rank calls this; the images are overwritten by the next call."""
        planner = DefaultSavePlanner(False, False, dedup_save_to_lowest_rank=True)
        planner.set_up_planner(dict(tensors), is_coordinator=parallel.rank() == 0)
        form = [(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()]
        if form != self._form:
            self._images = list(images(pieces(planned(planner, self._exchange))))
            self._form = form
        for image in self._images:
            for piece, view in zip(image.pieces, image.views, strict=True):
                source = cast(Tensor, planner.resolve_data(piece.item))
                rows = source[piece.first : piece.first + piece.shape[0]] if piece.shape else source
                view.copy_(rows)
        return self._images


def planned(planner: DefaultSavePlanner, exchange: Exchange) -> list[WriteItem]:
    """What this rank writes. Raises TriplaneError, on every rank, for a state that its shards do not cover."""
    local = planner.create_local_plan().items
    everyone = exchange.to_rank_0([_to_json(item) for item in local])
    answers: list[Any] = []
    if parallel.rank() == 0:
        try:
            plans, _ = planner.create_global_plan([SavePlan([_from_json(v) for v in values]) for values in everyone])
            answers = [[[i.index.fqn, list(i.index.offset or ())] for i in plan.items] for plan in plans]
        except ValueError as error:
            answers = [f"the state cannot be saved: {error}"] * len(everyone)
    answer = exchange.from_rank_0(answers)
    if isinstance(answer, str):
        raise TriplaneError(answer)
    mine = {(name, tuple(offsets)) for name, offsets in answer}
    return [item for item in local if (item.index.fqn, tuple(item.index.offset or ())) in mine]


def _to_json(item: WriteItem) -> list[Any]:
    data = item.tensor_data
    assert data is not None  # every value is a tensor
    chunk = data.chunk
    dtype = NAME_OF_DTYPE[data.properties.dtype]
    return [item.index.fqn, item.type.name, list(chunk.offsets), list(chunk.sizes), list(data.size), dtype]


def _from_json(value: list[Any]) -> WriteItem:
    name, kind, offsets, sizes, size, dtype = value
    chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
    data = TensorWriteData(chunk, TensorProperties(DTYPES[dtype]), torch.Size(size))
    return WriteItem(MetadataIndex(name, offsets), WriteItemType[kind], tensor_data=data)


def pieces(items: Iterable[WriteItem]) -> Iterator[Piece]:
    """The items as boxes, those larger than a file cut by rows; empty shards are left out."""
    for item in items:
        data = item.tensor_data
        assert data is not None
        stem, _, name = item.index.fqn.partition("/")
        dtype = NAME_OF_DTYPE[data.properties.dtype]
        size: tuple[int, ...] = tuple(data.size)
        offsets: tuple[int, ...] = tuple(data.chunk.offsets)
        shape: tuple[int, ...] = tuple(data.chunk.sizes)
        if 0 in shape and 0 not in size:
            continue
        num_rows = shape[0] if shape else 1
        row_bytes = DTYPES[dtype].itemsize * math.prod(shape[1:])
        step = max(1, MAX_FILE_BYTES // max(1, row_bytes))
        for first in range(0, num_rows, step) if num_rows else (0,):
            rows = min(step, num_rows - first)
            at = (offsets[0] + first, *offsets[1:]) if shape else ()
            box = (rows, *shape[1:]) if shape else ()
            yield Piece(stem, name, dtype, size, at, box, item, first)


def images(all_pieces: Iterable[Piece]) -> Iterator[Image]:
    """Files of at most `MAX_FILE_BYTES` (or one piece), each of one stem and with a name at most once."""
    group: list[Piece] = []
    for piece in all_pieces:
        full = sum(other.bytes for other in group) + piece.bytes > MAX_FILE_BYTES
        if group and (full or piece.stem != group[0].stem or piece.name in {other.name for other in group}):
            yield _image(group)
            group = []
        group.append(piece)
    if group:
        yield _image(group)


def _image(group: list[Piece]) -> Image:
    """Header and places: large items first, so that each view is aligned; the header is padded to 8 bytes."""
    ordered = sorted(group, key=lambda piece: (-DTYPES[piece.dtype].itemsize, piece.name))
    header: dict[str, Any] = {}
    begin = 0
    for piece in ordered:
        offsets = [begin, begin + piece.bytes]
        header[piece.name] = {"dtype": piece.dtype, "shape": piece.shape, "data_offsets": offsets}
        begin += piece.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    buffer = bytearray(8 + len(text) + begin)
    buffer[: 8 + len(text)] = len(text).to_bytes(8, "little") + text
    starts = tuple(8 + len(text) + header[piece.name]["data_offsets"][0] for piece in ordered)
    views = tuple(_view(buffer, piece, start) for piece, start in zip(ordered, starts, strict=True))
    return Image(group[0].stem, tuple(ordered), starts, buffer, views)


def _view(buffer: bytearray, piece: Piece, start: int) -> Tensor:
    dtype, count = DTYPES[piece.dtype], math.prod(piece.shape)
    if count == 0:
        return torch.empty(piece.shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=start).reshape(piece.shape)
