"""`triplane train plan` as a user runs it: the 32B as it ran, on GPUs that are not here; no data, no root, nothing written."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs import train
from jobs.cli import app, train_plan

RUNS = Path(train.__file__).parent / "recipes/runs"


def plan(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["train", "plan", *arguments])
    return done.exit_code, done.stdout if done.exit_code == 0 else done.stderr


def test_the_32b_on_1024_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out = plan(str(RUNS / "olmo2_32b_stage1.yaml"), "--json")
    found = json.loads(out)
    assert code == 0 and (found["gpus"], found["mesh"]) == (1024, {"replicate": 4, "shard": 256})
    assert found["memory"]["parameters"] == 4 * 32_234_279_936 // 256
    assert (found["batch"]["steps"], found["batch"]["instances_per_gpu"]) == (721_901, 2)
    text = train_plan.text(found)
    assert "32,234,279,936 parameters, 1,024 GPUs (replicate 4 x shard 256), bf16, compiled" in text
    assert "  parameters                              0.47" in text and "  activations (estimate) " in text
    assert f"{found['communication']['all_gather'] / 1e9:,.2f}" in text and "721,901" in text
    assert not list(tmp_path.iterdir())


def test_other_gpus_are_asked_for_in_the_recipe() -> None:
    few, many = (
        json.loads(plan(str(RUNS / "olmo2_1b_stage1.yaml"), f"runtime.num_workers={n}", "--json")[1]) for n in (8, 64)
    )
    assert few["memory"]["optimizer"] == 8 * many["memory"]["optimizer"] and few["gpus"] == 8
    code, error = plan(str(RUNS / "olmo2_1b_stage1.yaml"), "runtime.num_workers=3")
    assert code == 2 and "3 workers cannot share a global batch of 512 instances equally" in error


def test_a_run_in_this_process_is_one_gpu() -> None:
    code, out = plan(str(RUNS / "tiny_stage1.yaml"))
    assert code == 0 and "1,902,720 parameters, 1 GPU (replicate 1), fp32, not compiled" in out and "estimate" in out
