"""`triplane train` as a user runs it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from jobs.cli import app
from tests.trainplane.test_run import interrupted
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
    described = json.loads(invoke("run", recipe, "--dry-run", "--json").stdout)
    assert (
        described["published"] == ["schedule.peak_lr: 0.01 -> 0.002"]
        and described["flops"] > described["flops_per_token"] > 0
    )
    assert invoke("run", recipe, "--as", "imagined", "--dry-run").exit_code == 2


def test_a_changed_recipe_is_shown_and_refused_until_allowed(
    recipe: Path, invoke: Invoke, root: str, make_recipe: Callable
) -> None:
    interrupted(make_recipe(), root, 6)
    changed = ("run", recipe, "schedule.peak_lr=0.02", "z_loss=1e-5")
    failed = invoke(*changed)
    assert failed.exit_code == 1 and failed.stdout == ""
    for said in (
        "recipe.schedule.peak_lr: 0.01 -> 0.02",
        "recipe.z_loss: 0.0001 -> 1e-05",
        "--allow-recipe-change",
        "--fresh",
    ):
        assert said in failed.stderr
    allowed = invoke(*changed, "--allow-recipe-change", "--json")
    assert allowed.exit_code == 0, allowed.output
    assert json.loads(allowed.stdout)["step"] == 12
    steps = [
        row["step"] for row in json.loads(invoke("ledger", json.loads(allowed.stdout)["run"], "--json").stdout)["rows"]
    ]
    assert steps == list(range(5, 13))  # from the checkpoint at step 4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.sequence_length_tokens=24", "mix tiny has instances of 48 tokens, not 24: plan it again"),
        (
            "model.eos_token_id=5",
            "EOS 0, the model of recipe tiny has 96 rows and EOS 5: use the model of this tokenizer",
        ),
        ("model.vocab_size=64", "mix tiny has 96 tokens and EOS 0, the model of recipe tiny has 64 rows"),
        ("data.order=olmo", "AI2's orders read whole files: use the order feistel"),
        ("runtime.num_workers=3", "3 workers cannot share a global batch of 8 instances equally"),
        (
            "schedule.peak_lr=1e30",
            "lower the learning rate or look at the batch; checkpoints that were committed stand",
        ),
    ],
)
def test_bad_input_is_one_sentence(recipe: Path, invoke: Invoke, override: str, words: str) -> None:
    failed = invoke("run", recipe, override)
    assert failed.exit_code in (1, 2) and words in failed.stderr and failed.stdout == ""
    (sentence,) = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert len(failed.stderr.splitlines()) - failed.stderr.count("train tiny") == 1 and sentence


def test_a_damaged_checkpoint_is_set_aside_only_when_told(
    recipe: Path, invoke: Invoke, root: str, make_recipe: Callable
) -> None:
    plan = interrupted(make_recipe(), root, 10)
    (path,) = Path(plan.draft.url, "checkpoints", f"tokens-{8 * 8 * 48:015d}").glob("optimizer-*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    failed = invoke("run", recipe)
    assert failed.exit_code == 1 and path.name in failed.stderr
    gone_on = invoke("run", recipe, "--fall-back", "--json")
    assert gone_on.exit_code == 0, gone_on.output
    assert json.loads(gone_on.stdout)["step"] == 12
