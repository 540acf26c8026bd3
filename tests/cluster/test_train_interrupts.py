"""Every way a run is interrupted, each at a named point that is proven to be hit: the same command ends with the bits and rows of one that was not.

Real processes, on one machine. What happens to Ray's workers and driver: test_train_ray.py, test_train_ray_ends.py.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
import yaml

from trainplane import checkpoint
from trainplane.recipe import RunRecipe
from trainplane.run import train
from triplane import artifact, storage
from triplane.artifact_gc import collect_garbage
from triplane.lm import weights
from triplane.recipe import resolved

STEPS, EVERY, BATCH = 60, 15, 8 * 48
DEADLINE_SECONDS = 120
GRACE_SECONDS = 30
TRAIN = [sys.executable, "-m", "jobs.train"]
FAILING = [sys.executable, "-m", "tests.cluster.failing_run"]
TWO_RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "jobs.train"]


def environment(log: Path | None = None) -> dict[str, str]:
    found = os.environ | {"OMP_NUM_THREADS": "1"}
    return found if log is None else found | {"TRIPLANE_LOG": str(log)}


def start(command: Sequence[str], log: Path | None = None) -> subprocess.Popen[str]:
    """A process group of its own, so that nothing of it can outlive the test."""
    return subprocess.Popen(
        command, env=environment(log), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip


def finish(recipe: Path, root: Path, log: Path | None = None) -> dict:
    process = start([*TRAIN, str(recipe), "--root", str(root), "--json"], log)
    out, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, err
    return json.loads(out)


def go_on(recipe: Path, root: Path) -> dict:
    """As `finish` does, in this process, which has torch already."""
    result = train(RunRecipe.model_validate(yaml.safe_load(recipe.read_text())), str(root))
    return {"run": result.reference, "checkpoint": result.checkpoint_url}


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not reached():
        assert process.poll() is None and time.monotonic() < end, (
            f"it ended before it got there: {process.communicate()}"
        )
        time.sleep(0.01)


def step_reached(log: Path, step: int) -> Callable[[], bool]:
    def reached() -> bool:
        lines = log.read_text().splitlines() if log.exists() else []
        return any(
            e["event"] == "step" and e["step"] >= step
            for line in lines
            if line.endswith("}")
            for e in [json.loads(line)]
        )

    return reached


def checkpointed(log: Path) -> Callable[[], bool]:
    return lambda: log.exists() and '"event": "checkpoint"' in log.read_text()


def steps_standing(run_url: str) -> list[int]:
    """Steps of the committed checkpoints of a run; commits nothing."""
    checkpoints = storage.join(run_url, "checkpoints")
    names = [n for n in storage.folders(checkpoints) if storage.exists(storage.join(checkpoints, n, "manifest.json"))]
    return [int(name.removeprefix("tokens-")) // BATCH for name in names]


def tensors_of(url: str) -> dict[str, torch.Tensor]:
    files = [f for f in artifact.load_url(url).files if f.name.startswith(("model", "optimizer"))]
    return weights.load_tensors(url, files)


def assert_as_if_undisturbed(straight: dict, root: Path, resumed: dict) -> None:
    """Same run, each step once with the same row, same weights and optimizer state to the bit, all files as their manifests say."""
    assert resumed["run"] == straight["run"]
    one, other = straight["checkpoint"], resumed["checkpoint"]
    rows = checkpoint.read_ledger(str(root / resumed["run"]))
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows == straight["rows"]
    a, b = tensors_of(one), tensors_of(other)
    assert a.keys() == b.keys() and len(a) > 40 and all(torch.equal(a[name], b[name]) for name in a)
    assert steps_standing(str(root / resumed["run"])) == [15, 30, 45, 60]
    assert artifact.verify(str(root / resumed["run"])) == []


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root without a run, to copy."""
    from tests.training_fixtures import write_mix

    folder = tmp_path_factory.mktemp("interrupts")
    write_mix(str(folder / "root"), folder)
    return folder / "root"


@pytest.fixture(scope="module")
def recipe(data: Path) -> Path:
    from tests.training_fixtures import RECIPE, merged

    changes = {
        "runtime.checkpoint_every_tokens": EVERY * BATCH, "stop_tokens": STEPS * BATCH, "schedule.decay_tokens": 100 * BATCH,
        "optimizer.skip_step": True,
    }  # fmt: skip
    path = data.parent / "tiny.yaml"
    path.write_text(yaml.safe_dump(resolved(RunRecipe.model_validate(merged(RECIPE, changes)))))
    return path


@pytest.fixture(scope="module")
def straight(data: Path, recipe: Path) -> dict:
    """The run that nothing disturbs."""
    shutil.copytree(data, data.parent / "straight")
    result = finish(recipe, data.parent / "straight")
    return result | {"rows": checkpoint.read_ledger(str(data.parent / "straight" / result["run"]))}


@pytest.fixture
def root(data: Path, tmp_path: Path) -> Path:
    shutil.copytree(data, tmp_path / "root")
    return tmp_path / "root"


def run_url(root: Path) -> str:
    (run,) = (root / "run").iterdir()
    return str(run)


@pytest.mark.parametrize(
    ("point", "standing", "goes_on_from"),
    [("while_uploading", [15], 15), ("after_record", [15], 30), ("after_manifest", [15, 30], 30)],
)
def test_killed_in_the_middle_of_a_save(
    straight: dict,
    recipe: Path,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
    standing: list[int],
    goes_on_from: int,
) -> None:
    """kill -9 while the checkpoint of step 30 is saved. What is recorded is committed by the next start; less than that does not stand."""
    marker, log = tmp_path / "hit", tmp_path / "resumed.log"
    process = start([*FAILING, str(recipe), str(root), str(30 * BATCH), point, str(marker)])
    wait_until(marker.exists, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert steps_standing(run_url(root)) == standing
    monkeypatch.setenv("TRIPLANE_LOG", str(log))
    resumed = go_on(recipe, root)
    (event,) = [e for line in log.read_text().splitlines() if (e := json.loads(line))["event"] == "resumed"]
    assert event["step"] == goes_on_from
    assert_as_if_undisturbed(straight, root, resumed)


def test_disk_full_during_a_save(straight: dict, recipe: Path, root: Path, tmp_path: Path) -> None:
    """One sentence, exit code 1, no half file left, the checkpoint before it stands; with room again the run ends as it would have."""
    marker = tmp_path / "hit"
    process = start([*FAILING, str(recipe), str(root), str(30 * BATCH), "disk_full", str(marker)])
    _, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert marker.exists() and process.returncode == 1
    said = err.strip().splitlines()[-1]
    assert (
        said.startswith(f"error: the checkpoint at {30 * BATCH} tokens could not be saved (") and "Traceback" not in err
    )
    assert "No space left on device" in said and "the one before it stands" in said
    assert steps_standing(run_url(root)) == [15]
    assert storage.leftovers(str(root)) == []
    assert_as_if_undisturbed(straight, root, go_on(recipe, root))


def pages(folder: Path) -> int:
    """Bytes that the files and folders of a folder take in a tmpfs."""
    return sum(-(-path.stat().st_size // 4096) * 4096 if path.is_file() else 4096 for path in folder.rglob("*"))


@pytest.fixture
def disk(data: Path, straight: dict, tmp_path: Path) -> Iterator[Path]:
    """A root on a file system of its own, with room for one checkpoint and most of another."""
    size = pages(data) + int(1.7 * pages(Path(straight["checkpoint"])))
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(tmp_path)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        shutil.copytree(data, tmp_path / "root")
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def remount(disk: Path, options: str) -> None:
    """A disk cannot become read-only while a file is being written: tried until it can."""
    end = time.monotonic() + DEADLINE_SECONDS
    while subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], capture_output=True).returncode:
        assert time.monotonic() < end
        time.sleep(0.01)


def assert_said(err: str, reason: str) -> None:
    said = err.strip().splitlines()[-1]
    assert said.startswith("error: the checkpoint at ") and reason in said and "the one before it stands" in said, err
    assert "Traceback" not in err


def test_a_disk_that_is_full(straight: dict, recipe: Path, disk: Path) -> None:
    """Really: the second checkpoint does not fit. No half file is left; with more room the same command ends as it would have."""
    root = disk / "root"
    process = start([*TRAIN, str(recipe), "--root", str(root), "--json"])
    _, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 1
    assert_said(err, "could not be saved (No space left on device)")
    assert steps_standing(run_url(root)) == [15]
    assert storage.leftovers(str(root)) == []
    remount(disk, "size=64m")
    assert_as_if_undisturbed(straight, root, go_on(recipe, root))


def test_a_disk_that_is_only_read_from_now_on(
    straight: dict, recipe: Path, disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After the first checkpoint, as a file system that met an error does. Temporaries cannot be removed then; `gc` finds what there is."""
    root, log = disk / "root", tmp_path_factory.mktemp("log") / "train.log"
    remount(disk, "size=64m")
    process = start([*TRAIN, str(recipe), "--root", str(root), "--json"], log)
    wait_until(checkpointed(log), process)
    remount(disk, "ro")
    _, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 1
    assert_said(err, "could not be saved (Read-only file system)")
    remount(disk, "rw")
    assert (stood := steps_standing(run_url(root)))[0] == 15 and stood[-1] < STEPS
    assert_as_if_undisturbed(straight, root, go_on(recipe, root))
    collect_garbage(str(root), dry_run=False, older_than_seconds=0)
    assert storage.leftovers(str(root)) == []


def test_sigterm_saves_within_the_grace_and_says_so(straight: dict, recipe: Path, root: Path, tmp_path: Path) -> None:
    """The step that was under way is taken and saved; the exit code is that of a process that SIGTERM ended."""
    log = tmp_path / "train.log"
    process = start([*TRAIN, str(recipe), "--root", str(root), "--json"], log)
    wait_until(step_reached(log, 6), process)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=GRACE_SECONDS)
    assert process.returncode == 143 and time.monotonic() - sent < GRACE_SECONDS
    assert "was told to end early and is saved" in err.strip().splitlines()[-1] and "Traceback" not in err
    rows = checkpoint.read_ledger(run_url(root))
    saved = [e["step"] for line in log.read_text().splitlines() if (e := json.loads(line))["event"] == "checkpoint"]
    assert 6 <= saved[-1] < STEPS and len(rows) == saved[-1]
    assert_as_if_undisturbed(straight, root, finish(recipe, root))


def test_one_rank_then_two_then_one(straight: dict, recipe: Path, root: Path, tmp_path: Path) -> None:
    """Each ends by SIGTERM, two ranks (of which each has half of the model) on the same step. Every batch is that of the undisturbed run;
    losses agree to rounding."""
    worlds = []
    for command, step, shard in ((TRAIN, 10, "none"), (TWO_RANKS, 25, "fsdp")):
        log = tmp_path / f"{step}.log"
        how = f"runtime.parallel.shard={shard}"
        process = start([*command, str(recipe), how, "--root", str(root), "--json"], log)
        wait_until(step_reached(log, step), process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=GRACE_SECONDS)
        assert process.returncode != 0, err
        worlds.append(checkpoint.read_ledger(run_url(root))[-1])
    assert [row["world_size"] for row in worlds] == [1, 2] and 10 <= worlds[0]["step"] < worlds[1]["step"] < STEPS
    resumed = go_on(recipe, root)
    rows = checkpoint.read_ledger(str(root / resumed["run"]))
    assert {row["world_size"] for row in rows} == {1, 2} and rows[-1]["world_size"] == 1
    for name in ("step", "batch_hash", "order_hash", "tokens_by_source", "masked_instances", "num_labels", "lr"):
        assert [row[name] for row in rows] == [row[name] for row in straight["rows"]], name
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in straight["rows"]], rel=1e-4)
    assert artifact.verify(str(root / resumed["run"])) == []


def test_the_comparison_sees_a_row_and_a_bit(straight: dict, recipe: Path, root: Path) -> None:
    """The control: two other checkpoints of the undisturbed run, and a ledger without a row, are told apart."""
    shutil.copytree(Path(straight["checkpoint"]).parents[1], root / straight["run"])
    earlier = storage.join(str(root), straight["run"], "checkpoints", checkpoint.folder_name(45 * BATCH))
    with pytest.raises(AssertionError):
        assert_as_if_undisturbed(straight, root, straight | {"checkpoint": earlier})
    with pytest.raises(AssertionError):
        assert_as_if_undisturbed(straight | {"rows": straight["rows"][:-1]}, root, straight)
