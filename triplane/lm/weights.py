"""The checkpoint format and its only reader: named tensors in safetensors files beside a JSON index, through `triplane.storage`.

A set of tensors saved under a stem is `{stem}-00000-{sha12}.safetensors`, ... and `{stem}.index-{sha12}.json`, which gives, for every
tensor, dtype, shape, file, byte range and the xxh3-128 of its bytes. So a whole file is checked by its sha256, one tensor read by range
is checked by its own hash. Pickle files are refused by name, before a byte of them is read. Source: safetensors' format description
(u64 header length, JSON header, then the bytes of the tensors without gaps).
"""

import dataclasses
import hashlib
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from safetensors.torch import save_file
from torch import Tensor

from triplane import artifact, hashing, storage
from triplane.artifact import Draft, FileEntry, Manifest
from triplane.errors import Corrupt, NotFound, Refused
from triplane.lm import layouts, model_source
from triplane.lm.model import ModelConfig, Olmo2
from triplane.lm.model_source import ModelSource

FORMAT_VERSION = 1
MAX_HEADER_BYTES = 100 << 20  # the limit of safetensors itself
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


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: bytes [start, start + length) of `file`, hashed."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    length: int
    xxh3_128: str = ""


def save_tensors(
    destination: Draft | str,
    stem: str,
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    max_file_bytes: int = 4 << 30,
) -> list[FileEntry]:
    """Write tensors into an artifact being made, or below a folder URL; what was written, the index last.

    An iterable of (name, tensor) is taken as it comes, and at most `max_file_bytes` of it (or one tensor) are held. The bytes written
    depend on names and values alone.
    """
    files: list[FileEntry] = []
    rows: list[TensorEntry] = []
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    with tempfile.TemporaryDirectory() as folder:
        for number, group in enumerate(_grouped(pairs, max_file_bytes)):
            path = Path(folder, "tensors.safetensors")
            save_file(group, path)
            files.append(_put(destination, path, f"{stem}-{number:05d}", ".safetensors"))
            rows += _rows_with_hashes(path, files[-1].name)
            path.unlink()
        index = {"format_version": FORMAT_VERSION, "tensors": [dataclasses.asdict(row) for row in rows]}
        path = Path(folder, "index.json")
        path.write_text(json.dumps(index, sort_keys=True, separators=(",", ":")))
        files.append(_put(destination, path, f"{stem}.index", ".json"))
    return files


def _grouped(pairs: Iterable[tuple[str, Tensor]], max_file_bytes: int) -> Iterator[dict[str, Tensor]]:
    group: dict[str, Tensor] = {}
    for name, tensor in pairs:
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


def _rows_with_hashes(path: Path, name: str) -> list[TensorEntry]:
    rows = []
    with path.open("rb") as stream:
        _, entries = _read_header(stream, name, path.stat().st_size)
        for row in entries:
            rows.append(dataclasses.replace(row, xxh3_128=xxhash.xxh3_128_hexdigest(stream.read(row.length))))
    return rows


def load_tensors(url: str, entries: Sequence[FileEntry], names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The tensors of these files below `url` (all of them, or those named): whole files by sha256, named ones by range and hash.

    Corrupt if a checksum, a length or the format does not hold; Refused on a pickle or an unknown format version; NotFound on a name.
    """
    if names is None:
        tensors: dict[str, Tensor] = {}
        for entry in _data_files(entries):
            _, found = read_file(storage.join(url, entry.name), entry.sha256)
            tensors.update(found)
        return tensors
    rows = read_index(url, entries)
    if missing := sorted(set(names := list(names)) - set(rows)):
        raise NotFound(f"{url} has no tensors {missing}: choose among those of its index")
    return {name: read_tensor(url, rows[name]) for name in names}


def _data_files(entries: Sequence[FileEntry]) -> list[FileEntry]:
    data = [entry for entry in entries if not entry.name.endswith(".json")]
    for entry in data:
        refuse_pickle(entry.name)
    return data


def refuse_pickle(name: str) -> None:
    """Refused unless the name is of a safetensors file: nothing else is opened, since loading a pickle runs code."""
    if not name.endswith(".safetensors"):
        raise Refused(f"{name} is not a safetensors file: it is not read; convert it where it is trusted")


def read_index(url: str, entries: Sequence[FileEntry]) -> dict[str, TensorEntry]:
    """The index rows by tensor name, of every index among the files."""
    _data_files(entries)
    rows: dict[str, TensorEntry] = {}
    for entry in entries:
        if ".index-" in entry.name:
            rows.update({row.name: row for row in _parsed_index(artifact.read(url, entry), entry.name)})
    return rows


def _parsed_index(text: bytes, name: str) -> list[TensorEntry]:
    index = json.loads(text)
    if index.get("format_version") != FORMAT_VERSION:
        raise Refused(f"{name} has format_version {index.get('format_version')}: this release reads {FORMAT_VERSION}")
    return [TensorEntry(**{**row, "shape": tuple(row["shape"])}) for row in index["tensors"]]


def read_tensor(url: str, row: TensorEntry) -> Tensor:
    """One tensor by a ranged read; Corrupt unless its bytes have the hash of the index."""
    refuse_pickle(row.file)
    data = storage.read_range(storage.join(url, row.file), row.start, row.length)
    if (found := xxhash.xxh3_128_hexdigest(data)) != row.xxh3_128:
        raise Corrupt(
            f"{storage.join(url, row.file)}: {row.name} hashes to {found}, expected {row.xxh3_128}: restore the file"
        )
    return _tensor(data, row)


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


def _read_header(stream: BinaryIO, name: str, size: int) -> tuple[bytes, list[TensorEntry]]:
    """(the header's bytes, the tensors in the order of their bytes); Corrupt unless they fill the file exactly."""
    prefix = stream.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
        raise Corrupt(f"{name} is not a safetensors file: it says its header has {length} bytes of {size}")
    header = stream.read(length)
    try:
        rows = _parsed_header(json.loads(header), name, 8 + length)
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


def _parsed_header(header: dict[str, Any], name: str, data_start: int) -> list[TensorEntry]:
    rows = []
    for tensor, value in header.items():
        if tensor != "__metadata__":
            begin, end = value["data_offsets"]
            shape = tuple(int(dimension) for dimension in value["shape"])
            if value["dtype"] not in DTYPES or any(dimension < 0 for dimension in shape):
                raise ValueError(f"{tensor} has dtype {value['dtype']} and shape {shape}")
            rows.append(TensorEntry(tensor, value["dtype"], shape, name, data_start + begin, end - begin))
    return sorted(rows, key=lambda row: (row.start, row.length))


def _tensor(data: bytes, row: TensorEntry) -> Tensor:
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
