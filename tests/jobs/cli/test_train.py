"""`triplane train` as a user runs it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from jobs.cli import app
from triplane.recipe import resolved

Invoke = Callable[..., Result]


@pytest.fixture
def recipe(tmp_path: Path, make_recipe: Callable) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(resolved(make_recipe())))
    return path


@pytest.fixture
def invoke(root: str) -> Invoke:
    return lambda *arguments: CliRunner().invoke(app, ["train", *map(str, arguments), "--root", root])


def test_run_prints_what_it_made_and_is_idempotent(recipe: Path, invoke: Invoke) -> None:
    first = invoke("run", recipe, "--json")
    assert first.exit_code == 0, first.output
    made = json.loads(first.stdout)
    assert (made["step"], made["run"].split("@")[0]) == (12, "run/tiny")
    assert json.loads(invoke("run", recipe, "--json").stdout) == made


def test_dry_run_says_what_would_be_done_and_writes_nothing(recipe: Path, invoke: Invoke, root: str) -> None:
    shown = invoke("run", recipe, "stop_tokens=3840", "--dry-run", "--json")
    assert shown.exit_code == 0, shown.output
    described = json.loads(shown.stdout)
    assert (described["steps"], described["finished"], described["num_workers"]) == (10, False, 0)
    assert described["mix"].startswith("mix/tiny@")
    assert not Path(root, "run").exists()


def test_wrong_use_is_2_and_names_the_key(recipe: Path, invoke: Invoke) -> None:
    failed = invoke("run", recipe, "optimizer.beta3=1")
    assert failed.exit_code == 2
    assert "beta3" in failed.stderr and failed.stdout == ""
    assert invoke("run", recipe, "--fresh", "--allow-recipe-change").exit_code == 2


def test_a_missing_mix_is_1_and_says_what_to_do(recipe: Path, invoke: Invoke) -> None:
    failed = invoke("run", recipe, "data.mix=mix/tinny")
    assert failed.exit_code == 1
    assert "tinny" in failed.stderr and "did you mean" in failed.stderr


def test_the_ledger_can_be_read(recipe: Path, invoke: Invoke) -> None:
    invoke("run", recipe)
    report = json.loads(invoke("ledger", "run/tiny", "--json").stdout)
    assert len(report["rows"]) == 12
    assert report["spike_scores"] == {
        "loss_paper_7s_1000": 0.0, "grad_norm_paper_7s_1000": 0.0, "loss_core_6s_128": 0.0, "grad_norm_core_6s_128": 0.0,
    }  # fmt: skip
    table = invoke("ledger", "run/tiny").stdout.splitlines()
    assert len(table) == 12 + 4 and "loss" in table[0]


def test_soup_averages_finished_runs(recipe: Path, invoke: Invoke) -> None:
    for seed in (1, 2):
        assert invoke("run", recipe, f"name=order-{seed}", f"data.order_seed={seed}", "stop_tokens=768").exit_code == 0
    described = json.loads(invoke("soup", "mean", "run/order-1", "run/order-2", "--dry-run", "--json").stdout)
    assert [one.split("@")[0] for one in described["ingredients"]] == ["run/order-1", "run/order-2"]
    made = json.loads(invoke("soup", "mean", "run/order-1", "run/order-2", "--json").stdout)
    assert made["soup"].startswith("checkpoint/mean@") and Path(made["checkpoint"], "manifest.json").exists()
    assert invoke("soup", "mean", "run/order-1").exit_code == 2


def test_status_shows_a_curve_and_writes_a_page(recipe: Path, invoke: Invoke, tmp_path: Path) -> None:
    invoke("run", recipe)
    shown = invoke("status", "run/tiny", "--html", tmp_path / "status.html")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("loss\n") and "•" in shown.stdout and "percent: 100.0" in shown.stdout
    assert "  loss_paper_7s_1000: 0.0" in shown.stdout and "<svg" in (tmp_path / "status.html").read_text()
    found = json.loads(invoke("status", "run/tiny", "--json").stdout)
    assert (found["step"], found["finished"], found["skipped_steps"]) == (12, True, 0)
    assert invoke("status", "run/absent").exit_code == 1


def test_metrics_are_exported(recipe: Path, invoke: Invoke, tmp_path: Path) -> None:
    invoke("run", recipe)
    made = invoke("export-metrics", "run/tiny", "--to", "tensorboard", "--out", tmp_path / "tb", "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["steps"] == 12 and len(list((tmp_path / "tb").rglob("*tfevents*"))) == 1


def test_a_recipe_runs_as_published_by_name(recipe: Path, invoke: Invoke) -> None:
    value = yaml.safe_load(recipe.read_text()) | {
        "published": {"schedule.peak_lr": {"value": 2e-3, "source": "a paper"}}
    }
    recipe.write_text(yaml.safe_dump(value))
    ends = [
        json.loads(invoke("run", recipe, "--as", which, "--dry-run", "--json").stdout)["lr_at_end"]
        for which in ("ran", "published")
    ]
    assert ends[0] == pytest.approx(5 * ends[1])
    assert invoke("run", recipe, "--as", "imagined", "--dry-run").exit_code == 2
