"""The recipes we ship are those of the released runs: sizes, FLOPs, steps and learning rates, all golden."""

from pathlib import Path

import pytest

from dataplane import catalogue, planning
from jobs import train
from trainplane import recipe as recipes
from trainplane.flops import flops_per_token
from trainplane.recipe import RunRecipe
from trainplane.schedule import Schedule, lr_at, num_steps
from triplane.lm.model import num_parameters
from triplane.recipe import load

RECIPES = Path(train.__file__).parent / "recipes"
RUNS = sorted(
    path.relative_to(RECIPES / "runs").with_suffix("").as_posix() for path in (RECIPES / "runs").rglob("*.yaml")
)
ABLATIONS = [name for name in RUNS if name.startswith("ablations/")]
# Parameters in all, without the input embedding, and FLOPs a token at 4096 (OLMo-core's count): published models.
SIZES = {
    "190m": (267_424_512, 190_354_176, 1.595e9),
    "1b": (1_484_916_736, 1_279_395_840, 9.287e9),
    "7b": (7_298_617_344, 6_887_575_552, 4.777e10),
    "13b": (13_716_198_400, 13_202_396_160, 8.928e10),
    "32b": (32_234_279_936, 31_720_477_696, 2.064e11),
}
# Steps, and the learning rate by formula at the last one.
STAGE_1 = {
    "1b": (1_907_359, 7.4487e-5),
    "7b": (928_646, 6.1351e-5),
    "13b": (596_057, 9.0e-5),
    "32b": (721_901, 6.623e-5),
}
# Ingredient -> order seed, steps, first step at 0 (none: the last is), learning rate at the start.
STAGE_2 = {
    "1b": [(42069, 23_852, 23_842), (666, 23_852, 23_842), (42, 23_852, 23_842)],
    "7b": [(42, 11_931, 11_921), (42069, 11_931, 11_921), (666, 11_931, 11_921)],
    "13b": [(1110, 11_931, 11_921), (2662, 11_931, 11_921), (6209, 11_931, 11_921), (2662, 35_773, 35_763)],
    "32b": [(1110, 11_921, 11_921), (2662, 11_921, 11_921), (2662, 35_763, 35_763)],
}
STARTS = {"1b": 7.4487e-5, "7b": 6.1499e-5, "13b": 9.0e-5, "32b": 6.623e-5}
BATCHES = {"1b": 2_097_152, "7b": 4_194_304, "13b": 8_388_608, "32b": 8_388_608}
INGREDIENTS = [(size, number) for size, of in STAGE_2.items() for number in range(1, len(of) + 1)]


def run(name: str, as_published: bool = False) -> RunRecipe:
    return train.load(RECIPES / "runs" / f"{name}.yaml", as_published=as_published)


def rate(recipe: RunRecipe, step: int) -> float:
    return lr_at(step * recipe.data.global_batch_tokens, Schedule(**recipe.schedule.model_dump()))


def steps(recipe: RunRecipe) -> int:
    assert recipe.stop_tokens % recipe.data.global_batch_tokens == 0
    return num_steps(recipe.stop_tokens, recipe.data.global_batch_tokens)


@pytest.mark.parametrize("name", SIZES)
def test_models_have_the_published_size(name: str) -> None:
    config = recipes.to_config(load(RECIPES / "models" / f"olmo2_{name}.yaml", recipes.ModelRecipe))
    total, counted, flops = SIZES[name]
    assert num_parameters(config) == total
    assert num_parameters(config) - config.vocab_size * config.hidden_size == counted
    assert flops_per_token(config, 4096) == pytest.approx(flops, rel=5e-4)


@pytest.mark.parametrize("name", RUNS)
def test_every_run_can_be_read_as_it_ran_and_as_published(name: str) -> None:
    recipe = run(name)
    assert recipe.source and not run(name, as_published=True).published
    assert recipe.data.mix.startswith(("mix/olmo-mix-1124", "mix/dolmino-mix-1124-", "mix/micro-anneal-", "mix/demo-"))


@pytest.mark.parametrize("size", STAGE_1)
def test_stage_1_stops_where_it_did(size: str) -> None:
    recipe = run(f"olmo2_{size}_stage1")
    last, lr = STAGE_1[size]
    assert (steps(recipe), recipe.data.global_batch_tokens) == (last, BATCHES[size])
    assert rate(recipe, last) == pytest.approx(lr, rel=5e-5)
    assert recipe.schedule.warmup_tokens == (16_777_216_000 if size == "32b" else 8_388_608_000)


def test_the_warm_up_in_steps_differs_by_batch() -> None:
    """8.4B tokens are 4,000 steps of the 1B, 2,000 of the 7B and 1,000 of the 13B."""
    peaks = {size: recipe.schedule.peak_lr for size in STAGE_1 for recipe in [run(f"olmo2_{size}_stage1")]}
    assert peaks == {"1b": 4e-4, "7b": 3e-4, "13b": 9e-4, "32b": 6e-4}
    for size, warmup in {"1b": 4000, "7b": 2000, "13b": 1000, "32b": 2000}.items():
        recipe = run(f"olmo2_{size}_stage1")
        assert rate(recipe, warmup) == pytest.approx(peaks[size])
        assert rate(recipe, warmup + 100_000) < peaks[size]
        assert rate(recipe, warmup // 2) == pytest.approx(peaks[size] / 2)


def test_the_13b_goes_into_a_second_epoch() -> None:
    """The mix has as many tokens as the 7B, stopped after one epoch, saw."""
    assert run("olmo2_13b_stage1").stop_tokens / run("olmo2_7b_stage1").stop_tokens == pytest.approx(1.2837, abs=1e-4)


@pytest.mark.parametrize(("size", "number"), INGREDIENTS)
def test_every_ingredient_of_stage_2(size: str, number: int) -> None:
    seed, last, zero = STAGE_2[size][number - 1]
    recipe = run(f"olmo2_{size}_stage2_ingredient{number}")
    assert (recipe.data.order_seed, steps(recipe), recipe.init_from) == (seed, last, f"run/olmo2-{size}-stage1")
    assert [rate(recipe, step) > 0 for step in (zero - 1, zero, last)] == [True, False, False]
    assert recipe.schedule.peak_lr == pytest.approx(STARTS[size], rel=1e-4)
    assert rate(recipe, 1) == pytest.approx(recipe.schedule.peak_lr * (1 - 1 / zero))
    assert ("300b" in recipe.data.mix) == (last > 30_000)


def test_stage_2_starts_where_stage_1_stopped() -> None:
    """But for the 7B, whose config has the rate that was logged last: of step 928,000, not of step 928,646."""
    for size in STAGE_2:
        stage1, start = run(f"olmo2_{size}_stage1"), run(f"olmo2_{size}_stage2_ingredient1").schedule.peak_lr
        logged = 928_000 if size == "7b" else steps(stage1)
        assert start == pytest.approx(rate(stage1, logged), rel=1e-5)
    assert rate(run("olmo2_7b_stage1"), 928_646) != pytest.approx(6.1499e-5, rel=1e-4)


def test_what_ran_and_what_was_published() -> None:
    for size in ("1b", "7b", "13b"):
        for stage in ("stage1", "stage2_ingredient1"):
            name = f"olmo2_{size}_{stage}"
            assert (run(name).z_loss, run(name, as_published=True).z_loss) == (1e-4, 1e-5)
    thirteen = run("olmo2_13b_stage1", as_published=True)
    assert (thirteen.schedule.peak_lr, steps(thirteen), thirteen.schedule.warmup_tokens) == (
        3e-4,
        464_323,
        2000 * 8_388_608,
    )
    ran, said = run("olmo2_32b_stage1"), run("olmo2_32b_stage1", as_published=True)
    assert (ran.optimizer.skip_step_bug, said.optimizer.skip_step_bug, ran.z_loss) == (True, False, 1e-5)


def test_orders_and_filters() -> None:
    for size in ("1b", "7b", "13b"):
        data = run(f"olmo2_{size}_stage1").data
        assert (data.order, data.order_seed, data.instance_filter, data.order_chunk_instances) == (
            "olmo",
            6198,
            True,
            1,
        )
        # 13B: its list names some files twice, and a mix of ours repeats by number.
        assert run(f"olmo2_{size}_stage2_ingredient1").data.order == ("feistel" if size == "13b" else "olmo")
    recipe = run("olmo2_32b_stage1")
    data = recipe.data
    assert (data.order, data.order_seed, data.instance_filter, data.order_chunk_instances) == (
        "olmo-core",
        34521,
        False,
        2,
    )
    assert (recipe.init_seed, recipe.optimizer.skip_step) == (12536, True)
    assert recipe.schedule.decay_tokens == 774_861 * 8_388_608


def test_the_190m_sees_20_tokens_a_parameter() -> None:
    recipe = run("olmo2_190m")
    assert recipe.stop_tokens / SIZES["190m"][1] == pytest.approx(20, rel=1e-3) and recipe.runtime.num_workers == 1


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("micro_anneals/")])
def test_a_micro_anneal_is_one_epoch_of_its_mix(name: str) -> None:
    """As far as the sizes of the sources are published: within a batch."""
    recipe = run(name)
    made = catalogue.load(RECIPES / "mixes" / "micro_anneals.yaml")
    sizes = {source.name: source.published.tokens for source in made.sources if source.published}
    planned = sum(planning.mixed_tokens(made, recipe.data.mix.removeprefix("mix/"), sizes).values())
    assert 0 <= planned - recipe.stop_tokens < recipe.data.global_batch_tokens
    assert (recipe.init_from, recipe.data.order_seed, recipe.schedule.peak_lr) == (
        "run/olmo2-7b-stage1",
        7201,
        6.1499e-5,
    )
    assert rate(recipe, steps(recipe)) == 0.0 < rate(recipe, steps(recipe) - 1)


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_one_thing(name: str) -> None:
    base, ablation = recipes.identity_recipe(run("olmo2_190m")), recipes.identity_recipe(run(name))
    changes = [line for line in recipes.difference(base, ablation) if not line.startswith("name:")]
    expected = {
        "pre_norm": 'model.norm_position: null -> "pre"',
        "no_qk_norm": "model.qk_norm: null -> false",
        "scaled_initialization": 'model.initialization: null -> "scaled"',
        "adamw_eps_1e5": "optimizer.eps: 1e-08 -> 1e-05",
        "decayed_embeddings": "optimizer.decay_embeddings: false -> true",
        "no_z_loss": "z_loss: 1e-05 -> 0.0",
        "no_instance_filter": "data.instance_filter: true -> false",
    }
    assert changes == [expected[name.removeprefix("ablations/")]] and len(ABLATIONS) == len(expected)
