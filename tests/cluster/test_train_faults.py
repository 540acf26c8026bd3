"""What happens to one Ray Train worker: SIGTERM, SIGSTOP, no memory. The run loses nothing, says what it was, and never tries in vain.

Real workers of one Ray inside this process. Killed workers, drivers and whole hosts: test_train_ray.py, test_train_ray_ends.py, test_hosts.py.
"""

import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.cluster.test_train_ray_ends import parents
from trainplane import run
from trainplane.cluster import start_ray, train
from trainplane.out_of_memory import OutOfMemory
from trainplane.recipe import RunRecipe
from triplane.errors import TriplaneError

# Ray 2.60 reads its own deprecated settings when a trainer starts.
pytestmark = pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")

BATCH, STEPS, SECONDS = 8 * 48, 400, 4
DEADLINE_SECONDS = 150
ADDRESS_SPACE = 24 << 30


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """That of all workers of this module, which get the environment Ray was started with; Ray is closed when it is done."""
    path = tmp_path_factory.mktemp("faults") / "train.log"
    with pytest.MonkeyPatch.context() as patch:
        ray.shutdown()
        patch.setenv("TRIPLANE_LOG", str(path))
        start_ray(2)
        yield path
        ray.shutdown()


def events(log: Path, name: str, reference: str = "") -> list[dict[str, Any]]:
    lines = log.read_text().splitlines() if log.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return [event for event in found if event["event"] == name and event.get("run", "").startswith(reference)]


def wait_until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not reached():
        assert time.monotonic() < end, "it did not come so far"
        time.sleep(0.02)


def step_of_group(log: Path, number: int) -> int:
    """Steps that the workers of an attempt (from 1) have taken: 0 before they begin."""
    begun = [event for event in events(log, "training") if event["rank"] == 0]
    if len(begun) < number:
        return 0
    taken = [event["step"] for event in events(log, "step") if event["pid"] == begun[number - 1]["pid"]]
    return len(taken)


def has_taken(log: Path, number: int, steps: int) -> bool:
    return step_of_group(log, number) >= steps


def pid_of_rank_1(log: Path) -> int:
    return int([event["pid"] for event in events(log, "training") if event["rank"] == 1][-1])


def stop_rank_1(log: Path) -> tuple[int, bool, float]:
    """SIGSTOP -> (pid, whether it landed, when)."""
    pid = pid_of_rank_1(log)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.2)
    return pid, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", time.time()


def disturb(log: Path, stopped: list[tuple[int, bool, float]]) -> None:
    """SIGTERM to a worker of the first attempt, SIGSTOP to one of the second and of the third."""
    wait_until(partial(has_taken, log, 1, 30))
    os.kill(pid_of_rank_1(log), signal.SIGTERM)
    for number, steps in ((2, 60), (3, 5)):
        wait_until(partial(has_taken, log, number, steps))
        stopped.append(stop_rank_1(log))


def test_sigterm_and_sigstop_to_one_worker(log: Path, root: str, make_recipe: Callable[..., RunRecipe]) -> None:
    """The first is a notice: saved where it is, no step taken twice. The second is ended by the other rank, which says who it is; steps are
    taken again from the last checkpoint. When no restart is left, the run ends with that sentence, and goes on by the same command. The
    batches are those of a run that nothing disturbs."""
    changes = {
        "stop_tokens": STEPS * BATCH, "schedule.decay_tokens": 999 * BATCH, "runtime.checkpoint_every_tokens": 20 * BATCH,
        "runtime.collective_timeout_seconds": SECONDS, "runtime.max_failures": 1,
    }  # fmt: skip
    stopped: list[tuple[int, bool, float]] = []
    thread = threading.Thread(target=disturb, args=(log, stopped))
    thread.start()
    said = rf"no step may take {SECONDS} s: rank 1 \(host .*\) said nothing for .*same command"
    with pytest.raises(TriplaneError, match=said):
        train(make_recipe(name="disturbed", **changes, **{"runtime.num_workers": 2}), root)
    thread.join()
    assert len(stopped) == 2 and all(landed for _, landed, _ in stopped)

    taken = [event["step"] for event in events(log, "step")]
    first, second, third = (step_of_group(log, number) for number in (1, 2, 3))
    assert taken[: first + second] == list(range(1, first + second + 1))  # none was taken twice
    resumed = [event["step"] for event in events(log, "resumed")]
    assert resumed[:2] == [first, first] and resumed[-1] % 20 == 0
    assert taken[first + second :] == list(range(resumed[-1] + 1, resumed[-1] + third + 1)) and third >= 5

    hung = events(log, "hung")
    for event, (pid, _, at) in zip(hung, stopped, strict=True):
        assert event["rank"] == 0 and 0 < event["time"] - at < SECONDS + 5
        assert f"rank 1 (host {os.uname().nodename}, pid {pid}) said nothing for " in event["reason"]
        assert "all_reduce" in event["stacks"] or "wait" in event["stacks"]
    assert len(events(log, "workers failed")) == 2

    result = run.train(make_recipe(name="disturbed", **changes), root)
    straight = run.train(make_recipe(name="straight", **changes), root)
    assert result.reference == events(log, "workers failed")[0]["run"]
    wait_until(lambda: not {pid for pid, _, _ in stopped} & set(parents()))  # Ray has ended them
    assert [row["step"] for row in result.ledger] == list(range(1, STEPS + 1))
    assert [row["batch_hash"] for row in result.ledger] == [row["batch_hash"] for row in straight.ledger]


def test_a_worker_without_memory_ends_the_run_at_once_and_not_the_node(
    log: Path, root: str, make_recipe: Callable[..., RunRecipe]
) -> None:
    """However many restarts it has. Its workers have a limit of address space (as from `ulimit -v`), which the model goes beyond; the
    node that started them goes on."""
    node = limit_what_ray_starts(ADDRESS_SPACE)
    workers = {"runtime.num_workers": 2, "runtime.max_failures": -1}
    huge = make_recipe(name="huge", **workers, **{"model.intermediate_size": ADDRESS_SPACE // 3 // 128})
    with pytest.raises(TriplaneError) as caught:
        train(huge, root)
    said = str(caught.value)
    assert (
        said.startswith("rank ") and ") ran out of memory (" in said and "of address space (RLIMIT_AS) in use)" in said
    )
    assert "lower runtime.microbatch_instances (now 4)" in said and "add ranks" in said and "not tried again" in said
    assert caught.value.exit_code == OutOfMemory.exit_code == 1
    assert len(events(log, "workers failed", "run/huge@")) == 1
    assert node in parents() and [found["Alive"] for found in ray.nodes()] == [True]


def limit_what_ray_starts(size: int) -> int:
    """Of Ray's node and of every worker that waits; those it starts from now on inherit it -> the node's pid."""
    node = ray._private.worker._global_node.all_processes["raylet"][0].process.pid
    alive = parents()
    limited = {node}
    while more := {pid for pid, parent in alive.items() if parent in limited} - limited:
        limited |= more
    for pid in limited:
        resource.prlimit(pid, resource.RLIMIT_AS, (size, size))
    return int(node)
