"""A real `triplane train run` in a process of its own, killed with SIGKILL at a random step, ends with the bits of one that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from trainplane import checkpoint
from triplane import artifact, storage
from triplane.lm import weights
from triplane.recipe import resolved

STEPS, BATCH = 120, 8 * 48
DEADLINE_SECONDS = 120


def command(recipe: Path, root: str) -> list[str]:
    return [sys.executable, "-m", "jobs.train", str(recipe), "--root", root, "--json"]


def environment(log: Path) -> dict[str, str]:
    return os.environ | {"TRIPLANE_LOG": str(log), "OMP_NUM_THREADS": "1"}


def events(log: Path, name: str) -> list[dict]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [event for line in lines if line.endswith("}") and (event := json.loads(line))["event"] == name]


def run_to_end(recipe: Path, root: str, log: Path) -> dict:
    done = subprocess.run(
        command(recipe, root), env=environment(log), capture_output=True, text=True, timeout=DEADLINE_SECONDS
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def kill_after_step(recipe: Path, root: str, log: Path, step: int) -> int:
    """SIGKILL as soon as the step is seen in the log -> the last step that was taken."""
    process = subprocess.Popen(
        command(recipe, root), env=environment(log), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + DEADLINE_SECONDS
    while not any(event["step"] >= step for event in events(log, "step")):
        assert process.poll() is None and time.monotonic() < end, "the run ended, or hung, before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    return events(log, "step")[-1]["step"]


@pytest.fixture
def recipe(tmp_path: Path, make_recipe: Callable) -> Path:
    path = tmp_path / "tiny.yaml"
    changes = {"runtime.checkpoint_every_tokens": 7 * BATCH, "schedule.decay_tokens": 100 * BATCH}
    path.write_text(yaml.safe_dump(resolved(make_recipe(stop_tokens=STEPS * BATCH, **changes))))
    return path


def test_killed_twice_at_random_steps_and_resumed(root: str, recipe: Path, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    shutil.copytree(root, other)
    straight = run_to_end(recipe, root, tmp_path / "straight.log")

    # A second save awaits the first, so one stands by step 15; a step takes milliseconds, so the end is far from where the kill is sent.
    step = random.Random().randrange(15, 40)
    log = tmp_path / "killed.log"
    died_at = kill_after_step(recipe, other, log, step)
    run_url = storage.join(other, straight["run"])
    committed = checkpoint.read_ledger(run_url)
    assert len(committed) < STEPS and artifact.references(other, "run") == []  # it did die on the way
    again = kill_after_step(recipe, other, tmp_path / "again.log", died_at + 1)
    assert again > died_at and artifact.references(other, "run") == []
    resumed = run_to_end(recipe, other, tmp_path / "resumed.log")

    (resumption,) = events(tmp_path / "resumed.log", "resumed")
    assert 0 < resumption["step"] <= again and resumption["step"] % 7 == 0, f"killed at steps {died_at} and {again}"
    assert resumed["run"] == straight["run"]
    one, other_run = (storage.join(folder, straight["run"]) for folder in (root, other))
    rows = checkpoint.read_ledger(other_run)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))  # each once
    assert rows == checkpoint.read_ledger(one)
    assert_same_bits(straight["checkpoint"], resumed["checkpoint"])
    assert artifact.verify(other_run) == []


def assert_same_bits(one: str, other: str) -> None:
    for stem in ("model", "optimizer"):
        a, b = (
            weights.load_tensors(url, [e for e in artifact.load_url(url).files if e.name.startswith(stem)])
            for url in (one, other)
        )
        assert a.keys() == b.keys() and len(a) > 10
        assert all(torch.equal(a[name], b[name]) for name in a)
