"""Two watchers as processes, one killed or stopped while it holds a lease: every item is committed once, and the scores are those of one process.

Each watcher waits a little before it answers a shard and says which one, so that the signal is known to land while it holds that shard's lease.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import ray

from evalplane import cluster, run, shards, watch
from tests.evalplane import watched_run
from tests.evalplane.watched_run import RUN, checkpoint, model
from triplane import artifact, storage

TTL_SECONDS = 3.0
TOKENS = 100
SHARDS = 8  # of 4 items
WATCHER = """
import json, sys, time
given = json.loads(sys.argv[1])
machine_time = time.time
time.time = lambda: machine_time() + given["clock_offset"]

import torch
from evalplane import shards, watch
from evalplane.task import load_suite
from tests.evalplane import watched_run
from triplane import lease, storage

torch.set_num_threads(1)
shards.of_task.__defaults__ = (4,)
plain = shards.Asker.answer
answered = []

def slow(self, shard):
    print(shard.name, flush=True)
    time.sleep(given["seconds"])
    answered.append(shard.name)
    made = plain(self, shard)
    made.counts["max_length"] += given["changed"]
    requests = made.requests.append_column("stale", [[True] * made.requests.num_rows]) if given["changed"] else made.requests
    return shards.Answers(made.items, requests, made.counts)

shards.Asker.answer = slow
if "lease" in given["unguarded"]:
    lease.Lease.is_current = lambda self: True
if "record" in given["unguarded"]:
    put_if_absent = storage.put_if_absent
    def put(url, data):
        if "/records/" not in url:
            return put_if_absent(url, data)
        storage.put(url, data)
        return True
    storage.put_if_absent = put
asked = watch.Asked(given["root"], watched_run.RUN, load_suite("demo", watched_run.overrides(given["root"])))
watcher = watch.Watcher(asked, watch.here("cpu"), watch.Claimant(given["ttl"]), wait=lambda seconds: time.sleep(0.1))
look = watcher.look()
print(json.dumps({"answered": answered, "news": [[one.tokens, one.evaluation["reference"]] for one in look.news]}), flush=True)
"""


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = str(request.getfixturevalue("s3_root")) if request.param == "s3" else str(tmp_path / "root")
    watched_run.begin(url)
    watched_run.suite(url)
    checkpoint(url, TOKENS, model(4))
    return url


@pytest.fixture
def start(root: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """start(seconds=0.5, ...) -> a watcher's process; none outlives the test."""
    processes: list[subprocess.Popen[str]] = []

    def begin(**given: Any) -> subprocess.Popen[str]:
        whole = {"root": root, "ttl": TTL_SECONDS, "seconds": 0.3, "clock_offset": 0.0, "changed": 0, "unguarded": []}
        command = [sys.executable, "-c", WATCHER, json.dumps({**whole, **given})]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment}
        processes.append(subprocess.Popen(command, text=True, **pipes))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.wait(30)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def shard_under_way(process: subprocess.Popen[str]) -> str:
    """The shard that a watcher says it is about to answer."""
    assert process.stdout is not None
    name = process.stdout.readline().strip()
    assert name, process.stderr and process.stderr.read()
    return name


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return dict(json.loads(said.splitlines()[-1]))


def records(root: str) -> list[str]:
    names = [name.rpartition("/")[2] for name in storage.list_names(f"{root}/evaluation") if "/records/" in name]
    return [name for name in names if name.removesuffix(".json")[-5:].isdecimal()]


def held_by(root: str, process: subprocess.Popen[str]) -> list[tuple[str, dict[str, Any]]]:
    """(lease, what it says) of the leases that are the highest of their name, not released, and this process's."""
    highest = {name.rpartition("/")[0]: name for name in storage.list_names(f"{root}/leases")}
    said = {name: json.loads(storage.read(f"{root}/leases/{name}")) for name in highest.values()}
    return [(name, one) for name, one in said.items() if f"-{process.pid}-" in one["owner"] and not one["released"]]


def check(root: str, tmp_path: Path) -> run.Evaluation:
    """Committed once, every item once, with the scores of an evaluation that nobody disturbed."""
    (reference,) = artifact.references(root, "evaluation")
    made = run.Evaluation(f"{root}/{reference}", artifact.load(root, reference))
    assert artifact.verify(made.url) == []
    url, alone_root = watched_run.checkpoint_url(root, TOKENS), str(tmp_path / "alone")
    chosen = watched_run.load_suite("demo", watched_run.overrides(root))
    alone = run.evaluate(url, chosen, alone_root, tokenizer=f"{root}/tokenizer/small@t1")
    assert made.reference == alone.reference
    for task, prefix, count in (("arithmetic", "a", 8), ("held_out_bits_per_byte", "d", 24)):
        assert Counter(made.items(task)["id"].to_pylist()) == Counter({f"{prefix}{i}": 1 for i in range(count)})
    assert made.manifest.metadata["counters"] == alone.manifest.metadata["counters"]
    assert made.scores["arithmetic"] == alone.scores["arithmetic"]
    bits, expected = (one.scores["held_out_bits_per_byte"]["value"] for one in (made, alone))
    assert bits == pytest.approx(expected, rel=1e-6)
    assert made.manifest.metadata["counters"]["items"] == 32
    return made


def test_one_of_two_watchers_is_killed_while_it_holds_a_lease(
    root: str, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Their clocks are an hour apart, too."""
    first = start(seconds=60.0, clock_offset=-3600.0)
    second = start(seconds=0.2, clock_offset=3600.0)
    shard = shard_under_way(first)
    shard_under_way(second)
    os.kill(first.pid, signal.SIGKILL)
    first.wait(30)
    killed = time.monotonic()
    assert first.returncode == -signal.SIGKILL
    ((name, _),) = held_by(root, first)  # it held the lease, and nobody will release it
    assert f"{shard}.json" not in records(root), "the kill landed before the shard was committed"
    assert len(records(root)) < SHARDS

    end = time.monotonic() + 60
    while f"{shard}.json" not in records(root):
        assert time.monotonic() < end
        time.sleep(0.05)
    waited = time.monotonic() - killed
    result = ended(second)
    # The last renewal was up to ttl / 3 before the kill; a lease that may be alive is nobody's to take.
    assert waited >= TTL_SECONDS * 2 / 3 - 0.1
    assert waited <= 3 * TTL_SECONDS + 5
    assert result["news"] == [[TOKENS, check(root, tmp_path).reference]]
    assert shard in result["answered"] and len(result["answered"]) == len(set(result["answered"]))
    following = [one for one in storage.list_names(f"{root}/leases") if one.startswith(name.rpartition("/")[0])]
    assert [one.rpartition("/")[2] for one in following] == ["000000000001.json", "000000000002.json"]


def snapshot(root: str) -> dict[str, str]:
    """What counts: all but the leases."""
    names = [name for name in storage.list_names(root) if not name.startswith("leases/")]
    return {name: sha256(storage.read(f"{root}/{name}")).hexdigest() for name in names}


STALE = {  # what guards nothing any more; objects that are new and records that are other when it comes back
    "fenced": ((), 0, 0),
    "control: no fence, records first come": (("lease",), 1, 0),
    "control: nothing guards": (("lease", "record"), 1, 1),
}


def stopped_at_work(root: str, process: subprocess.Popen[str]) -> str:
    """The shard whose lease a watcher holds, stopped."""
    shard = shard_under_way(process)
    os.kill(process.pid, signal.SIGSTOP)
    end = time.monotonic() + 10
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < end
        time.sleep(0.01)
    assert held_by(root, process) and f"{shard}.json" not in records(root)
    return shard


def finish(root: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A watcher in this process -> the shards it answered."""
    answered: list[str] = []
    plain = shards.Asker.answer
    with monkeypatch.context() as patched:
        patched.setattr(shards.Asker, "answer", lambda self, one: (answered.append(one.name), plain(self, one))[1])
        patched.setattr(shards.of_task, "__defaults__", (4,))
        asked = watch.Asked(root, RUN, watched_run.load_suite("demo", watched_run.overrides(root)))
        claimant = watch.Claimant(TTL_SECONDS)
        watch.Watcher(asked, watch.here("cpu"), claimant, wait=lambda _: time.sleep(0.1)).look()
    return answered


@pytest.mark.parametrize("root", ["local"], indirect=True)
def test_stopped_watchers_that_come_back_change_nothing(
    root: str, start: Callable[..., subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each would write is other than what stands (a column more, a count other), so that a write would be seen: of the controls it is."""
    stopped = {}
    for name, (unguarded, _, _) in STALE.items():
        process = start(seconds=0.5, changed=1, unguarded=unguarded)
        stopped[name] = process, stopped_at_work(root, process)
    held = [shard for _, shard in stopped.values()]
    answered = finish(root, monkeypatch)
    assert len(set(held)) == len(STALE) and sorted(answered) == sorted(
        one.removesuffix(".json") for one in records(root)
    )
    check(root, tmp_path)
    for name, (_, new, changed) in STALE.items():
        process, shard = stopped[name]
        before = snapshot(root)
        os.kill(process.pid, signal.SIGCONT)
        assert ended(process)["answered"] == [shard]  # it went on where it was, and found that it had been replaced
        after = snapshot(root)
        fresh = sorted(set(after) - set(before))
        differing = [one for one in before if after[one] != before[one]]
        assert (len(fresh), len(differing)) == (new, changed), (name, fresh, differing)
        assert all(f"{shard}.requests-" in one for one in fresh)
        assert all(one.endswith(f"records/{shard}.json") for one in differing)


@pytest.fixture
def no_ray_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray of this process's own, whatever else runs on the machine, which ends with the test."""
    monkeypatch.setenv("RAY_ADDRESS", "local")
    yield
    ray.shutdown()


@pytest.mark.parametrize("root", ["local"], indirect=True)
def test_actors_hold_a_lease_each(
    no_ray_left: None, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers: two leases at once, kept alive by the watcher, asked by the actors before they commit."""
    monkeypatch.setattr(shards.of_task, "__defaults__", (4,))
    asked = watch.Asked(root, RUN, watched_run.load_suite("demo", watched_run.overrides(root)), width=2)
    taken: list[int] = []
    with cluster.pool(2, "cpu") as pool:

        def answers(made: Any, todo: Any, advance: Any, leases: Any) -> None:
            taken.append(len({one.url for one in leases.values()}))
            if len(taken) == 1:  # another took the first shard over: its actor writes nothing
                name = f"{made.draft.reference}/00000"
                state = leases[todo[0].name].state
                storage.put(f"{root}/leases/{name}/000000000002.json", replace(state, released=True).to_bytes())
                pool.answer(made, todo, advance, leases)
                assert records(root) == [f"{todo[1].name}.json"]
            else:
                pool.answer(made, todo, advance, leases)

        look = watch.Watcher(asked, answers).look()
    assert [one.tokens for one in look.news] == [TOKENS]
    assert taken == [2, 2, 2, 2, 1]  # eight shards, one of them twice
    check(root, tmp_path)
