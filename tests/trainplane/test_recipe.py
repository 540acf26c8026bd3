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
        ("schedule.final_lr_fraction", 1.5, "between 0 and 1"),
        ("runtime.microbatch_instances", 0, "at least 1"),
        ("model.num_attention_heads", 5, "does not divide"),
    ],
)
def test_values_that_do_not_fit_together(make_recipe: MakeRecipe, key: str, value: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        recipes.check(make_recipe(**{key: value, **({"data.global_batch_tokens": 96} if "sequence" in key else {})}))


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
