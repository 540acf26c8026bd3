"""Real Ray Train workers: one and two see the same batches; a worker killed for real is replaced and the run ends the same."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from tests.cluster.test_train_ray_ends import parents
from tests.jobs.local_cluster import listening
from trainplane.cluster import start_ray, train, train_many
from triplane import artifact, mixture, storage
from triplane.errors import Corrupt, TriplaneError, UsageError
from triplane.recipe import resolved

# Ray 2.60 reads its own deprecated settings when a trainer starts.
pytestmark = pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")

BATCH = 8 * 48
SEVERAL = """
from jobs.cli.common import reports_errors
from trainplane.cluster import train_many
from trainplane.recipe import RunRecipe

if __name__ == "__main__":
    import typer

    @reports_errors
    def several() -> None:
        train_many([RunRecipe.model_validate(recipe) for recipe in {recipes}], {root!r})

    typer.run(several)
"""


@pytest.fixture(scope="module", autouse=True)
def ray_of_this_module() -> Iterator[None]:
    """`train` starts Ray inside this process; it is closed when the module is done."""
    yield
    ray.shutdown()


def test_one_and_two_workers_see_the_same_batches(root: str, make_recipe: Callable) -> None:
    alone = train(make_recipe(), root)
    one = train(make_recipe(name="one", **{"runtime.num_workers": 1}), root)
    with listeners() as heard:
        two = train(make_recipe(name="two", **{"runtime.num_workers": 2}), root)
    for name in ("batch_hash", "order_hash", "tokens_by_source", "masked_instances", "num_labels", "lr"):
        columns = [[row[name] for row in run.ledger] for run in (alone, one, two)]
        assert columns[0] == columns[1] == columns[2], name
    assert [row["loss"] for row in one.ledger] == [row["loss"] for row in alone.ledger]
    assert [row["loss"] for row in two.ledger] == pytest.approx([row["loss"] for row in alone.ledger], rel=1e-4)
    assert {row["world_size"] for row in two.ledger} == {2}
    # Ray's, the store of the group, gloo's; that one beyond loopback would be seen: tests/trainplane/test_rendezvous.py.
    assert {"ray::RayTrainWorker", "raylet"} <= {Path(one.command.split()[0]).name for one in heard}
    assert [one for one in heard if not one.is_loopback] == []


@contextlib.contextmanager
def listeners() -> Iterator[list[listening.Listener]]:
    """Every socket that this process, or one that descends from it, listens on meanwhile."""
    ended, heard, found = threading.Event(), list[listening.Listener](), set[listening.Listener]()

    def look() -> None:
        while not ended.wait(0.1):
            alive, family = parents(), {os.getpid()}
            while more := {pid for pid, parent in alive.items() if parent in family} - family:
                family |= more
            found.update(listening.of(family))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield heard
    finally:
        ended.set()
        thread.join()
        heard += found


def test_ray_does_not_catch_sigterm() -> None:
    """Neither in Python nor, with its dump of stacks, in C++."""
    ray.shutdown()
    start_ray()
    caught = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "SigCgt" in line)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert not int(caught, 16) >> (signal.SIGTERM - 1) & 1
    assert int(caught, 16) >> (signal.SIGINT - 1) & 1  # Python's own


def test_the_comparison_sees_another_order(root: str, make_recipe: Callable) -> None:
    one, other = train(make_recipe(), root), train(make_recipe(name="other", **{"data.order_seed": 8}), root)
    assert not {row["batch_hash"] for row in one.ledger} & {row["batch_hash"] for row in other.ledger}


def kill_a_worker_after(log: Path, event: str, killed: list[int]) -> None:
    """SIGKILL to the process that logged the first such event."""
    end = time.monotonic() + 120
    while time.monotonic() < end and not killed:
        lines = log.read_text().splitlines() if log.exists() else []
        for line in lines:
            if line.endswith("}") and (found := json.loads(line))["event"] == event:
                os.kill(found["pid"], signal.SIGKILL)
                killed.append(found["pid"])
                break
        time.sleep(0.01)


def test_a_killed_worker_is_replaced_and_the_run_goes_on(
    root: str, make_recipe: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "train.log"
    ray.shutdown()  # workers get the environment Ray was started with
    monkeypatch.setenv("TRIPLANE_LOG", str(log))
    changes = {
        "runtime.num_workers": 2,
        "runtime.max_failures": 2,
        "stop_tokens": 400 * BATCH,
        "runtime.checkpoint_every_tokens": 20 * BATCH,
    }
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_after, args=(log, "checkpoint", killed))
    killer.start()
    result = train(make_recipe(name="killed", **changes), root)
    killer.join()
    assert len(killed) == 1
    text = log.read_text()
    assert '"event": "resumed"' in text and f'"pid": {killed[0]}' in text
    assert [row["step"] for row in result.ledger] == list(range(1, 401))
    ray.shutdown()
    reference = train(make_recipe(name="straight", **{**changes, "runtime.num_workers": 0}), root)
    assert [row["batch_hash"] for row in result.ledger] == [row["batch_hash"] for row in reference.ledger]


def test_several_runs_at_the_same_time_and_one_that_is_too_large(root: str, make_recipe: Callable) -> None:
    parent = train(make_recipe(), root)
    workers = {"runtime.num_workers": 1, "init_from": parent.reference}
    recipes = [make_recipe(name=f"order-{seed}", **{**workers, "data.order_seed": seed}) for seed in (1, 2)]
    results = train_many(recipes, root)
    assert [result.reference.split("@")[0] for result in results] == ["run/order-1", "run/order-2"]
    assert results == train_many(recipes, root)
    with pytest.raises(UsageError, match=r"asks for 64 CPUs and Ray has \d+"):
        train(make_recipe(name="large", **{"runtime.num_workers": 1, "runtime.threads_per_worker": 64}), root)


def steps_logged(log: Path, run: str) -> list[int]:
    events = [json.loads(line) for line in log.read_text().splitlines()]
    return [event["step"] for event in events if event["event"] == "step" and event["run"].startswith(f"run/{run}@")]


def only_of_rank_1(lock: mixture.MixLock, shard: int, first: int) -> int:
    """An order seed by which, of instances `first` and later of a shard, the first is read by rank 1 of 2, not at the first two steps."""
    for seed in range(1000):
        order = mixture.Order(lock, seed)
        shards, numbers = order.locate(order.batch(0, 12 * 8))
        hits = np.flatnonzero((shards == shard) & (numbers >= first))
        in_batch = hits[hits // 8 == hits[0] // 8] if len(hits) else hits
        if len(hits) and hits[0] >= 16 and set(in_batch % 2) == {1}:
            return seed
    raise AssertionError("no such order")


def test_our_own_errors_reach_the_caller_and_are_not_tried_again(
    root: str, make_recipe: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would only come again. NaN is seen by every rank; a damaged block by one, while the other waits for it."""
    log = tmp_path / "train.log"
    ray.shutdown()  # workers get the environment Ray was started with
    monkeypatch.setenv("TRIPLANE_LOG", str(log))
    alone = {"runtime.num_workers": 1, "runtime.max_failures": 3}
    with pytest.raises(TriplaneError, match="step 2"):
        train(make_recipe(name="nan", **{**alone, "schedule.peak_lr": 1e15}), root)
    assert steps_logged(log, "nan") == [1]

    lock = mixture.load(artifact.artifact_url(root, "mix/tiny"))
    even = [shard.source for shard in lock.shards].index("even")
    seed = only_of_rank_1(lock, even, 8192 // 48)  # from the last block on
    path = Path(storage.join(root, lock.shards[even].tokens))
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(Corrupt, match=r"block 2 \(of 16384 bytes\)"):
        train(make_recipe(name="damaged", **{**alone, "runtime.num_workers": 2, "data.order_seed": seed}), root)
    steps = steps_logged(log, "damaged")
    assert len(steps) >= 2 and steps == list(range(1, len(steps) + 1))


def test_an_interruption_ends_every_run_and_keeps_those_that_wait_from_beginning(
    root: str, make_recipe: Callable, tmp_path: Path
) -> None:
    log, program = tmp_path / "train.log", tmp_path / "several.py"
    changes = {"stop_tokens": 10**7, "schedule.decay_tokens": 10**8, "runtime.checkpoint_every_tokens": 10**7}
    recipes = [resolved(make_recipe(name=f"long-{n}", **{**changes, "runtime.num_workers": 1})) for n in range(3)]
    program.write_text(SEVERAL.format(recipes=recipes, root=root))
    environment = os.environ | {"TRIPLANE_LOG": str(log), "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, str(program)], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 100
        while not (log.exists() and '"event": "step"' in log.read_text()):
            assert process.poll() is None and time.monotonic() < end, "no run has begun"
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130 and errors.splitlines()[-1].startswith("interrupted;"), errors
    assert "Traceback" not in errors and "***" not in errors
    assert not list(Path(root, "run").glob("*/manifest.json"))
    length = log.stat().st_size
    time.sleep(1)
    assert log.stat().st_size == length  # nobody trains on
