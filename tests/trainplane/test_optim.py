"""Who decays, what clipping does, and that state survives a round trip."""

import pytest
import torch
from torch import nn

from trainplane.optim import AdamWSettings, adamw, clip_, effective, load_state_tensors, parameter_groups, state_tensors
from triplane.lm.model import ModelConfig, Olmo2, init_weights

OLMO_2 = AdamWSettings(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, decay_embeddings=False, decay_norms=True)
TINY = ModelConfig(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=16, rope_theta=1e4, eos_token_id=0, pad_token_id=1,
)  # fmt: skip


def tiny(seed: int = 0) -> Olmo2:
    model = Olmo2(TINY)
    init_weights(model, seed)
    return model


def test_embeddings_do_not_decay_and_norms_do() -> None:
    model = tiny()
    decay = {id(p): group["weight_decay"] for group in parameter_groups(model, OLMO_2) for p in group["params"]}
    by_name = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert by_name["embed_tokens.weight"] == 0.0
    assert {value for name, value in by_name.items() if name != "embed_tokens.weight"} == {0.1}
    assert by_name["lm_head.weight"] == 0.1


def test_the_options_are_options() -> None:
    settings = AdamWSettings(0.9, 0.95, 1e-8, 0.1, decay_embeddings=True, decay_norms=False)
    decays = {group["name"]: group["weight_decay"] for group in parameter_groups(tiny(), settings)}
    assert decays == {"matrices": 0.1, "norms": 0.0, "embeddings": 0.1}


def test_the_effective_values_are_read_from_the_live_groups() -> None:
    optimizer = adamw(tiny(), OLMO_2)
    assert effective(optimizer)["matrices"] | {"num_parameters": 0} == {
        "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "num_parameters": 0,
    }  # fmt: skip
    optimizer.param_groups[0]["eps"] = 1e-5
    assert effective(optimizer)["matrices"]["eps"] == 1e-5
    assert effective(optimizer)["embeddings"]["num_parameters"] == 96 * 32


def test_decay_shrinks_by_lr_times_decay_and_leaves_embeddings() -> None:
    model = tiny()
    optimizer = adamw(model, OLMO_2)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    optimizer.step()
    torch.testing.assert_close(model.lm_head.weight.detach(), before["lm_head.weight"] * (1 - 0.5 * 0.1))
    torch.testing.assert_close(model.norm.weight.detach(), before["norm.weight"] * (1 - 0.5 * 0.1))
    assert torch.equal(model.embed_tokens.weight, before["embed_tokens.weight"])


def test_clip_scales_to_the_norm_and_returns_the_one_before() -> None:
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert clip_([weight], 1.0).item() == 5.0
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, 0.8]), rtol=1e-5, atol=0)
    assert clip_([weight], 10.0).item() == pytest.approx(1.0, rel=1e-5)
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, 0.8]), rtol=1e-5, atol=0)


def take_steps(model: Olmo2, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        optimizer.step()


def test_state_that_went_out_and_in_continues_bit_for_bit() -> None:
    straight, broken = tiny(), tiny()
    straight_optimizer, broken_optimizer = adamw(straight, OLMO_2), adamw(broken, OLMO_2)
    take_steps(straight, straight_optimizer, range(5))
    take_steps(broken, broken_optimizer, range(2))
    resumed = tiny(seed=1)
    resumed.load_state_dict(broken.state_dict())
    resumed_optimizer = adamw(resumed, OLMO_2)
    load_state_tensors(resumed, resumed_optimizer, state_tensors(broken, broken_optimizer))
    take_steps(resumed, resumed_optimizer, range(2, 5))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_foreign_state_is_refused() -> None:
    model = tiny()
    optimizer = adamw(model, OLMO_2)
    take_steps(model, optimizer, range(1))
    tensors = state_tensors(model, optimizer)
    with pytest.raises(ValueError, match="parameters the model has not"):
        load_state_tensors(model, adamw(model, OLMO_2), tensors | {"step/other.weight": torch.zeros(())})
    with pytest.raises(KeyError, match=r"step/norm\.weight"):
        load_state_tensors(model, adamw(model, OLMO_2), {k: v for k, v in tensors.items() if k != "step/norm.weight"})
    with pytest.raises(ValueError, match="optimizer state of norm"):
        load_state_tensors(model, adamw(model, OLMO_2), tensors | {"exp_avg/norm.weight": torch.zeros(3)})
