"""OLMo-core's checkpoints: `config.json` beside `model_and_optim/`, which torch.distributed.checkpoint wrote -> our model, and back.

Both its metadata and every tensor in its files are pickles. They are read as data (`pickled`): nothing is imported or called, so a file can say
nothing but what a tensor is and where its bytes lie. Optimizer state is left where it is. Sources: OLMo-core 3.0.0 `train/checkpoint.py`,
`nn/transformer/config.py`; torch 2.13 `distributed/checkpoint/filesystem.py`, `serialization.py`.
"""

import io
import json
import math
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as torch_checkpoint

from triplane import storage
from triplane.artifact_format import is_inside
from triplane.errors import Corrupt, Refused
from triplane.lm import layouts, model_source, weights
from triplane.lm.model import ModelConfig, Olmo2
from triplane.lm.pickled import PERSISTENT, Made, Name, read

TENSORS, METADATA, MARKER, CONFIG = "model_and_optim", ".metadata", ".metadata.json", "config.json"
VERSION = "3.0.0"
MAX_METADATA_BYTES = 1 << 30
PREFIX = "model."
_DCP = "torch.distributed.checkpoint"
_IN_METADATA = frozenset(
    [
        *(f"{_DCP}.metadata {name}" for name in ("Metadata", "TensorStorageMetadata", "BytesStorageMetadata",
          "ChunkStorageMetadata", "TensorProperties", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")),
        f"{_DCP}.filesystem _StorageInfo", "olmo_core.distributed.checkpoint.filesystem _StorageInfo",
        "torch Size", "torch.serialization _get_layout", "pathlib PosixPath", "pathlib._local PosixPath",
        *(f"torch {name}" for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")),
    ]
)  # fmt: skip
_STORAGES = {
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
}
_REBUILD = "torch._utils _rebuild_tensor_v2"
_IN_TENSOR = frozenset([_REBUILD, "collections OrderedDict", *_STORAGES])


def is_olmo_core(url: str) -> bool:
    """Is this the folder of one step, as OLMo-core leaves it?"""
    return storage.exists(storage.join(url, TENSORS, METADATA))


def from_olmo_core(url: str) -> Olmo2:
    """The model of a step's folder, local or remote, in its stored dtype. Raises NotFound, Corrupt, and Refused for another architecture
    or for a pickle that holds anything but tensors."""
    state = {name.removeprefix(PREFIX): tensor for name, tensor in tensors(url).items()}
    config = config_of(model_source.read_json(storage.join(url, CONFIG)), state)
    return weights.build(config, layouts.from_olmo_core_names(state)).eval()


def tensors(url: str) -> dict[str, Tensor]:
    """The model's tensors under OLMo-core's names, `model.` before each."""
    where = storage.join(url, TENSORS, METADATA)
    if storage.size(where) > MAX_METADATA_BYTES:
        raise Refused(f"{where} has more than {MAX_METADATA_BYTES} bytes: it is not read")
    try:
        described = read(storage.read(where), _IN_METADATA, where).state
        places = {
            (index.state["fqn"], _size(index.state["offset"])): info.state
            for index, info in described["storage_data"].items()
            if index.state["fqn"].startswith(PREFIX)
        }
        entries = described["state_dict_metadata"].items()
        return {name: _tensor(url, name, entry, places) for name, entry in entries if name.startswith(PREFIX)}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise Corrupt(f"{where} does not describe a checkpoint ({error!r}): restore it from a copy") from error


def _size(made: Made | None) -> tuple[int, ...]:
    """torch.Size((a, b)) -> (a, b)."""
    sizes = tuple(made.arguments[0]) if made is not None else ()
    if any(type(size) is not int or size < 0 for size in sizes):
        raise ValueError(f"{sizes} is no size")
    return sizes


def _tensor(url: str, name: str, entry: Made, places: dict[Any, dict[str, Any]]) -> Tensor:
    """One tensor, put together from its chunks."""
    dtype = getattr(torch, entry.state["properties"].state[0].text.removeprefix("torch "))
    shape = _size(entry.state["size"])
    whole, filled = torch.empty(shape, dtype=dtype), 0
    for chunk in entry.state["chunks"]:
        offsets, sizes = _size(chunk.state["offsets"]), _size(chunk.state["sizes"])
        if len(offsets) != len(shape) or any(o + n > full for o, n, full in zip(offsets, sizes, shape, strict=True)):
            raise ValueError(f"{name} of shape {shape} has a chunk of {sizes} at {offsets}")
        part = _chunk(url, places[name, offsets])
        if part.shape != sizes or part.dtype != dtype:
            raise ValueError(f"{name} has a chunk of {tuple(part.shape)} {part.dtype}, not {sizes} {dtype}")
        whole[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))] = part
        filled += math.prod(sizes)
    if filled != math.prod(shape):
        raise ValueError(f"{name} has {filled} of {math.prod(shape)} elements")
    return whole


def _chunk(url: str, place: dict[str, Any]) -> Tensor:
    """The tensor in a part of a file: an archive of `torch.save`, whose pickle says shape and strides and whose other entry has the bytes."""
    file, start, length = place["relative_path"], place["offset"], place["length"]
    if not (isinstance(file, str) and is_inside(file) and file.endswith(".distcp")):
        raise Refused(f"{url} has a tensor in {file!r}, which is none of its files: it is not read")
    where = storage.join(url, TENSORS, file)
    try:
        archive = zipfile.ZipFile(io.BytesIO(storage.read_range(where, start, length)))
    except zipfile.BadZipFile as error:
        raise Corrupt(f"{where} has no tensor at {start}: restore it from a copy") from error
    entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
        raise Refused(f"{where} has compressed tensors, which OLMo-core does not write: it is not read")
    made = read(archive.read(entries["data.pkl"]), _IN_TENSOR, where)
    if not (isinstance(made, Made) and made.what == Name(_REBUILD) and made.arguments[0].what == Name(PERSISTENT)):
        raise Refused(f"{where} has something at {start} that is no tensor: it is not read")
    (storage_id, first, shape, strides), (_, kind, key, *_) = made.arguments[:4], made.arguments[0].arguments
    del storage_id
    values = torch.frombuffer(bytearray(archive.read(entries[f"data/{key}"])), dtype=_STORAGES[kind.text])
    last = first + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if min((first, *shape, *strides)) < 0 or last >= len(values):
        raise ValueError(f"{shape} with strides {strides} from {first} on is outside {len(values)} elements")
    return values.as_strided(shape, strides, first)


def config_of(values: dict[str, Any], state: dict[str, Tensor]) -> ModelConfig:
    """The config of an OLMo-core `config.json`. Raises Refused, naming the field, if it describes anything but a plain OLMo 2 model."""
    model, tokenizer = values["model"], values.get("dataset", {}).get("tokenizer", {})
    block = model["block"]
    attention, feed_forward, norm = (
        block.get("attention") or block["sequence_mixer"],
        block["feed_forward"],
        block["layer_norm"],
    )
    rope, qk_norm = attention.get("rope") or {}, attention.get("qk_norm") or {}
    required = {
        "block.name": (block.get("name"), ("reordered_norm",)),
        "block.layer_norm.name": (norm.get("name"), ("rms", "fused_rms")),
        "attention.qk_norm.eps": (qk_norm.get("eps"), (norm.get("eps"),)),
        "attention.use_head_qk_norm": (attention.get("use_head_qk_norm"), (None, False)),
        "attention.sliding_window": (attention.get("sliding_window"), (None,)),
        "attention.rope.scaling": (rope.get("scaling"), (None,)),
        "attention.rope.partial_rotary_factor": (rope.get("partial_rotary_factor"), (None, 1.0)),
        "feed_forward.activation": (feed_forward.get("activation"), (None, "silu")),
        "block_overrides": (model.get("block_overrides") or None, (None,)),
        "tie_word_embeddings": (model.get("tie_word_embeddings"), (None, False)),
    }
    for name, (found, right) in required.items():
        if found not in right:
            raise Refused(f"{CONFIG} has model.{name} {found!r}: OLMo 2 is read with {right[0]!r} only")
    sequence = values.get("dataset", {}).get("sequence_length") or values.get("train_module", {}).get(
        "max_sequence_length"
    )
    fields = {
        "vocab_size": len(state["embeddings.weight"]),
        "hidden_size": model["d_model"],
        "intermediate_size": feed_forward["hidden_size"],
        "num_hidden_layers": model["n_layers"],
        "num_attention_heads": attention["n_heads"],
        "num_key_value_heads": attention.get("n_kv_heads") or attention["n_heads"],
        "max_position_embeddings": sequence or 4096,
        "rope_theta": float(rope["theta"]),
        "rms_norm_eps": norm["eps"],
        "initializer_range": model.get("init_std", 0.02),
        "eos_token_id": tokenizer.get("eos_token_id", 100257),
        "pad_token_id": tokenizer.get("pad_token_id", 100277),
    }
    try:
        return ModelConfig.from_dict(fields)
    except (ValueError, TypeError) as error:
        raise Refused(f"{CONFIG} does not describe an OLMo 2 model: {error}") from error


def to_olmo_core(model: Olmo2, folder: str | Path) -> None:
    """Writes a local folder that OLMo-core's `load_model_and_optim_state` reads (weights alone: start with a fresh optimizer).

    `config.json` has what `TransformerConfig.from_dict` reads, under "model", and the tokenizer's ids.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = layouts.to_olmo_core_names({name: tensor.detach().cpu() for name, tensor in model.state_dict().items()})
    with warnings.catch_warnings():  # that there is one process is what is meant
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        torch_checkpoint.save({"model": state}, checkpoint_id=folder / TENSORS, no_dist=True)
    (folder / CONFIG).write_text(json.dumps(_config(model.config), indent=2, sort_keys=True) + "\n")
    (folder / MARKER).write_text(json.dumps({"version": VERSION}) + "\n")  # last: OLMo-core takes it for the commit


def _config(config: ModelConfig) -> dict[str, Any]:
    norm = {"name": "rms", "eps": config.rms_norm_eps, "bias": False}
    attention = {
        "type": "attention",
        "name": "default",
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "bias": False,
        "rope": {"name": "default", "theta": int(config.rope_theta)},
        "qk_norm": norm,
    }
    block = {
        "name": "reordered_norm",
        "sequence_mixer": attention,
        "layer_norm": norm,
        "feed_forward": {"hidden_size": config.intermediate_size, "bias": False},
    }
    model = {
        "d_model": config.hidden_size,
        "vocab_size": config.vocab_size,
        "n_layers": config.num_hidden_layers,
        "block": block,
        "lm_head": {"name": "default", "layer_norm": norm, "bias": False},
        "init_std": config.initializer_range,
    }
    ids = {"eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id, "vocab_size": config.vocab_size}
    return {"model": model, "dataset": {"tokenizer": ids, "sequence_length": config.max_position_embeddings}}
