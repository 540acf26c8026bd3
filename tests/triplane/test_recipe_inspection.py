"""Every mistake of a recipe in one look: each with its place, none hidden by another, none said twice."""

from pathlib import Path
from typing import Literal

import pytest

from dataplane import catalogue
from dataplane.recipe import BuildRecipe
from trainplane import recipe as run_recipes
from triplane import recipe
from triplane.errors import UsageError
from triplane.recipe import Problem, Strict, Tokens
from triplane.recipe_inspection import inspect

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"


class Inner(Strict):
    size: int
    order: Literal["up", "down"] = "up"


class Outer(Strict):
    name: str
    tokens: Tokens
    inner: Inner
    rules: tuple[str | Inner | int, ...] = ()


def problems(tmp_path: Path, text: str, *overrides: str) -> list[tuple[str, str]]:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    found = inspect(path, Outer, overrides)
    assert (found.recipe is None) or not found.problems or "twice" in str(found.problems)
    if found.problems:
        with pytest.raises(UsageError):
            recipe.load(path, Outer, overrides)
    else:
        assert found.recipe == recipe.load(path, Outer, overrides)
    return [(one.place.replace(f"{path}:", ""), one.message) for one in found.problems]


def test_a_good_recipe_has_no_problems(tmp_path: Path) -> None:
    assert problems(tmp_path, "name: a\ntokens: 2M\ninner: {size: 1}\nrules: [x, {size: 2}]\n") == []


def test_all_mistakes_are_found_at_once(tmp_path: Path) -> None:
    text = (
        "name: 1\nname: 2\ntoken: 2 Mx\ninner:\n  size: big\n  ordr: sideways\nrules:\n  - {size: x}\n  - x\nextra: 1\n"
    )
    assert problems(tmp_path, text, "inner.size.a=1", "rules.7=3", "nonsense") == [
        ("2", "key 'name' is given twice (first at {}:1): remove one".format(tmp_path / "a.yaml")),
        ("override inner.size.a=1", "override inner.size.a=1: 'a' is not in 'big': correct the path"),
        ("override rules.7=3", "override rules.7=3: '7' is not in a list of 2: correct the path"),
        ("override nonsense", "override 'nonsense' is not KEY=VALUE: write for instance model.num_layers=4"),
        ("6", "unknown key 'inner.ordr': did you mean 'order'?"),
        ("3", "unknown key 'token': did you mean 'tokens'?"),
        ("2", "'name' is 2: input should be a valid string"),
        ("3", "tokens: '2 Mx' is no number of tokens: write an integer, or a number with one of tokens, K, M, B, T"),
        ("5", "'inner.size' is \"big\": input should be a valid integer"),
        ("6", "'inner.order' is \"sideways\": input should be 'up' or 'down'"),
        ("10", "unknown key 'extra': valid keys here are inner, name, rules, tokens"),
        ("8", "'rules.0.size' is \"x\": input should be a valid integer"),
    ]


def test_an_override_is_the_place_of_its_own_mistake(tmp_path: Path) -> None:
    text = "name: a\ntokens: 2M\ninner: {size: 1}\n"
    (only,) = problems(tmp_path, text, "inner.size=x")
    assert only[0] == "override inner.size=x"


def test_text_that_cannot_be_read(tmp_path: Path) -> None:
    (only,) = problems(tmp_path, "name: a\ninner: {\n")
    assert only[0] == "3" and only[1].startswith("not YAML")
    absent = tmp_path / "absent.yaml"
    (problem,) = inspect(absent, Outer).problems
    assert problem.place == str(absent) and "does not exist" in problem.message


def test_a_run_names_a_model_and_values_that_do_not_fit(tmp_path: Path) -> None:
    text = (RECIPES / "runs" / "olmo2_7b_stage1.yaml").read_text()
    path = tmp_path / "run.yaml"
    path.write_text(
        text.replace("num_workers: 128", "num_workers: 127").replace(
            "decay_tokens: 5_000_000_000_000", "decay_tokens: 5_000"
        )
    )
    found = run_recipes.inspect(path, ["runtime.min_workers=200"], RECIPES / "models")
    lines = {text[: text.index(key)].count("\n") + 1 for key in ("decay_tokens",)}
    assert [one.message for one in found.problems] == [
        "schedule.decay_tokens must exceed schedule.warmup_tokens",
        "runtime.min_workers exceeds runtime.num_workers",
        "groups of 64 ranks do not divide 127 workers; set runtime.parallel.shard_ranks to a divisor of runtime.num_workers, such as 1",
    ]
    assert found.problems[0].place == f"{path}:{lines.pop()}"
    assert found.problems[1].place == "override runtime.min_workers=200"
    path.write_text(text.replace("model: olmo2_7b", "model: olmo2_8b"))
    (missing,) = run_recipes.inspect(path, (), RECIPES / "models").problems
    assert missing.place == f"{path}:10" and "did you mean" in missing.message


def test_every_shipped_recipe_passes() -> None:
    for path in sorted((RECIPES / "runs").rglob("*.yaml")):
        assert run_recipes.inspect(path, (), RECIPES / "models").problems == (), path
    for path in sorted((RECIPES / "mixes").glob("*.yaml")):
        found = catalogue.inspect(path)
        assert found.problems == () and isinstance(found.recipe, BuildRecipe), path


def test_a_build_names_a_source_that_is_not_there(tmp_path: Path) -> None:
    text = (RECIPES / "mixes" / "dolmino_mix_1124.yaml").read_text()
    path = tmp_path / "build.yaml"
    path.write_text(text.replace("- flan\n", "- flann\n"))
    line = text[: text.index("- flan\n")].count("\n") + 1
    (missing,) = catalogue.inspect(path, (), RECIPES / "sources").problems
    assert missing == Problem(f"{path}:{line}", missing.message) and "flan.yaml?" in missing.message


def test_a_wrong_value_hides_no_misfit_of_others(tmp_path: Path) -> None:
    text = (RECIPES / "runs" / "olmo2_7b_stage1.yaml").read_text()
    path = tmp_path / "run.yaml"
    path.write_text(text.replace("init_seed: 6198", "init_seed: x").replace("shard_ranks: 64", "shard_ranks: 60"))
    found = run_recipes.inspect(path, ["schedule.decay=cosin"], RECIPES / "models")
    assert [one.message.split(";")[0] for one in found.problems] == [
        "'init_seed' is \"x\": input should be a valid integer",
        "'schedule.decay' is \"cosin\": input should be 'cosine' or 'linear'",
        "groups of 60 ranks do not divide 128 workers",
    ]
    assert found.recipe is None and found.likely is not None and found.broken == {"init_seed", "schedule.decay"}


def test_a_misfit_of_a_wrong_value_itself_is_not_said(tmp_path: Path) -> None:
    text = (RECIPES / "runs" / "olmo2_7b_stage1.yaml").read_text()
    path = tmp_path / "run.yaml"
    path.write_text(text.replace("num_workers: 128", "num_workers: all"))
    found = run_recipes.inspect(path, ["runtime.min_workers=64"], RECIPES / "models")
    assert [one.message for one in found.problems] == [
        "'runtime.num_workers' is \"all\": input should be a valid integer"
    ]
