"""Each thing a run reads back from its live objects is broken in turn, and the run is refused by name."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from trainplane import loss, measured, optim, parallel, schedule
from trainplane import recipe as recipes
from trainplane import run as runs
from trainplane.batches import Batches
from trainplane.recipe import RunRecipe
from triplane import artifact, mixture
from triplane.errors import Refused
from triplane.lm.model import ModelConfig, Olmo2, init_weights

MakeRecipe = Callable[..., RunRecipe]
SWITCHES = {
    "model.norm_position": "pre", "model.qk_norm": False, "model.initialization": "scaled", "optimizer.eps": 1e-5,
    "optimizer.decay_embeddings": True, "optimizer.decay_norms": False, "optimizer.skip_step": True, "optimizer.skip_step_bug": True,
    "optimizer.max_grad_norm": 3.0, "optimizer.weight_decay": 0.0, "z_loss": 0.0, "schedule.decay": "linear", "data.order_seed": 9,
    "data.instance_filter": False, "data.document_masks": True,
    "data.global_batch_tokens": 4 * 48, "schedule.warmup_tokens": 1536, "schedule.peak_lr": 2e-2,
    "schedule.final_lr_fraction": 0.0, "stop_tokens": 10 * 8 * 48,
}  # fmt: skip


@pytest.fixture
def lock(root: str) -> mixture.MixLock:
    return mixture.load(artifact.artifact_url(root, "mix/tiny"))


def live(recipe: RunRecipe, lock: mixture.MixLock, root: str) -> dict[str, Any]:
    model, optimizer = runs.build(recipe)
    data = recipe.data
    instances = data.global_batch_tokens // data.sequence_length_tokens
    batches = Batches(root, lock, data.order_seed, instances, data.instance_filter)
    return recipes.effective(model, optimizer, recipes.loop_settings(recipe), batches)


@pytest.mark.parametrize("key", SWITCHES)
def test_a_run_that_was_built_from_another_recipe_is_refused(
    make_recipe: MakeRecipe, lock: mixture.MixLock, root: str, key: str
) -> None:
    """Every switch, set in the recipe and built: accepted. Built without it: refused, naming what differs."""
    written, other = make_recipe(**{key: SWITCHES[key]}), make_recipe()
    recipes.assert_effective(written, live(written, lock, root))
    with pytest.raises(Refused, match="the live objects do not do what recipe tiny says: "):
        recipes.assert_effective(written, live(other, lock, root))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("model.norm_position", r'structure\.norm_position: "pre" -> "post"'),
        ("model.qk_norm", r"structure\.qk_norm: false -> true"),
        ("model.initialization", r'structure\.initialization: "scaled" -> "normal"'),
        ("optimizer.eps", r"optimizer\.matrices\.eps: 1e-05 -> 1e-08"),
        ("optimizer.decay_norms", r"weight_decay\.layers\.\*\.post_attention_layernorm\.weight: 0\.0 -> 0\.1"),
        ("optimizer.skip_step_bug", r"optimizer\.\w+\.skip_step_bug: true -> null"),
        ("optimizer.max_grad_norm", r"max_grad_norm: 3\.0 -> (1\.0|0\.99)"),
        ("schedule.warmup_tokens", r"lr\.384: 0\.0025 -> 0\.005"),
        ("data.order_seed", r"data\.order_seed: 9 -> 7"),
        ("data.instance_filter", r"data\.instance_filter: false -> true"),
    ],
)
def test_the_difference_is_named(
    make_recipe: MakeRecipe, lock: mixture.MixLock, root: str, key: str, words: str
) -> None:
    with pytest.raises(Refused, match=words):
        recipes.assert_effective(make_recipe(**{key: SWITCHES[key]}), live(make_recipe(), lock, root))


def found(recipe: RunRecipe, change: Callable[[Olmo2, torch.optim.Optimizer], None]) -> dict[str, Any]:
    model, optimizer = runs.build(recipe)
    change(model, optimizer)
    return recipes.effective(model, optimizer, recipes.loop_settings(recipe))


def drop_a_parameter(model: Olmo2, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["params"].pop()


def double_the_rate_of_a_group(model: Olmo2, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[1]["params"], kept = optimizer.param_groups[1]["params"], optimizer.param_groups[2]
    kept["params"].extend(optimizer.param_groups[1]["params"][:1])


@torch.no_grad()
def widen_one_matrix(model: Olmo2, optimizer: torch.optim.Optimizer) -> None:
    model.layers[1].mlp.down_proj.weight *= 1.5


def norms_of_one_layer(model: Olmo2, optimizer: torch.optim.Optimizer) -> None:
    config = dataclasses.replace(model.config, norm_position="pre")
    other = Olmo2(config)
    init_weights(other, 0)
    model.layers[1] = other.layers[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_a_parameter, 'weight_decay\\..*: 0.1 -> .*"absent"'),
        (double_the_rate_of_a_group, r"weight_decay\.layers\.\*\.self_attn\.q_norm\.weight: 0\.1 -> \[0\.0, 0\.1\]"),
        (widen_one_matrix, r'structure\.initialization: "normal" -> "neither"'),
        (norms_of_one_layer, r'structure\.norm_position: "post" -> "mixed"'),
    ],
)
def test_one_parameter_or_layer_that_differs_is_seen(make_recipe: MakeRecipe, change: Callable, words: str) -> None:
    with pytest.raises(Refused, match=words):
        recipes.assert_effective(make_recipe(), found(make_recipe(), change))


def test_a_schedule_function_that_counts_steps_is_seen(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the settings but the function that the step calls."""
    monkeypatch.setattr(measured, "lr_at", lambda tokens, of: schedule.lr_at(tokens // 2, of))
    with pytest.raises(Refused, match=r"lr\.384: 0\.005 -> 0\.0025"):
        recipes.assert_effective(make_recipe(), found(make_recipe(), lambda *_: None))


def test_a_loss_that_ignores_its_coefficient_is_seen(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the trainer of the 1B, 7B and 13B did: the config said 1e-5, the function's default was applied."""
    honest = loss.head_loss
    monkeypatch.setattr(measured, "head_loss", lambda hidden, weight, labels, z: honest(hidden, weight, labels, 1e-4))
    with pytest.raises(Refused, match=r"z_loss: 1e-05 -> (0\.0001|9\.99)"):
        recipes.assert_effective(make_recipe(z_loss=1e-5), found(make_recipe(z_loss=1e-5), lambda *_: None))


def test_clipping_that_does_nothing_is_seen(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "clip_", lambda parameters, norm: torch.zeros(()))
    with pytest.raises(Refused, match=r"max_grad_norm: 1\.0 -> 1000000\.0"):
        recipes.assert_effective(make_recipe(), found(make_recipe(), lambda *_: None))


def test_a_precision_that_is_not_computed_in_is_seen(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(precision="bf16")

    def parallelized(model: Olmo2, optimizer: torch.optim.Optimizer) -> None:
        parallel.parallelize(model, recipes.parallel_settings(recipe), None)

    def in_bf16(model: Olmo2, optimizer: torch.optim.Optimizer) -> None:
        parallelized(model, optimizer)
        model.bfloat16()

    recipes.assert_effective(recipe, found(make_recipe(), parallelized))
    with pytest.raises(Refused, match=r'precision\.activations: "bf16" -> "fp32"'):
        recipes.assert_effective(recipe, found(make_recipe(), lambda *_: None))
    with pytest.raises(Refused, match=r'precision\.parameters: "fp32" -> "bf16"'):
        recipes.assert_effective(recipe, found(make_recipe(), in_bf16))


def test_reading_back_leaves_the_optimizer_as_it_was(make_recipe: MakeRecipe) -> None:
    model, optimizer = runs.build(make_recipe())
    recipes.effective(model, optimizer, recipes.loop_settings(make_recipe()))
    assert {group["lr"] for group in optimizer.param_groups} == {0.0} and not optimizer.state


@pytest.mark.parametrize("rule", ["normal", "scaled"])
def test_the_rule_of_the_initial_weights_is_recognised(rule: str) -> None:
    config = ModelConfig(512, 64, 96, 3, 4, 2, eos_token_id=0, pad_token_id=1, initialization=rule)  # type: ignore[arg-type]
    model = Olmo2(config)
    init_weights(model, 1)
    assert measured.initialization(model) == rule
    model.config = dataclasses.replace(config, initializer_range=0.021)
    assert measured.initialization(model) == ("neither" if rule == "normal" else "scaled")
    with torch.device("meta"):
        assert measured.initialization(Olmo2(config)) is None


def test_names_that_compiling_and_checkpointing_change() -> None:
    assert (
        measured.plain_name("layers.3._orig_mod._checkpoint_wrapped_module.mlp.up_proj.weight")
        == "layers.3.mlp.up_proj.weight"
    )
    assert measured.by_name({"layers.0.a": 1, "layers.1.a": 1, "norm.b": 2}) == {"layers.*.a": 1, "norm.b": 2}
    assert measured.by_name({"layers.0.a": 1, "layers.1.a": 2}) == {"layers.*.a": [1, 2]}
