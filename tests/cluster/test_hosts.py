"""Training over three hosts, of which one is cut off and one loses its power: noticed, gone on from the last checkpoint on the rest, finished.

Each host is a network namespace with a Ray node of its own (`tests.cluster.hosts`); checkpoints are in a folder that all share. The health
settings are those a cluster should have: with Ray's own, a host that is cut off had not been noticed after 42 s.
"""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.hosts import Host, leftovers, needs_hosts, network
from trainplane import checkpoint, run
from trainplane.cluster import SETTINGS
from trainplane.recipe import RunRecipe
from triplane import artifact, storage
from triplane.lm.model_source import checkpoint_folders
from triplane.recipe import resolved

HEALTH = {
    "RAY_health_check_initial_delay_ms": "0", "RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}  # fmt: skip
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
BATCH, EVERY, STEPS = 12 * 48, 20, 140
NOTICED_SECONDS = 15
DEADLINE_SECONDS = 120
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    """For Ray, whose paths of sockets must be short."""
    path = Path(tempfile.mkdtemp(prefix="tp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def environment(folder: Path) -> dict[str, str]:
    """Of every host: one token, one log, the folder of this program."""
    token = folder / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    ours = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "TRIPLANE_LOG": str(folder / "log"),
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}  # fmt: skip
    return os.environ | SETTINGS | HEALTH | ours


def start_node(host: Host, head: Host, folder: Path, variables: Mapping[str, str]) -> Callable[[], bool]:
    """Starts a Ray node of one CPU -> whether it is up."""
    where = (
        ["--head", "--port=6379", "--include-dashboard=false"] if host == head else [f"--address={head.address}:6379"]
    )
    output = folder / f"{host.name}.out"
    command = [*RAY, "start", "--block", *where, f"--node-ip-address={host.address}", "--num-cpus=1",
               f"--temp-dir={folder / host.name[-1]}", "--object-store-memory=80000000", "--disable-usage-stats"]  # fmt: skip
    with output.open("w") as file:
        process = host.start(command, variables, file)

    def is_up() -> bool:
        assert process.poll() is None, output.read_text()
        return "Ray runtime started" in output.read_text()

    return is_up


def wait_until(reached: Callable[[], Any], what: str, alive: subprocess.Popen[str] | None = None) -> Any:
    """What `reached` returns, when that is true."""
    end = time.monotonic() + DEADLINE_SECONDS
    while not (found := reached()):
        assert time.monotonic() < end, f"not within {DEADLINE_SECONDS} s: {what}"
        assert alive is None or alive.poll() is None, f"it ended before: {what}"
        time.sleep(0.05)
    return found


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    log = folder / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [event for line in lines if line.endswith("}") and (event := json.loads(line))["event"] == name]


def saved_and_beyond(folder: Path, ranks: int) -> Callable[[], bool]:
    """Whether so many ranks together have saved, and taken steps since."""

    def reached() -> bool:
        pids = {event["pid"] for event in events(folder, "training") if event["world_size"] == ranks}
        saved, taken = (
            [event["step"] for event in events(folder, name) if event["pid"] in pids] for name in ("checkpoint", "step")
        )
        return bool(saved) and taken[-1] > saved[-1] + 3

    return reached


def noticed_after(folder: Path, fault: Callable[[], None]) -> float:
    """Seconds from a fault to the event in our log."""
    before, began = len(events(folder, "workers failed")), time.time()
    fault()
    wait_until(lambda: len(events(folder, "workers failed")) > before, "a failure of workers in the log")
    return events(folder, "workers failed")[before]["time"] - began


def assert_as_if_undisturbed(root: Path, reference: str, straight: run.RunResult) -> None:
    """Every batch that of one process that nothing disturbs, and every row committed once, in all checkpoints together."""
    url = str(root / reference)
    committed = [
        row["step"] for name in checkpoint_folders(url) for row in checkpoint.rows_of(storage.join(url, "checkpoints", name))
    ]  # fmt: skip
    assert committed == list(range(1, STEPS + 1))
    rows = checkpoint.read_ledger(url)
    for name in ("step", "batch_hash", "order_hash", "tokens_by_source", "num_labels", "lr"):
        assert [row[name] for row in rows] == [row[name] for row in straight.ledger], name
    assert [world for world, _ in _runs_of(row["world_size"] for row in rows)] == [3, 2, 1]
    assert artifact.verify(url) == []


def _runs_of(values: Any) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for value in values:
        found = [*found[:-1], (value, found[-1][1] + 1)] if found and found[-1][0] == value else [*found, (value, 1)]
    return found


@needs_hosts
def test_a_host_is_cut_off_and_one_loses_its_power(
    folder: Path, root: str, make_recipe: Callable[..., RunRecipe]
) -> None:
    changes = {
        "data.global_batch_tokens": BATCH, "stop_tokens": STEPS * BATCH, "schedule.decay_tokens": 999 * BATCH,
        "runtime.checkpoint_every_tokens": EVERY * BATCH, "runtime.microbatch_instances": 2,
    }  # fmt: skip
    elastic = {"runtime.num_workers": 3, "runtime.min_workers": 1, "runtime.max_failures": 4}
    recipe = folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(resolved(make_recipe(**changes, **elastic))))
    shared, other = folder / "root", folder / "other"
    shutil.copytree(root, shared)
    shutil.copytree(root, other)
    variables = environment(folder)
    with network(["a", "b", "c"]) as hosts, contextlib.ExitStack() as stack:
        head, second, third = hosts
        up = [start_node(head, head, folder, variables)]
        wait_until(up[0], "the head")
        up += [start_node(host, head, folder, variables) for host in (second, third)]
        straight = run.train(make_recipe(**changes), str(other))
        wait_until(lambda: all(is_up() for is_up in up), "three nodes")

        command = [sys.executable, "-m", "jobs.train", str(recipe), "--root", str(shared), "--json"]
        said = stack.enter_context((folder / "driver.out").open("w"))
        driver = head.start(command, variables | {"RAY_ADDRESS": f"{head.address}:6379"}, said)
        wait_until(saved_and_beyond(folder, 3), "steps of three ranks", driver)
        pids = {event["rank"]: event["pid"] for event in events(folder, "training")}
        assert all(len(set(host.pids()) & set(pids.values())) == 1 for host in hosts)  # a rank on each

        cut = noticed_after(folder, third.cut_off)
        wait_until(saved_and_beyond(folder, 2), "steps of two ranks", driver)
        killed = noticed_after(folder, second.kill)
        assert second.pids() == [] and third.pids() != []
        code = driver.wait(DEADLINE_SECONDS)
        out = (folder / "driver.out").read_text()
        assert code == 0, out
        assert cut <= NOTICED_SECONDS and killed <= NOTICED_SECONDS, (cut, killed)
        print(f"noticed: cut off {cut:.1f} s, killed {killed:.1f} s")
        name = hosts[0].name
    assert_as_if_undisturbed(shared, artifact.references(str(shared), "run")[0], straight)
    resumed = [event["step"] for event in events(folder, "resumed") if event["step"]]
    assert all(step % EVERY == 0 for step in resumed) and len(resumed) >= 3  # two ranks, then one
    assert leftovers(name) == []


@needs_hosts
def test_hosts_reach_each_other_until_one_is_cut_off_and_nothing_is_left() -> None:
    """The control of the helper: a connection is made, then is not; processes and names are gone afterwards."""
    listen = (
        "import socket; server = socket.create_server(('', 7)); print(flush=True); server.accept(); server.accept()"
    )
    connect = "import socket, sys; socket.create_connection((sys.argv[1], 7), 1)"
    python = [sys.executable, "-I", "-S", "-c"]
    with network(["a", "b"]) as (one, other):
        server = other.start([*python, listen], os.environ, subprocess.PIPE)
        assert server.stdout is not None and server.stdout.readline() == "\n"
        assert one.start([*python, connect, other.address], os.environ, subprocess.DEVNULL).wait(20) == 0
        other.cut_off()
        assert one.start([*python, connect, other.address], os.environ, subprocess.DEVNULL).wait(20) != 0
        assert server.poll() is None and leftovers(one.name) != []
    assert server.wait(5) != 0 and leftovers(one.name) == []
    server.stdout.close()
