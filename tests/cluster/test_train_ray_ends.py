"""How a run under Ray ends early: a notice to its driver, kill -9 of its driver, a node that will be taken away. It goes on from its save."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.test_train_interrupts import DEADLINE_SECONDS, environment, run_url, start, step_reached, wait_until
from trainplane import checkpoint
from trainplane.elastic import largest_divisor
from trainplane.run import train
from triplane.recipe import resolved

STEPS, BATCH = 400, 8 * 48
PREEMPTED = """
import json, os, pathlib, sys, threading, time
os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "0.5"  # how soon Ray looks; 5 by default
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from trainplane import cluster as training
from trainplane.recipe import RunRecipe

recipe, root, log = RunRecipe.model_validate(json.loads(sys.argv[1])), sys.argv[2], pathlib.Path(sys.argv[3])
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
first = nodes.add_node(num_cpus=1)
ray.init(address=nodes.address, log_to_driver=False)


done = []
thread = threading.Thread(target=lambda: done.append(training.train(recipe, root)), daemon=True)
thread.start()
while not (log.exists() and '"event": "step"' in log.read_text()):
    time.sleep(0.05)
client = ray._private.worker.global_worker.gcs_client
reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
print("draining", client.drain_node(first.node_id, reason, "spot", int(time.time() * 1000) + 60_000), flush=True)
nodes.add_node(num_cpus=1)
thread.join()
print("finished", done[0].step, flush=True)
ray.shutdown()
nodes.shutdown()
"""


@pytest.fixture
def recipe_of(tmp_path: Path, make_recipe: Callable) -> Callable[..., Path]:
    """recipe_of(**changes) -> the file of a run that is long enough to be interrupted twice."""

    def write(**changes: object) -> Path:
        path = tmp_path / "tiny.yaml"
        every = {
            "runtime.checkpoint_every_tokens": 50 * BATCH,
            "stop_tokens": STEPS * BATCH,
            "schedule.decay_tokens": 999 * BATCH,
        }
        path.write_text(yaml.safe_dump(resolved(make_recipe(**{**every, **changes}))))
        return path

    return write


def parents() -> dict[int, int]:
    """The parent of every process that lives and is no zombie."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(path.parent.name)] = int(parent)
    return found


@contextlib.contextmanager
def with_descendants(process: subprocess.Popen[str]) -> Iterator[Callable[[], set[int]]]:
    """Those that a process started, as far as they were seen, and that still live; whatever is left in the end is killed, by pid."""
    seen = {process.pid}

    def living() -> set[int]:
        alive = parents()
        while more := {pid for pid, parent in alive.items() if parent in seen} - seen:
            seen.update(more)
        return (seen & set(alive)) - {process.pid}

    try:
        yield living
    finally:
        process.kill()
        process.communicate()
        for pid in living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def workers_among(pids: set[int]) -> set[int]:
    """Those of Ray Train."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


def test_a_notice_to_the_driver_then_kill_nine_of_it(
    root: str, recipe_of: Callable, tmp_path: Path, make_recipe: Callable
) -> None:
    """With 3 workers where 2 divide the batch, one of them leaves. The batches are those of a run in one process."""
    recipe = recipe_of(**{"runtime.num_workers": 3, "runtime.min_workers": 1})
    command = [sys.executable, "-m", "jobs.train", str(recipe), "--root", root, "--json"]
    log = tmp_path / "notice.log"
    process = start(command, log)
    with with_descendants(process) as living:
        wait_until(step_reached(log, 6), process)
        living()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=DEADLINE_SECONDS)
        assert process.returncode == 143, err
        assert "was told to end early and is saved" in err.strip().splitlines()[-1]
    saved = checkpoint.read_ledger(run_url(Path(root)))
    assert 6 <= len(saved) < STEPS and {row["world_size"] for row in saved} == {2}

    log = tmp_path / "killed.log"
    process = start(command, log)
    with with_descendants(process) as living:
        wait_until(step_reached(log, len(saved) + 30), process)
        assert len(workers_among(living())) == 3
        process.send_signal(signal.SIGKILL)
        process.communicate()
        end = time.monotonic() + 60
        while workers_among(living()) and time.monotonic() < end:
            time.sleep(0.2)
        assert workers_among(living()) == set()  # they end with their driver; Ray's own agents take longer
    (resumed,) = {e["step"] for line in log.read_text().splitlines() if (e := json.loads(line))["event"] == "resumed"}
    assert resumed == len(saved)

    in_process = [
        sys.executable,
        "-m",
        "jobs.train",
        str(recipe),
        "runtime.num_workers=0",
        "runtime.min_workers=null",
        "--root",
        root,
        "--json",
    ]
    done = subprocess.run(
        in_process, env=environment(), capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = checkpoint.read_ledger(run_url(Path(root)))
    straight = train(
        make_recipe(name="straight", stop_tokens=STEPS * BATCH, **{"schedule.decay_tokens": 999 * BATCH}), root
    )
    assert [row["batch_hash"] for row in rows] == [row["batch_hash"] for row in straight.ledger]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))


def test_a_node_that_will_be_taken_away(root: str, recipe_of: Callable, tmp_path: Path) -> None:
    """Ray's notice (of a spot instance, say) has the worker save and return; the run goes on at once on a node that stays."""
    log = tmp_path / "train.log"
    recipe = yaml.safe_load(recipe_of(**{"runtime.num_workers": 1, "stop_tokens": 5 * STEPS * BATCH}).read_text())
    process = start([sys.executable, "-c", PREEMPTED, json.dumps(recipe), root, str(log)], log)
    with with_descendants(process) as living:
        while process.poll() is None:
            living()
            time.sleep(0.5)
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert "draining" in out and f"finished {5 * STEPS}" in out, (out, err)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    (resumed,) = [event for event in events if event["event"] == "resumed"]
    first, *_, last = [event["pid"] for event in events if event["event"] == "step"]
    assert first != last == resumed["pid"]
    steps = [row["step"] for row in checkpoint.read_ledger(run_url(Path(root)))]
    assert steps == list(range(1, 5 * STEPS + 1))
    taken = [event["step"] for event in events if event["event"] == "step"]
    assert taken == steps  # no step was taken twice: the save was at the step where it stopped


@pytest.mark.parametrize(
    ("whole", "most", "expected"), [(8, 3, 2), (8, 8, 8), (8, 7, 4), (7, 6, 1), (1024, 1000, 512), (6, 4, 3)]
)
def test_the_largest_divisor(whole: int, most: int, expected: int) -> None:
    assert largest_divisor(whole, most) == expected
