"""The recipes we ship are those of the released runs: parameter counts and learning rates by formula."""

from pathlib import Path

import pytest

from jobs import train
from trainplane import recipe as recipes
from trainplane.schedule import lr_at, num_steps
from triplane.lm.model import num_parameters
from triplane.recipe import load

RECIPES = Path(train.__file__).parent / "recipes"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("1b", 1_484_916_736), ("7b", 7_298_617_344), ("13b", 13_716_198_400), ("32b", 32_234_279_936)],
)
def test_models_have_the_published_size(name: str, parameters: int) -> None:
    model = load(RECIPES / "models" / f"olmo2_{name}.yaml", recipes.ModelRecipe)
    assert num_parameters(recipes.to_config(model)) == parameters


def test_stage_1_of_the_7b_stops_where_it_did() -> None:
    recipe = train.load(RECIPES / "runs" / "olmo2_7b_stage1.yaml")
    steps = num_steps(recipe.stop_tokens, recipe.data.global_batch_tokens)
    assert steps == 928_646
    schedule = recipes.loop_settings(recipe).step.schedule
    assert lr_at(recipe.stop_tokens, schedule) == pytest.approx(6.1351e-5, rel=1e-4)


def test_stage_2_of_the_7b_takes_ten_steps_at_zero() -> None:
    recipe = train.load(RECIPES / "runs" / "olmo2_7b_stage2.yaml")
    batch = recipe.data.global_batch_tokens
    schedule = recipes.loop_settings(recipe).step.schedule
    assert num_steps(recipe.stop_tokens, batch) == 11_931
    assert [lr_at(step * batch, schedule) > 0 for step in (11_920, 11_921, 11_931)] == [True, False, False]
