"""Three ways to write the same model down: ours, Hugging Face's and OLMo-core's. Pure functions on state dicts and config dicts, no files.

Names and orientation are the only differences: no weight is transposed or permuted (rotary pairs are (e, e + E/2) in all three).
Sources: transformers `models/olmo2`, OLMo-core `nn/hf/convert.py`; Hugging Face's class defaults, which its files leave out, are of
transformers 5 `configuration_olmo2.py`, and are wrong for the released models (eps 1e-5, vocabulary 50304), so we write every field.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from triplane.errors import Refused
from triplane.lm.model import ModelConfig

_HUGGINGFACE_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50304,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 1,
    "eos_token_id": 50279,
}
_HUGGINGFACE_DEFAULT_THETA = 10_000.0

# Fields that would make another model, with the values under which it is this one (None: absent or null).
_REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", None),
    "attention_bias": (False, None),
    "tie_word_embeddings": (False, None),
    "rope_scaling": (None,),
    "sliding_window": (None,),
}

# (ours, Hugging Face, OLMo-core); {i} is the layer.
_NAMES = [
    ("embed_tokens", "model.embed_tokens", "embeddings"),
    ("layers.{i}.self_attn.q_proj", "model.layers.{i}.self_attn.q_proj", "blocks.{i}.attention.w_q"),
    ("layers.{i}.self_attn.k_proj", "model.layers.{i}.self_attn.k_proj", "blocks.{i}.attention.w_k"),
    ("layers.{i}.self_attn.v_proj", "model.layers.{i}.self_attn.v_proj", "blocks.{i}.attention.w_v"),
    ("layers.{i}.self_attn.o_proj", "model.layers.{i}.self_attn.o_proj", "blocks.{i}.attention.w_out"),
    ("layers.{i}.self_attn.q_norm", "model.layers.{i}.self_attn.q_norm", "blocks.{i}.attention.q_norm"),
    ("layers.{i}.self_attn.k_norm", "model.layers.{i}.self_attn.k_norm", "blocks.{i}.attention.k_norm"),
    ("layers.{i}.mlp.gate_proj", "model.layers.{i}.mlp.gate_proj", "blocks.{i}.feed_forward.w1"),
    ("layers.{i}.mlp.up_proj", "model.layers.{i}.mlp.up_proj", "blocks.{i}.feed_forward.w3"),
    ("layers.{i}.mlp.down_proj", "model.layers.{i}.mlp.down_proj", "blocks.{i}.feed_forward.w2"),
    (
        "layers.{i}.post_attention_layernorm",
        "model.layers.{i}.post_attention_layernorm",
        "blocks.{i}.attention_norm",
    ),
    (
        "layers.{i}.post_feedforward_layernorm",
        "model.layers.{i}.post_feedforward_layernorm",
        "blocks.{i}.feed_forward_norm",
    ),
    ("norm", "model.norm", "lm_head.norm"),
    ("lm_head", "lm_head", "lm_head.w_out"),
]
_OURS, _HUGGINGFACE, _OLMO_CORE = 0, 1, 2


def to_huggingface_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under Hugging Face's names; Refused on missing or unexpected names, listed."""
    return _renamed(state, _OURS, _HUGGINGFACE)


def from_huggingface_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_huggingface_names`."""
    return _renamed(state, _HUGGINGFACE, _OURS)


def to_olmo_core_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under OLMo-core's names; Refused on missing or unexpected names, listed."""
    return _renamed(state, _OURS, _OLMO_CORE)


def from_olmo_core_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_olmo_core_names`."""
    return _renamed(state, _OLMO_CORE, _OURS)


def _renamed(state: Mapping[str, Tensor], source: int, target: int) -> dict[str, Tensor]:
    layers = [int(match[1]) for name in state if (match := re.search(r"\b(?:layers|blocks)\.(\d+)\.", name))]
    new_names = {}
    for names in _NAMES:
        for i in range(max(layers, default=-1) + 1) if "{i}" in names[source] else [0]:
            new_names[names[source].format(i=i) + ".weight"] = names[target].format(i=i) + ".weight"
    refuse_other_names(set(state), set(new_names))
    return {new_names[name]: tensor for name, tensor in state.items()}


def refuse_other_names(found: set[str], expected: set[str]) -> None:
    """Refused, with both lists, unless the tensors found are exactly those an OLMo 2 model has."""
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    if missing or unexpected:
        raise Refused(f"these are not the weights of an OLMo 2 model: missing {missing}, unexpected {unexpected}")


def config_to_huggingface(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """A complete `config.json`. `rope_theta` is written twice: transformers 5 reads `rope_parameters`, 4 and others the plain field."""
    return {
        "architectures": ["Olmo2ForCausalLM"],
        "model_type": "olmo2",
        **config.to_dict(),
        "bos_token_id": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "dtype": dtype,
    }


def config_from_huggingface(values: Mapping[str, Any]) -> ModelConfig:
    """The config of a Hugging Face `config.json`; Refused, naming the field, if it describes anything but a plain OLMo 2 model."""
    if values.get("model_type") != "olmo2":
        raise Refused(f"config.json has model_type {values.get('model_type')!r}: only 'olmo2' is read")
    for name, allowed in _REQUIRED_VALUES.items():
        if values.get(name) not in allowed:
            raise Refused(f"config.json has {name} {values[name]!r}: OLMo 2 is read with {allowed[0]!r} only")
    if any(kind != "full_attention" for kind in values.get("layer_types") or []):
        raise Refused("config.json has layer_types other than full_attention: sliding windows are not OLMo 2")
    rope = values.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise Refused(f"config.json has rope_type {rope['rope_type']!r}: OLMo 2 is read with 'default' only")
    fields = {name: values.get(name, default) for name, default in _HUGGINGFACE_DEFAULTS.items()}
    fields["num_key_value_heads"] = values.get("num_key_value_heads") or fields["num_attention_heads"]
    fields["rope_theta"] = rope.get("rope_theta") or values.get("rope_theta") or _HUGGINGFACE_DEFAULT_THETA
    if isinstance(fields["eos_token_id"], list):  # chat models list several; the first one ends a document
        fields["eos_token_id"] = fields["eos_token_id"][0]
    try:
        config = ModelConfig.from_dict(fields)
    except (ValueError, TypeError) as error:
        raise Refused(f"config.json does not describe an OLMo 2 model: {error}") from error
    if values.get("head_dim") not in (None, config.head_dim):
        raise Refused(
            f"config.json has head_dim {values['head_dim']}: OLMo 2 has hidden_size / heads = {config.head_dim}"
        )
    return config
