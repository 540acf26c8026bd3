"""The model equals Hugging Face's, its cache changes nothing, its numbers are the paper's."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Olmo2Config, Olmo2ForCausalLM

from triplane.lm.model import (
    Cache,
    ModelConfig,
    Olmo2,
    RMSNorm,
    init_weights,
    initial_std,
    initial_tensor,
    num_parameters,
)

TINY = ModelConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    eos_token_id=1,
    pad_token_id=0,
)
PAPER = {  # hidden, SwiGLU, layers, heads, kv heads -> parameters
    (2048, 8192, 16, 16, 16): 1_484_916_736,
    (4096, 11008, 32, 32, 32): 7_298_617_344,
    (5120, 13824, 40, 40, 40): 13_716_198_400,
    (5120, 27648, 64, 40, 8): 32_234_279_936,
}


def random_model(config: ModelConfig, seed: int = 0) -> Olmo2:
    """Weights far from their initial values, norms too, so that a wrong norm or a wrong order shows."""
    model = Olmo2(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 0.15 * noise)
    return model.eval()


def huggingface(model: Olmo2) -> Olmo2ForCausalLM:
    """The reference, given the same weights. Built by hand here: the exporter has its own test."""
    values = model.config.to_dict()
    theta = values.pop("rope_theta")
    config = Olmo2Config(**values, rope_parameters={"rope_type": "default", "rope_theta": theta})
    reference = Olmo2ForCausalLM(config).eval()
    reference.load_state_dict(
        {k if k.startswith("lm_head") else f"model.{k}": v for k, v in model.state_dict().items()}
    )
    return reference


def random_ids(rows: int, tokens: int, seed: int = 0) -> Tensor:
    """Without the pad id 0: Hugging Face gives its embedding no gradient, we treat it as any other token."""
    return torch.randint(1, TINY.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=8)
@given(
    head_dim=st.sampled_from([4, 8, 16]),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2), (4, 1)]),
    layers=st.integers(1, 3),
    theta=st.sampled_from([1e4, 5e5]),
    eps=st.sampled_from([1e-6, 1e-5]),
    seed=st.integers(0, 1000),
)
def test_logits_equal_hugging_face(
    head_dim: int, heads: tuple[int, int], layers: int, theta: float, eps: float, seed: int
) -> None:
    config = dataclasses.replace(
        TINY,
        hidden_size=head_dim * heads[0],
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        num_hidden_layers=layers,
        rope_theta=theta,
        rms_norm_eps=eps,
    )
    model = random_model(config, seed)
    ids = random_ids(2, 33, seed)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), huggingface(model)(ids).logits, atol=1e-5, rtol=1e-5)


def test_loss_and_gradients_equal_hugging_face() -> None:
    model = random_model(TINY)
    reference = huggingface(model)
    ids = random_ids(3, 20)
    loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    expected = reference(ids, labels=ids).loss
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    gradients = {name.removeprefix("model."): p.grad for name, p in reference.named_parameters()}
    assert set(gradients) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("wrong", ["norm before", "norm per head", "interleaved rotary"])
def test_equality_would_see_another_architecture(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: each usual mistake moves the logits far beyond the tolerance."""
    model = random_model(TINY)
    reference = huggingface(model)
    if wrong == "norm before":
        for layer in model.layers:
            layer.forward = lambda x, view, slots, b=layer: x + b.self_attn(b.post_attention_layernorm(x), view, slots)
    elif wrong == "norm per head":

        def per_head(self: RMSNorm, x: Tensor) -> Tensor:
            heads = x.unflatten(-1, (-1, TINY.head_dim)).float()
            return (F.rms_norm(heads, (TINY.head_dim,), eps=self.eps).flatten(-2) * self.weight).type_as(x)

        for layer in model.layers:
            for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
                norm.forward = per_head.__get__(norm)
    else:

        def interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            a, b = x[..., 0::2], x[..., 1::2]
            return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)

        monkeypatch.setattr("triplane.lm.model.rotate", interleaved)
    ids = random_ids(2, 16)
    with torch.no_grad():
        assert (model(ids) - reference(ids).logits).abs().max() > 0.01


def test_bfloat16_is_as_near_to_fp32_as_hugging_face_is() -> None:
    model = random_model(TINY)
    ids = random_ids(2, 16)
    with torch.no_grad():
        exact = model(ids)
        reference = huggingface(model).bfloat16()(ids).logits
        ours = model.bfloat16()(ids)
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).abs().mean() <= 1.2 * (reference - exact).abs().mean()


def test_norm_multiplies_by_the_weight_before_the_cast() -> None:
    norm = RMSNorm(64, 1e-6)
    x = torch.randn(100, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
        normal = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        torch.testing.assert_close(norm(x), (norm.weight * normal).bfloat16(), atol=0, rtol=2**-8)
        agree = (norm(x) == (norm.weight * normal).bfloat16()).float().mean()
        cast_first = (norm(x) == (norm.weight.bfloat16() * normal.bfloat16())).float().mean()
    assert agree > 0.999 > 0.9 > cast_first


def test_cache_gives_the_logits_of_one_forward_for_ragged_rows() -> None:
    """Rows of 5 and 9 tokens, fed 4 + 1 + ..., each at its own positions: what padding wrote is never read."""
    model = random_model(TINY)
    rows = [random_ids(1, 5, 1)[0], random_ids(1, 9, 2)[0]]
    cache = Cache(TINY, 2, 12, model.lm_head.weight)
    with torch.no_grad():
        padded = torch.stack([F.pad(rows[0], (0, 4)), rows[1]])
        prefill = model(padded, cache)
        following = random_ids(2, 3, 3)
        steps = [model(following[:, i : i + 1], cache, torch.tensor([[5 + i], [9 + i]])) for i in range(3)]
        for b, row in enumerate(rows):
            whole = model(torch.cat((row, following[b]))[None])[0]
            torch.testing.assert_close(prefill[b, : len(row)], whole[: len(row)], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(torch.cat([s[b] for s in steps]), whole[len(row) :], atol=1e-5, rtol=1e-5)


def test_a_mask_and_a_cache_are_refused_together() -> None:
    model = random_model(TINY)
    with pytest.raises(ValueError, match="cannot be used together"):
        model.hidden(
            random_ids(1, 4), Cache(TINY, 1, 4, model.lm_head.weight), mask_BTT=torch.ones(1, 4, 4, dtype=torch.bool)
        )


@pytest.mark.parametrize(("shape", "expected"), PAPER.items())
def test_parameters_of_the_released_models(shape: tuple[int, int, int, int, int], expected: int) -> None:
    hidden, intermediate, layers, heads, kv_heads = shape
    config = ModelConfig(100352, hidden, intermediate, layers, heads, kv_heads)
    assert num_parameters(config) == expected
    with torch.device("meta"):
        assert sum(p.numel() for p in Olmo2(dataclasses.replace(config, num_hidden_layers=2)).parameters()) == (
            num_parameters(dataclasses.replace(config, num_hidden_layers=2))
        )


def test_init_is_a_truncated_normal_and_norms_are_one() -> None:
    model = Olmo2(dataclasses.replace(TINY, vocab_size=5000))
    init_weights(model, seed=3)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter))
        else:
            assert parameter.abs().max() <= 0.06
    # A normal of 0.02 cut at 3 sigma has a standard deviation of 0.98658 * 0.02.
    assert math.isclose(model.lm_head.weight.std().item(), 0.019732, rel_tol=0.01)
    assert abs(model.lm_head.weight.mean().item()) < 2e-4


def test_init_depends_on_the_seed_alone() -> None:
    def weights(seed: int, global_seed: int, layers: int = 2) -> dict[str, Tensor]:
        torch.manual_seed(global_seed)
        model = Olmo2(dataclasses.replace(TINY, num_hidden_layers=layers))
        init_weights(model, seed)
        return model.state_dict()

    a, b, other, deeper = weights(1, 0), weights(1, 99), weights(2, 0), weights(1, 0, layers=3)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(torch.equal(a[name], deeper[name]) for name in a)
    assert not torch.equal(a["lm_head.weight"], other["lm_head.weight"])
    assert not torch.equal(a["layers.0.mlp.up_proj.weight"], a["layers.1.mlp.up_proj.weight"])
    assert torch.equal(a["lm_head.weight"], initial_tensor("lm_head.weight", torch.Size((97, 32)), 0.02, seed=1))
    model = Olmo2(TINY)
    state = torch.random.get_rng_state()
    init_weights(model, 1)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_attention_heads": 5}, "num_attention_heads 5 does not divide hidden_size 32"),
        ({"num_attention_heads": 32, "num_key_value_heads": 32}, "head_dim 1 is odd"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide num_attention_heads 4"),
        ({"hidden_size": 0}, "hidden_size is 0, must be a number above 0"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2', must be a number"),
        ({"eos_token_id": 97}, "eos_token_id 97 is outside vocab_size 97"),
        ({"pad_token_id": 100277}, "pad_token_id 100277 is outside vocab_size 97"),
        ({"norm_position": "both"}, "norm_position is 'both', must be one of"),
        ({"qk_norm": None}, "qk_norm is None, must be one of"),
        ({"initialization": "xavier"}, "initialization is 'xavier', must be one of"),
    ],
)
def test_bad_configs_are_named(change: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(TINY, **change)


def test_config_round_trip_and_strict_reading() -> None:
    assert ModelConfig.from_dict(TINY.to_dict()) == TINY
    with pytest.raises(ValueError, match=r"unknown fields \['hiden_size'\]"):
        ModelConfig.from_dict({**TINY.to_dict(), "hiden_size": 3})
    with pytest.raises(ValueError, match=r"missing fields \['vocab_size'\]"):
        ModelConfig.from_dict({k: v for k, v in TINY.to_dict().items() if k != "vocab_size"})


@torch.no_grad()
def test_blocks_compile_without_graph_breaks() -> None:
    model = random_model(TINY)
    ids = random_ids(2, 8)
    expected = model(ids)
    for layer in model.layers:
        layer.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(model(ids), expected)


OLMO_0424 = dataclasses.replace(TINY, norm_position="pre", qk_norm=False, initialization="scaled")


def test_norms_before_without_qk_norm_are_llama() -> None:
    model = random_model(OLMO_0424)
    values = TINY.to_dict()
    theta = values.pop("rope_theta")
    config = LlamaConfig(**values, rope_parameters={"rope_type": "default", "rope_theta": theta})
    reference = LlamaForCausalLM(config).eval()
    reference.load_state_dict(
        {k if k.startswith("lm_head") else f"model.{k}": v for k, v in model.state_dict().items()}
    )
    ids = random_ids(2, 33)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), reference(ids).logits, atol=1e-5, rtol=1e-5)
        assert (model(ids) - random_model(TINY)(ids)).abs().max() > 0.1


@pytest.mark.parametrize("switch", ["norm_position", "qk_norm", "initialization"])
def test_each_switch_makes_another_model_of_the_counted_parameters(switch: str) -> None:
    config = dataclasses.replace(TINY, **{switch: getattr(OLMO_0424, switch)})
    model, plain = Olmo2(config), Olmo2(TINY)
    for each in (model, plain):
        init_weights(each, 0)
    assert sum(p.numel() for p in model.parameters()) == num_parameters(config)
    assert (model(random_ids(1, 8)) - plain(random_ids(1, 8))).abs().max() > 1e-3
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_switches_of_olmo_2_are_no_part_of_its_identity() -> None:
    assert not {"norm_position", "qk_norm", "initialization"} & set(TINY.to_dict())
    assert OLMO_0424.to_dict() == TINY.to_dict() | {
        "norm_position": "pre", "qk_norm": False, "initialization": "scaled",
    }  # fmt: skip


def test_scaled_initialisation_shrinks_with_depth_and_fan_in() -> None:
    model = Olmo2(dataclasses.replace(OLMO_0424, hidden_size=64, intermediate_size=256, num_hidden_layers=3))
    init_weights(model, seed=0)
    stds = {
        "embed_tokens.weight": 64**-0.5, "lm_head.weight": 64**-0.5, "layers.2.self_attn.q_proj.weight": 64**-0.5,
        "layers.1.mlp.up_proj.weight": 64**-0.5, "layers.0.self_attn.o_proj.weight": (2 * 64) ** -0.5,
        "layers.2.self_attn.o_proj.weight": (2 * 64 * 3) ** -0.5, "layers.2.mlp.down_proj.weight": (2 * 256 * 3) ** -0.5,
    }  # fmt: skip
    for name, std in stds.items():
        assert initial_std(name, model.config) == pytest.approx(std)
        # Cut at 3 sigma, as above.
        assert model.get_parameter(name).std().item() == pytest.approx(0.98658 * std, rel=0.05)
    assert {initial_std(name, TINY) for name in stds} == {0.02}


def test_the_head_lends_its_weight() -> None:
    head = random_model(TINY).lm_head
    x = torch.randn(3, TINY.hidden_size)
    torch.testing.assert_close(head.through(lambda hidden, weight, bias: hidden @ weight.T + bias, x, 1.0), head(x) + 1)
