"""The checkpoint format and its only reader: named tensors in safetensors files beside a JSON index, through `triplane.storage`.

A set of tensors saved under a stem is `{stem}-00000-{sha12}.safetensors`, ... and `{stem}.index-{sha12}.json`, which gives, for every
tensor, dtype and shape and the chunks that cover it (`tensor_index`): which box, which bytes of which file, and the xxh3-128 of every block
of 4 MiB. One writer has whole tensors, several have a chunk each; any part of any tensor is a ranged read that is checked. Pickle
files are refused by name, before a byte of them is read. Source: safetensors' format description (u64 header length, JSON header, then
the bytes of the tensors without gaps).
"""

import dataclasses
import hashlib
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from safetensors.torch import save_file
from torch import Tensor

from triplane import artifact, hashing, storage
from triplane.artifact import Draft, FileEntry, Manifest
from triplane.errors import Corrupt, NotFound, Refused
from triplane.lm import layouts, model_source, tensor_index
from triplane.lm.model import ModelConfig, Olmo2
from triplane.lm.model_source import ModelSource
from triplane.lm.tensor_index import DTYPES, Chunk, TensorEntry

MAX_HEADER_BYTES = 100 << 20  # the limit of safetensors itself
SPAN_BYTES = 64 << 20  # held at once of one tensor that is read
READS_AT_ONCE = 8


@dataclasses.dataclass(frozen=True)
class _Stored:
    """One tensor of a safetensors file: bytes [start, start + length) of it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    length: int


def save_tensors(
    destination: Draft | str,
    stem: str,
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    max_file_bytes: int = 4 << 30,
) -> list[FileEntry]:
    """Write tensors into an artifact being made, or below a folder URL; what was written, the index last.

    An iterable of (name, tensor) is taken as it comes: at most `max_file_bytes` of it (or one tensor) are held, and the tensor that begins the
    next file. The bytes written depend on names and values alone.
    """
    return save_groups(destination, stem, _grouped(tensors, max_file_bytes))


def save_groups(destination: Draft | str, stem: str, groups: Iterable[dict[str, Tensor]]) -> list[FileEntry]:
    """`save_tensors` of groups, a file each. A group is emptied when it is on disk, before the next is asked for: one is held."""
    files: list[FileEntry] = []
    found: list[TensorEntry] = []
    with tempfile.TemporaryDirectory() as folder:
        for group in groups:
            path = Path(folder, "tensors.safetensors")
            save_file(group, path)
            group.clear()
            files.append(_put(destination, path, f"{stem}-{len(files):05d}", ".safetensors"))
            found += _entries_of(path, files[-1].name)
            path.unlink()
        path = Path(folder, "index.json")
        path.write_bytes(tensor_index.to_bytes(found))
        files.append(_put(destination, path, f"{stem}.index", ".json"))
    return files


def _grouped(
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], max_file_bytes: int
) -> Iterator[dict[str, Tensor]]:
    group: dict[str, Tensor] = {}
    for name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
        tensor = tensor.detach().cpu().contiguous()
        if group and sum(other.nbytes for other in group.values()) + tensor.nbytes > max_file_bytes:
            yield group
            group = {}
        group[name] = tensor
    if group:
        yield group


def _put(destination: Draft | str, path: Path, stem: str, suffix: str) -> FileEntry:
    if isinstance(destination, Draft):
        return destination.put_file(path, stem, suffix)
    sha256 = hashing.sha256_file(path)
    entry = FileEntry(name=f"{stem}-{sha256[:12]}{suffix}", sha256=sha256, bytes=path.stat().st_size)
    storage.put_file(storage.join(destination, entry.name), path)
    return entry


def _entries_of(path: Path, name: str) -> list[TensorEntry]:
    """The index entries of a file whose tensors are whole."""
    entries = []
    with path.open("rb") as stream:
        _, stored = _read_header(stream, name, path.stat().st_size)
        for one in stored:
            hashes: list[str] = []
            for at in range(0, one.length, tensor_index.BLOCK_BYTES):
                hashes += tensor_index.block_hashes(stream.read(min(tensor_index.BLOCK_BYTES, one.length - at)))
            chunk = Chunk((0,) * len(one.shape), one.shape, name, one.start, one.length, tuple(hashes))
            entries.append(TensorEntry(one.name, one.dtype, one.shape, tensor_index.BLOCK_BYTES, (chunk,)))
    return entries


def load_tensors(url: str, entries: Sequence[FileEntry], names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The tensors of these files below `url`, all of them or those named, by ranged reads, every block checked.

    Corrupt if a checksum, a length or the format does not hold; Refused on a pickle or an unknown format version; NotFound on a name.
    """
    found = read_index(url, entries)
    wanted = list(found) if names is None else list(names)
    if missing := sorted(set(wanted) - set(found)):
        raise NotFound(f"{url} has no tensors {missing}: choose among those of its index")
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        read = pool.map(lambda name: read_tensor(url, found[name]), wanted)
        return dict(zip(wanted, read, strict=True))


def refuse_pickle(name: str) -> None:
    """Refused unless the name is of a safetensors file: nothing else is opened, since loading a pickle runs code."""
    if not name.endswith(".safetensors"):
        raise Refused(f"{name} is not a safetensors file: it is not read; convert it where it is trusted")


def read_index(url: str, entries: Sequence[FileEntry]) -> dict[str, TensorEntry]:
    """The tensors by name, of every index among the files. Refused, before anything is read, if one of the files may be a pickle."""
    sizes = {entry.name: entry.bytes for entry in entries if not entry.name.endswith(".json")}
    for name in sizes:
        refuse_pickle(name)
    indexes = [entry for entry in entries if ".index-" in entry.name]
    if sizes and not indexes:
        raise Corrupt(f"{url} names weights and no index of them: restore it from a copy")
    found: dict[str, TensorEntry] = {}
    for entry in indexes:
        found.update(tensor_index.parse(artifact.read(url, entry), storage.join(url, entry.name), sizes))
    return found


def read_tensor(url: str, entry: TensorEntry) -> Tensor:
    """One tensor, put together from its chunks by ranged reads; Corrupt unless every block has the hash of the index."""
    tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    for chunk in entry.chunks:
        box = tensor[tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.shape, strict=True))]
        for first, rows in read_rows(url, entry, chunk, 0, chunk.shape[0] if chunk.shape else 1):
            (box[first : first + len(rows)] if rows.ndim else box).copy_(rows)
    return tensor


def read_rows(url: str, entry: TensorEntry, chunk: Chunk, first: int, count: int) -> Iterator[tuple[int, Tensor]]:
    """Rows [first, first + count) of a chunk, checked, in spans of `SPAN_BYTES`: (first row of the span, the rows).

    A scalar is one row without dimensions. Raises Corrupt, naming file, block, expected and found hash.
    """
    refuse_pickle(chunk.file)
    row_bytes = math.prod(chunk.shape[1:]) * DTYPES[entry.dtype].itemsize
    step = max(1, SPAN_BYTES // max(1, row_bytes))
    for row in range(first, first + count, step) if row_bytes else ():
        rows = min(step, first + count - row)
        data = _checked_bytes(url, entry, chunk, row * row_bytes, (row + rows) * row_bytes)
        shape = (rows, *chunk.shape[1:]) if chunk.shape else ()
        yield row, torch.frombuffer(data, dtype=DTYPES[entry.dtype]).reshape(shape)


def _checked_bytes(url: str, entry: TensorEntry, chunk: Chunk, begin: int, end: int) -> bytearray:
    """Bytes [begin, end) of a chunk: the blocks that hold them are read and checked whole."""
    size = entry.block_bytes
    first, stop = begin // size, -(-end // size)
    start, length = first * size, min(stop * size, chunk.length) - first * size
    where = storage.join(url, chunk.file)
    data = memoryview(storage.read_range(where, chunk.start + start, length))
    for number in range(first, stop):
        at = (number - first) * size
        found = xxhash.xxh3_128_hexdigest(data[at : at + size])
        if found != chunk.blocks[number]:
            raise Corrupt(
                f"{where}: block {number} (of {size} bytes, the first at {chunk.start}) of {entry.name} hashes to {found}, "
                f"expected {chunk.blocks[number]}: restore the file from a copy"
            )
    return bytearray(data[begin - start : end - start])


def read_file(url: str, sha256: str | None = None) -> tuple[str, dict[str, Tensor]]:
    """(sha256, tensors) of a whole safetensors file, read once, in order; Corrupt unless it has the sha256 given."""
    refuse_pickle(url)
    digest = hashlib.sha256()
    tensors = {}
    with storage.open_stream(url) as stream:
        header, rows = _read_header(stream, url, storage.size(url))
        digest.update(header)
        for row in rows:
            data = stream.read(row.length)
            digest.update(data)
            tensors[row.name] = _tensor(data, row)
    found = digest.hexdigest()
    if sha256 not in (None, found):
        raise Corrupt(f"{url} has sha256 {found}, expected {sha256}: restore the file from a copy")
    return found, tensors


def _read_header(stream: BinaryIO, name: str, size: int) -> tuple[bytes, list[_Stored]]:
    """(the header's bytes, the tensors in the order of their bytes); Corrupt unless they fill the file exactly."""
    prefix = stream.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
        raise Corrupt(f"{name} is not a safetensors file: it says its header has {length} bytes of {size}")
    header = stream.read(length)
    try:
        rows = _parsed_header(json.loads(header), 8 + length)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(
            f"{name} has an unreadable safetensors header: {error!r}; restore the file from a copy"
        ) from error
    position = 8 + length
    for row in rows:
        if row.start != position or row.length != math.prod(row.shape) * DTYPES[row.dtype].itemsize:
            raise Corrupt(f"{name}: the bytes of {row.name} do not fit its shape {row.shape} and place {row.start}")
        position += row.length
    if position != size:
        raise Corrupt(f"{name} has {size} bytes, its tensors end at {position}: it was cut or added to")
    return prefix + header, rows


def _parsed_header(header: dict[str, Any], data_start: int) -> list[_Stored]:
    rows = []
    for tensor, value in header.items():
        if tensor != "__metadata__":
            begin, end = value["data_offsets"]
            shape = tuple(int(dimension) for dimension in value["shape"])
            if value["dtype"] not in DTYPES or any(dimension < 0 for dimension in shape):
                raise ValueError(f"{tensor} has dtype {value['dtype']} and shape {shape}")
            rows.append(_Stored(tensor, value["dtype"], shape, data_start + begin, end - begin))
    return sorted(rows, key=lambda row: (row.start, row.length))


def _tensor(data: bytes, row: _Stored) -> Tensor:
    if not data:
        return torch.empty(row.shape, dtype=DTYPES[row.dtype])
    return torch.frombuffer(bytearray(data), dtype=DTYPES[row.dtype]).reshape(row.shape)


def load_model(url: str, device: str = "cpu", dtype: torch.dtype | None = None) -> tuple[Olmo2, dict[str, Any]]:
    """(model in eval mode, info) of our checkpoint, of a run (its last one) or of a Hugging Face folder, local or remote.

    info: `format` ("checkpoint" or "huggingface"), `identity` (64 hex digits that change with the weights), `model_config`, `url`, and
    for our checkpoints `reference` and the manifest's metadata (tokenizer, tokens_seen, step). NotFound, Corrupt, Refused as they apply.
    """
    source = model_source.find(url)
    if source.manifest is None:
        config, state, info = _read_huggingface(source)
    else:
        config, state, info = _read_checkpoint(source, source.manifest)
    model = build(config, state).to(device=device, dtype=dtype)
    return model.eval(), {**info, "model_config": config.to_dict(), "url": source.url}


def build(config: ModelConfig, state: Mapping[str, Tensor]) -> Olmo2:
    """A model holding these very tensors (not copied); Refused unless names and shapes are exactly those of the config."""
    with torch.device("meta"):
        model = Olmo2(config)
    expected = model.state_dict()
    layouts.refuse_other_names(set(state), set(expected))
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise Refused(f"{name} has shape {tuple(tensor.shape)}, the config wants {tuple(expected[name].shape)}")
    model.load_state_dict(dict(state), assign=True)
    return model


def _read_checkpoint(source: ModelSource, manifest: Manifest) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]:
    try:
        config = ModelConfig.from_dict(source.config)
    except (KeyError, ValueError, TypeError) as error:
        raise Refused(f"{source.url} has a model_config that this release does not read: {error!r}") from error
    info = {**manifest.metadata, "format": "checkpoint", "identity": source.identity(), "reference": manifest.reference}
    return config, load_tensors(source.url, source.files()), info


def _read_huggingface(source: ModelSource) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]:
    config = layouts.config_from_huggingface(source.config)
    state: dict[str, Tensor] = {}
    digests: dict[str, str] = {}
    for name in source.names:
        digests[name], tensors = read_file(storage.join(source.url, name))
        state.update(tensors)
    info = {"format": "huggingface", "identity": source.identity(digests)}
    return config, layouts.from_huggingface_names(state), info
