"""Hugging Face folders: our model -> `config.json`, `model.safetensors`, `generation_config.json`, `tokenizer.json`, and back.

`transformers.AutoModelForCausalLM.from_pretrained(folder)` gives equal logits. The mapping of names and fields, and OLMo-core's, is in
`layouts.py`.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from triplane.errors import UsageError
from triplane.lm.layouts import (
    config_from_huggingface,
    config_to_huggingface,
    from_olmo_core_names,
    to_huggingface_names,
    to_olmo_core_names,
)
from triplane.lm.model import Olmo2
from triplane.lm.weights import load_model

__all__ = [
    "config_from_huggingface",
    "from_huggingface",
    "from_olmo_core_names",
    "to_huggingface",
    "to_olmo_core_names",
]


def to_huggingface(model: Olmo2, folder: str | Path, tokenizer_json: bytes | None = None) -> None:
    """Write a local folder that `transformers` (and from_huggingface) reads; files of the same names are replaced.

    With `tokenizer_json`, `AutoTokenizer` works too. The weights keep their dtype, and `config.json` names it.
    """
    folder, config = Path(folder), model.config
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    dtype = str(model.lm_head.weight.dtype).removeprefix("torch.")
    save_file(to_huggingface_names(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    ids = {"bos_token_id": None, "eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
    if tokenizer_json is not None:
        (folder / "tokenizer.json").write_bytes(tokenizer_json)
        _write_json(folder / "tokenizer_config.json", _tokenizer_config(model, json.loads(tokenizer_json)))
    # Last, since a folder without it is not taken for a model.
    _write_json(folder / "config.json", config_to_huggingface(config, dtype))


def _tokenizer_config(model: Olmo2, tokenizer: dict[str, Any]) -> dict[str, Any]:
    added = {token["id"]: token["content"] for token in tokenizer.get("added_tokens", [])}
    vocabulary = {number: text for text, number in tokenizer["model"]["vocab"].items()} | added
    eos, pad = model.config.eos_token_id, model.config.pad_token_id
    named = {"eos_token": vocabulary.get(eos), "pad_token": None if pad is None else vocabulary.get(pad)}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        **{name: text for name, text in named.items() if text is not None},
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def from_huggingface(folder: str | Path) -> Olmo2:
    """The model of a Hugging Face folder (or URL), in eval mode, weights in their stored dtype.

    Refused, naming what differs, if it is not a plain OLMo 2 model (another architecture, sliding windows, missing or unexpected
    weights, pickle files); NotFound if there is no config.json; Corrupt if a file is damaged; UsageError for a checkpoint of ours.
    """
    model, info = load_model(str(folder))
    if info["format"] != "huggingface":
        raise UsageError(
            f"{folder} is a checkpoint of ours, not a Hugging Face folder: read it with weights.load_model"
        )
    return model
