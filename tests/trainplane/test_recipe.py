"""Recipes are strict; the live objects are asked whether they do what it says."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from trainplane import recipe as recipes
from trainplane import run as runs
from trainplane.recipe import RunRecipe
from triplane.errors import Refused, UsageError
from triplane.recipe import resolved

MakeRecipe = Callable[..., RunRecipe]


@pytest.fixture
def folder(tmp_path: Path, make_recipe: MakeRecipe) -> Path:
    """recipes/runs/tiny.yaml naming the model recipes/models/small.yaml."""
    value = resolved(make_recipe())
    model = value.pop("model")
    (tmp_path / "models").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "models" / "small.yaml").write_text(yaml.safe_dump(model))
    (tmp_path / "runs" / "tiny.yaml").write_text(yaml.safe_dump(value | {"model": "small"}))
    return tmp_path / "runs"


def test_a_named_model_is_read_from_the_folder_of_models(folder: Path, make_recipe: MakeRecipe) -> None:
    assert recipes.load(folder / "tiny.yaml") == make_recipe()
    changed = recipes.load(folder / "tiny.yaml", ["model.num_hidden_layers=3", "stop_tokens=6K"])
    assert (changed.model.num_hidden_layers, changed.stop_tokens) == (3, 6000)


def test_an_unknown_key_names_the_nearest(folder: Path) -> None:
    with pytest.raises(UsageError, match="peak_lr"):
        recipes.load(folder / "tiny.yaml", ["schedule.peek_lr=1"])
    with pytest.raises(UsageError, match=r"smal\.yaml does not exist: did you mean .*small\.yaml"):
        recipes.load(folder / "tiny.yaml", ["model=smal"])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("data.global_batch_tokens", 100, "multiple"),
        ("data.sequence_length_tokens", 96, "max_position_embeddings"),
        ("schedule.decay_tokens", 5, "exceed"),
        ("schedule.warmup_tokens", "1B", "exceed"),
        ("runtime.ephemeral_every_tokens", 7, "must be a multiple"),
        ("runtime.min_workers", 2, "min_workers exceeds"),
        ("runtime.parallel", {"activation_checkpointing": "memory_budget"}, r"memory_budget needs runtime\.parallel\.compile"),
        ("data.order_chunk_instances", 2, "needs data.order"),
        ("model.num_attention_heads", 5, "does not divide"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_together(make_recipe: MakeRecipe, key: str, value: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        recipes.check(make_recipe(**{key: value, **({"data.global_batch_tokens": 96} if "sequence" in key else {})}))


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("data.sequence_length_tokens", 0, 48),
        ("data.global_batch_tokens", 0, 8 * 48),
        ("data.order_seed", -1, 0),
        ("optimizer.beta1", 1.0, 0.0),
        ("optimizer.beta2", -0.1, 0.999),
        ("optimizer.eps", 0.0, 1e-9),
        ("optimizer.weight_decay", -0.1, 0.0),
        ("optimizer.max_grad_norm", 0.0, 0.5),
        ("schedule.peak_lr", -1e-3, 1e-9),
        ("schedule.warmup_tokens", -5, 0),
        ("schedule.final_lr_fraction", 1.5, 1.0),
        ("z_loss", -1e-5, 0.0),
        ("stop_tokens", 0, 1),
        ("runtime.num_workers", -1, 0),
        ("runtime.threads_per_worker", 0, 1),
        ("runtime.microbatch_instances", 0, 1),
        ("runtime.read_ahead_batches", -1, 0),
        ("runtime.checkpoint_every_tokens", 0, 1),
        ("runtime.max_failures", -2, -1),
        ("runtime.metrics_every_steps", 0, 1),
    ],
)
def test_a_value_that_no_run_can_have_is_refused_by_name(folder: Path, key: str, value: float, allowed: float) -> None:
    with pytest.raises(UsageError, match=rf"{key.replace('.', chr(92) + '.')}=.*input should be (less|greater) than"):
        recipes.load(folder / "tiny.yaml", [f"{key}={value}"])
    recipes.load(folder / "tiny.yaml", [f"{key}={allowed}"])


def test_how_it_runs_is_not_what_it_is(make_recipe: MakeRecipe) -> None:
    one = recipes.identity_recipe(make_recipe())
    assert (
        recipes.identity_recipe(make_recipe(**{"runtime.num_workers": 4, "source": "elsewhere", "version": "v1"}))
        == one
    )
    assert recipes.identity_recipe(make_recipe(z_loss=1e-5)) != one


def test_the_difference_names_what_changed(make_recipe: MakeRecipe) -> None:
    before, after = make_recipe(), make_recipe(**{"z_loss": 1e-5, "schedule.decay": "linear"})
    lines = recipes.difference(resolved(before), resolved(after))
    assert lines == ['schedule.decay: "cosine" -> "linear"', "z_loss: 0.0001 -> 1e-05"]


def test_live_objects_agree_with_the_recipe(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(**{"z_loss": 1e-5, "optimizer.decay_norms": False})
    model, optimizer = runs.build(recipe)
    found = recipes.effective(model, optimizer, recipes.loop_settings(recipe))
    recipes.assert_effective(recipe, found)
    assert found["z_loss"] == pytest.approx(1e-5)
    assert found["optimizer"]["norms"]["weight_decay"] == 0.0
    assert sum(group["num_parameters"] for group in found["optimizer"].values()) == sum(
        p.numel() for p in model.parameters()
    )


def test_the_loss_is_compiled_where_the_blocks_are(make_recipe: MakeRecipe) -> None:
    for compile_ in (False, True):
        recipe = make_recipe(**{"runtime.parallel": {"compile": compile_}})
        assert recipes.loop_settings(recipe).step.compile_loss is compile_
        assert recipes.parallel_settings(recipe).compile is compile_


def test_a_coefficient_that_is_not_applied_is_refused(make_recipe: MakeRecipe) -> None:
    """What happened to OLMo 2: the config said 1e-5 and the loss used its default."""
    recipe = make_recipe(z_loss=1e-5)
    model, optimizer = runs.build(recipe)
    live = recipes.loop_settings(make_recipe(z_loss=1e-4))
    with pytest.raises(Refused, match=r"z_loss: 1e-05 -> 9\.99.*e-05|z_loss: 1e-05 -> 0\.0001"):
        recipes.assert_effective(recipe, recipes.effective(model, optimizer, live))
    optimizer.param_groups[0]["betas"] = (0.9, 0.999)
    with pytest.raises(Refused, match=r"optimizer\.matrices\.beta2: 0\.95 -> 0\.999"):
        recipes.assert_effective(recipe, recipes.effective(model, optimizer, recipes.loop_settings(recipe)))


def write_variant(folder: Path, name: str, **value: object) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"base": "tiny.yaml", "name": name, "source": "a test", **value}))
    return path


def test_a_variant_is_its_base_with_some_keys_replaced(folder: Path, make_recipe: MakeRecipe) -> None:
    change = {
        "model.norm_position": "pre",
        "optimizer.eps": 1e-5,
        "schedule": {**resolved(make_recipe())["schedule"], "peak_lr": 5e-3},
    }
    loaded = recipes.load(write_variant(folder, "pre", change=change), ["optimizer.eps=1e-6"])
    expected = make_recipe(
        **{"name": "pre", "model.norm_position": "pre", "optimizer.eps": 1e-6, "schedule.peak_lr": 5e-3}
    )
    assert loaded == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base": "pre.yaml", "change": {}}, "has a base itself"),
        ({"base": "tinny.yaml", "change": {}}, r"tinny\.yaml does not exist: did you mean .*tiny\.yaml"),
        ({"change": {"optimizer.epps": 1}}, "unknown key 'optimizer.epps': did you mean 'eps'"),
        ({"changes": {}}, "unknown key 'changes': did you mean 'change'"),
    ],
)  # fmt: skip
def test_a_variant_with_a_mistake(folder: Path, change: dict, words: str) -> None:
    write_variant(folder, "pre", change={})
    with pytest.raises(UsageError, match=words):
        recipes.load(write_variant(folder, "other", **change))


def test_what_was_published_is_kept_beside_what_runs(make_recipe: MakeRecipe) -> None:
    said = {
        "schedule.peak_lr": {"value": 3e-4, "source": "a config"},
        "optimizer.skip_step": {"value": True, "source": "a paper"},
    }
    recipe = make_recipe(published=said)
    assert (recipe.schedule.peak_lr, recipes.published(recipe).schedule.peak_lr) == (1e-2, 3e-4)
    assert recipes.published(recipe) == make_recipe(**{"schedule.peak_lr": 3e-4, "optimizer.skip_step": True})
    assert recipes.identity_recipe(recipe) == recipes.identity_recipe(make_recipe())


def test_a_recipe_is_loaded_as_published_by_name(folder: Path) -> None:
    change = {"published": {"z_loss": {"value": 1e-5, "source": "a config"}}}
    path = write_variant(folder, "said", change=change)
    assert (recipes.load(path).z_loss, recipes.load(path, as_published=True).z_loss) == (1e-4, 1e-5)
    assert recipes.load(path, ["z_loss=3e-5"], as_published=True).z_loss == 3e-5  # the user's word is the last
    assert recipes.load(path, as_published=True).published == {}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("schedule.peek_lr", 1.0, r"published names schedule\.peek_lr, which is no key"),
        ("schedule.peak_lr.deep", 1.0, "no key of a run"),
        ("stop_tokens", "many", r"published stop_tokens: .*'many' is no number of tokens"),
        ("schedule.decay_tokens", 5, "decay_tokens must exceed"),
    ],
)  # fmt: skip
def test_published_values_are_checked_too(make_recipe: MakeRecipe, key: str, value: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        recipes.check(make_recipe(published={key: {"value": value, "source": "a paper"}}))


def test_a_switch_at_its_default_is_no_part_of_the_identity(make_recipe: MakeRecipe) -> None:
    """So that a switch that comes later renames no run."""
    identity = recipes.identity_recipe(make_recipe())
    assert not {"norm_position", "qk_norm", "initialization"} & set(identity["model"])
    assert (
        not {"order", "order_chunk_instances"} & set(identity["data"]) and "skip_step_bug" not in identity["optimizer"]
    )
    thrown = recipes.identity_recipe(
        make_recipe(**{"model.qk_norm": False, "data.order": "olmo", "optimizer.skip_step_bug": True})
    )
    assert (thrown["model"]["qk_norm"], thrown["data"]["order"], thrown["optimizer"]["skip_step_bug"]) == (
        False,
        "olmo",
        True,
    )


def test_chunks_are_of_one_order_only(make_recipe: MakeRecipe) -> None:
    recipes.check(make_recipe(**{"data.order": "olmo-core", "data.order_chunk_instances": 2}))
    with pytest.raises(UsageError, match=r"needs data\.order"):
        recipes.check(make_recipe(**{"data.order_chunk_instances": 2}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"runtime.num_workers": 3},
            "3 workers cannot share a global batch of 8 instances equally; set runtime.num_workers to a divisor, such as 2",
        ),
        ({"runtime.num_workers": 16}, "16 workers cannot share a global batch of 8 .* such as 8"),
        ({"runtime.parallel.shard": "hsdp"}, "shard_ranks goes with shard: hsdp"),
        ({"runtime.parallel.shard": "fsdp", "runtime.parallel.shard_ranks": 2}, "shard_ranks goes with shard: hsdp"),
        (
            {"runtime.num_workers": 8, "runtime.parallel.shard": "hsdp", "runtime.parallel.shard_ranks": 3},
            "groups of 3 ranks do not divide 8 workers; .* such as 2",
        ),
    ],
)
def test_workers_that_divide_nothing_are_seen_before_anything_starts(
    make_recipe: MakeRecipe, change: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        recipes.check(make_recipe(**with_parallel(change)))
    recipes.check(make_recipe(**{"runtime.num_workers": 3, "runtime.min_workers": 1}))  # elastic: it trains on 2
    recipes.check(make_recipe(**{"runtime.parallel": {"shard": "hsdp", "shard_ranks": 2}}))  # torchrun says how many


def with_parallel(change: dict[str, object]) -> dict[str, object]:
    """The fixture leaves `parallel` at its default, so that its keys can only be given together."""
    inner = {key.rpartition(".")[2]: value for key, value in change.items() if "parallel" in key}
    return {key: value for key, value in change.items() if "parallel" not in key} | (
        {"runtime.parallel": inner} if inner else {}
    )
