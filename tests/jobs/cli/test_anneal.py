"""`triplane train anneal` as a user runs it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from jobs import anneal as annealing
from jobs import train
from jobs.cli import app
from tests.trainplane.test_retention import damaged
from tests.trainplane.test_run import interrupted
from trainplane import cluster
from triplane.recipe import resolved

Invoke = Callable[..., Result]
BATCH = 8 * 48
TO_ZERO = {
    "name": "stage2", "init_from": "run/tiny", "stop_tokens": 3 * BATCH, "schedule.decay": "linear", "schedule.warmup_tokens": 0,
    "schedule.decay_tokens": 3 * BATCH, "schedule.final_lr_fraction": 0.0, "schedule.peak_lr": 5e-3,
}  # fmt: skip


@pytest.fixture
def invoke(root: str) -> Invoke:
    return lambda *arguments: CliRunner().invoke(app, ["train", *map(str, arguments), "--root", root])


@pytest.fixture
def stage2(tmp_path: Path, make_recipe: Callable, invoke: Invoke) -> Path:
    """The recipe of stage 2; stage 1 is trained."""
    for name, recipe in (("stage1", make_recipe(stop_tokens=4 * BATCH)), ("stage2", make_recipe(**TO_ZERO))):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(resolved(recipe)))
    assert invoke("run", tmp_path / "stage1.yaml").exit_code == 0
    return tmp_path / "stage2.yaml"


def scores(monkeypatch: pytest.MonkeyPatch, of_soup: float) -> list[tuple[str, ...]]:
    """A stand-in for the evaluation plane: ingredients score 2.0; the documents it was asked for."""
    asked: list[tuple[str, ...]] = []

    def scorer(root: str, held_out: tuple[str, ...]) -> Callable[[str], float]:
        asked.append(held_out)
        return lambda url: of_soup if "-soup@" in url else 2.0

    monkeypatch.setattr(annealing, "scorer", scorer)
    return asked


def test_dry_run_says_what_would_be_done_and_writes_nothing(
    stage2: Path, invoke: Invoke, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(monkeypatch, 2.0)
    before = sorted(Path(root).rglob("*"))
    shown = invoke("anneal", stage2, "--order", 1, "--order", 2, "--held-out", "heldout/x", "--dry-run", "--json")
    assert shown.exit_code == 0, shown.output
    described = json.loads(shown.stdout)
    assert described["parent"].startswith("run/tiny@") and described["parent_optimizer"] == "loaded"
    assert [one["run"] for one in described["ingredients"]] == ["stage2-order-1", "stage2-order-2"]
    assert (described["soup"], described["judged_on"]) == ("checkpoint/stage2-soup", ["heldout/x"])
    assert described["ingredients"][0]["steps"] == 3 and described["mixes"][0].startswith("mix/tiny@")
    assert sorted(Path(root).rglob("*")) == before
    text = invoke("anneal", stage2, "--order", 1, "--order", 2, "--dry-run").stdout
    assert "  - run stage2-order-1, mix mix/tiny, order_seed 1, steps 3" in text


def test_ingredients_a_soup_and_a_verdict(stage2: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scores(monkeypatch, 1.9)
    arguments = ("anneal", stage2, "--order", 1, "--order", 2, "--held-out", "heldout/x", "--continue-lr", "--json")
    first = invoke(*arguments)
    assert first.exit_code == 0, first.output
    made = json.loads(first.stdout)
    assert made["soup"].startswith("checkpoint/stage2-soup@") and made["keep"] == made["soup"] and made["soup_is_best"]
    assert len(made["ingredients"]) == 2 and Path(made["checkpoint"], "manifest.json").exists()
    assert sorted(made["bits_per_byte"].values()) == [1.9, 2.0, 2.0] and asked == [("heldout/x",)]
    assert json.loads(invoke(*arguments).stdout) == made  # nothing is made twice


def test_a_soup_that_is_worse_is_an_alert_and_not_kept(
    stage2: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(monkeypatch, 2.1)
    failed = invoke("anneal", stage2, "--order", 1, "--order", 2, "--held-out", "heldout/x")
    assert failed.exit_code == 4
    assert "soup_is_best: False" in failed.stdout and "keep: run/stage2-order-" in failed.stdout


def test_mistakes_are_one_line(stage2: Path, invoke: Invoke) -> None:
    failed = invoke("anneal", stage2, "--order", 1, "--order", 1)
    assert failed.exit_code == 2 and "each order once" in failed.stderr
    failed = invoke("anneal", stage2, "--set", "schedule.final_lr_fraction=0.1")
    assert failed.exit_code == 2 and "an anneal ends at 0" in failed.stderr
    for more in ((), ("--dry-run",)):  # before anything is trained
        failed = invoke("anneal", stage2, "--order", 1, "--order", 2, "--held-out", "absent.jsonl", *more)
        assert failed.exit_code == 1 and "absent.jsonl" in failed.stderr and "train stage2" not in failed.stderr
    failed = invoke("anneal", stage2, "--from", "run/absent", "--dry-run")
    assert failed.exit_code == 1 and "run/absent" in failed.stderr


def test_every_ingredient_is_planned_before_the_first_is_trained(
    stage2: Path, invoke: Invoke, root: str, tmp_path: Path, make_recipe: Callable
) -> None:
    """The second has a mix that does not fit: nothing is trained, in a dry run and in a real one."""
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(resolved(make_recipe(**TO_ZERO | {"name": "other", "data.order": "olmo"}))))
    for more in (("--dry-run",), ()):
        failed = invoke("anneal", stage2, other, *more)
        assert failed.exit_code == 2 and "AI2's orders read whole files" in failed.stderr
    assert not list(Path(root).glob("run/stage2@*")) and invoke("anneal", stage2, "--dry-run").exit_code == 0


def test_an_ingredient_under_another_recipe_is_gone_on_from_when_allowed(
    stage2: Path, invoke: Invoke, root: str, make_recipe: Callable
) -> None:
    interrupted(make_recipe(**TO_ZERO | {"runtime.checkpoint_every_tokens": BATCH}), root, 2)
    changed = ("anneal", stage2, "--set", "z_loss=2e-4", "--json")
    for more in ((), ("--dry-run",)):
        refused = invoke(*changed, *more)
        assert refused.exit_code == 1 and "z_loss: 0.0001 -> 0.0002" in refused.stderr
    allowed = invoke(*changed, "--allow-recipe-change")
    assert allowed.exit_code == 0, allowed.output
    (one,) = json.loads(allowed.stdout)["ingredients"]
    rows = json.loads(invoke("ledger", one["run"], "--json").stdout)["rows"]
    assert [row["step"] for row in rows] == [2, 3]  # on from step 1
    assert invoke(*changed, "--allow-recipe-change", "--fresh").exit_code == 2


def test_a_damaged_checkpoint_of_an_ingredient_is_passed_over_when_told_to(
    stage2: Path, invoke: Invoke, root: str, make_recipe: Callable
) -> None:
    """What the error advises is what the command takes; with and without Ray the same call is made."""
    ingredient = {**TO_ZERO, "name": "stage2-order-1", "data.order_seed": 1, "runtime.checkpoint_every_tokens": BATCH}
    run = interrupted(make_recipe(**ingredient), root, 3).draft
    damaged(run, 2)
    command = ("anneal", stage2, "--order", 1, "--set", f"runtime.checkpoint_every_tokens={BATCH}", "--json")
    failed = invoke(*command)
    assert failed.exit_code == 1 and "--fall-back goes on from the checkpoint before it" in failed.stderr
    gone_on = invoke(*command, "--fall-back")
    assert gone_on.exit_code == 0, gone_on.output
    assert json.loads(gone_on.stdout)["keep"] == run.reference


@pytest.mark.parametrize("fall_back", [False, True])
def test_runs_on_ray_are_told_to_fall_back_too(
    make_recipe: Callable, monkeypatch: pytest.MonkeyPatch, fall_back: bool
) -> None:
    monkeypatch.setattr(cluster, "start_ray", lambda cpus: None)
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(cluster, "train", lambda recipe, root, **options: options["fall_back"])
    recipes = [make_recipe(name=name, **{"runtime.num_workers": 1}) for name in "ab"]
    assert train.run_many(recipes, "root", fall_back=fall_back) == [fall_back, fall_back]
