"""Hugging Face and OLMo-core read what we write and compute the same; what is not OLMo 2 is refused by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Olmo2Config, Olmo2ForCausalLM

from triplane import artifact
from triplane.errors import Corrupt, NotFound, Refused, UsageError
from triplane.lm import export, weights
from triplane.lm.layouts import config_to_huggingface, from_huggingface_names, to_huggingface_names
from triplane.lm.model import ModelConfig, Olmo2

CONFIG = ModelConfig(61, 32, 48, 2, 4, 2, max_position_embeddings=64, rope_theta=2e4, eos_token_id=1, pad_token_id=0)
MHA = dataclasses.replace(CONFIG, num_key_value_heads=4, rms_norm_eps=1e-5, pad_token_id=None)
IDS = torch.randint(0, 61, (2, 30), generator=torch.Generator().manual_seed(0))


def random_model(config: ModelConfig = CONFIG) -> Olmo2:
    model = Olmo2(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 0.15 * noise)
    return model.eval()


def changed_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("config", [CONFIG, MHA], ids=["gqa", "mha"])
@torch.no_grad()
def test_transformers_reads_our_folder_and_computes_the_same(tmp_path: Path, config: ModelConfig) -> None:
    model = random_model(config)
    export.to_huggingface(model, tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(reference) is Olmo2ForCausalLM and reference.dtype == torch.float32
    torch.testing.assert_close(model(IDS), reference(IDS).logits, atol=1e-5, rtol=1e-5)
    read = reference.config
    for name, value in config.to_dict().items():
        assert (read.rope_parameters["rope_theta"] if name == "rope_theta" else getattr(read, name)) == value
    assert reference.generation_config.eos_token_id == config.eos_token_id


@torch.no_grad()
def test_we_read_our_folder_and_transformers_folder(tmp_path: Path) -> None:
    model = random_model()
    export.to_huggingface(model, tmp_path / "ours")
    AutoModelForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    for folder in ("ours", "theirs"):
        found = export.from_huggingface(tmp_path / folder)
        assert found.config == CONFIG
        assert torch.equal(found(IDS), model(IDS))


def test_class_defaults_left_out_by_transformers_are_read(tmp_path: Path) -> None:
    """save_pretrained writes differences only: an absent field is the class default, not ours."""
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Olmo2ForCausalLM(Olmo2Config(**small, vocab_size=50304)).save_pretrained(tmp_path)
    config = export.from_huggingface(tmp_path).config
    defaults = AutoConfig.for_model("olmo2")
    assert (config.rms_norm_eps, config.max_position_embeddings, config.eos_token_id, config.pad_token_id) == (
        defaults.rms_norm_eps,
        defaults.max_position_embeddings,
        defaults.eos_token_id,
        defaults.pad_token_id,
    )
    assert config.rope_theta == defaults.rope_parameters["rope_theta"]


def test_bfloat16_keeps_its_dtype(tmp_path: Path) -> None:
    export.to_huggingface(random_model().bfloat16(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert export.from_huggingface(tmp_path).lm_head.weight.dtype == torch.bfloat16


def test_the_tokenizer_goes_with_the_model(tmp_path: Path, shared: Path) -> None:
    config = ModelConfig(100352, 8, 8, 1, 2, 2)
    tokenizer = (shared / "data/tokenizer/allenai_dolma2.json").read_bytes()
    export.to_huggingface(Olmo2(config), tmp_path, tokenizer)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert (read.eos_token_id, read.pad_token_id) == (100257, 100277)
    text = "Tom has 7 apples.\n  def f(x):"
    assert read.decode(read.encode(text)) == text
    assert (tmp_path / "tokenizer.json").read_bytes() == tokenizer


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"model_type": "olmo3", "sliding_window": 4096}, "model_type 'olmo3'"),
        ({"sliding_window": 4096}, "sliding_window 4096"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings True"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5}}, "rope_type 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling"),
        ({"head_dim": 16}, "head_dim 16"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"intermediate_size": 40}, "_proj.weight has shape"),
    ],
)
def test_other_models_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    export.to_huggingface(random_model(), tmp_path)
    changed_config(tmp_path, **changes)
    with pytest.raises(Refused, match=words):
        export.from_huggingface(tmp_path)


def test_missing_and_unexpected_weights_are_listed(tmp_path: Path) -> None:
    export.to_huggingface(random_model(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["model.layers.0.input_layernorm.weight"] = state.pop("model.layers.0.post_attention_layernorm.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(
        Refused, match=r"missing \['model.layers.0.post_attention_l.*unexpected \['model.layers.0.input_l"
    ):
        export.from_huggingface(tmp_path)


def test_a_folder_of_pickles_and_a_checkpoint_are_refused(tmp_path: Path) -> None:
    export.to_huggingface(random_model(), tmp_path / "hf")
    (tmp_path / "hf/model.safetensors").rename(tmp_path / "hf/pytorch_model.bin")
    with pytest.raises(Refused, match=r"no model\.safetensors"):
        export.from_huggingface(tmp_path / "hf")
    (tmp_path / "hf/model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "pytorch_model.bin"}}')
    with pytest.raises(Refused, match="not a safetensors file"):
        export.from_huggingface(tmp_path / "hf")
    with pytest.raises(NotFound):
        export.from_huggingface(tmp_path / "absent")
    draft = artifact.begin(str(tmp_path), "checkpoint", "x", inputs={}, recipe={}, stage_versions={})
    draft.record("model", weights.save_tensors(draft, "model", random_model().state_dict()), {})
    draft.commit({"model_config": CONFIG.to_dict()})
    with pytest.raises(UsageError, match="checkpoint of ours"):
        export.from_huggingface(draft.url)


def test_damaged_json_and_paths_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    export.to_huggingface(random_model(), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "moved.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for text, error, words in (
        ('{"weight_map": {"lm_head.weight": "../moved.safetensors"}}', Refused, "outside its folder"),
        ("{", Corrupt, "is not JSON"),
        ("[]", Corrupt, "holds a list"),
        ("{}", Refused, "missing"),
    ):
        index.write_text(text)
        with pytest.raises(error, match=words):
            export.from_huggingface(tmp_path)


def test_names_round_trip_and_follow_the_published_mapping() -> None:
    state = random_model().state_dict()
    core = export.to_olmo_core_names(state)
    # Sampled from OLMo-core nn/hf/convert.py: a swap of w1 (gate) and w3 (up) would keep every shape.
    assert core["blocks.1.feed_forward.w1.weight"] is state["layers.1.mlp.gate_proj.weight"]
    assert core["blocks.1.feed_forward.w3.weight"] is state["layers.1.mlp.up_proj.weight"]
    assert core["lm_head.norm.weight"] is state["norm.weight"]
    for there, back in (
        (to_huggingface_names, from_huggingface_names),
        (export.to_olmo_core_names, export.from_olmo_core_names),
    ):
        again = back(there(state))
        assert list(again) == list(state) and all(again[name] is state[name] for name in state)
    with pytest.raises(Refused, match="unexpected"):
        export.from_olmo_core_names(state)


@pytest.mark.parametrize("config", [CONFIG, MHA], ids=["gqa", "mha"])
@torch.no_grad()
def test_olmo_core_computes_the_same(config: ModelConfig) -> None:
    model = random_model(config)
    reference = olmo_core_model(config)
    reference.load_state_dict(export.to_olmo_core_names(model.state_dict()))
    torch.testing.assert_close(model(IDS), reference(IDS), atol=1e-5, rtol=1e-5)
    swapped = {name: tensor for name, tensor in export.to_olmo_core_names(model.state_dict()).items()}
    gate, up = "blocks.0.feed_forward.w1.weight", "blocks.0.feed_forward.w3.weight"
    swapped[gate], swapped[up] = swapped[up], swapped[gate]
    reference.load_state_dict(swapped)
    assert (model(IDS) - reference(IDS)).abs().max() > 0.01  # the control: shapes alone would not have told


def olmo_core_model(config: ModelConfig) -> torch.nn.Module:
    from olmo_core.nn.attention import AttentionBackendName
    from olmo_core.nn.feed_forward import FeedForwardConfig
    from olmo_core.nn.transformer import TransformerConfig

    built = TransformerConfig.llama_like(
        d_model=config.hidden_size,
        vocab_size=config.vocab_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        qk_norm=True,
        rope_theta=int(config.rope_theta),
        layer_norm_eps=config.rms_norm_eps,
        feed_forward=FeedForwardConfig(hidden_size=config.intermediate_size, bias=False),
        block_name="reordered_norm",
        attn_backend=AttentionBackendName.torch,
    )
    return built.build(init_device="cpu").eval()


def test_config_file_names_every_field() -> None:
    written = config_to_huggingface(CONFIG, "float32")
    assert {"rope_parameters", "rope_theta", "hidden_act", "tie_word_embeddings", "attention_bias"} <= set(written)
    assert set(CONFIG.to_dict()) <= set(written)
    assert export.config_from_huggingface(written) == CONFIG


def test_load_model_reads_a_hugging_face_folder_too(tmp_path: Path) -> None:
    model = random_model()
    export.to_huggingface(model, tmp_path)
    loaded, info = weights.load_model(str(tmp_path))
    assert info["format"] == "huggingface" and len(info["identity"]) == 64
    tensors: dict[str, Tensor] = loaded.state_dict()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.state_dict().items())
