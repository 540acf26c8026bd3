"""What up and down promise, on programs that only sleep: the record first, nothing left after a failure, a half-started cluster ended whole.

The real programs: tests/cluster/test_local_cluster.py.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.local_cluster import cluster, processes, readiness, record, services
from triplane.errors import Refused, TriplaneError, UsageError

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
DYING = [sys.executable, "-c", "print('no more ports'); raise SystemExit(3)"]
# `up` as a process of its own, of the same sleeping programs.
UP = """
import sys
from pathlib import Path
import pytest
from tests.jobs.local_cluster.test_cluster import let_it_sleep
from jobs.local_cluster import cluster, readiness
with pytest.MonkeyPatch.context() as patch:
    let_it_sleep(patch)
    patch.setattr(readiness, "ray_nodes", lambda ray, token: -1)  # never ready
    cluster.up(Path(sys.argv[1]), 2)
"""


def let_it_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("s3_server", "spark_master", "spark_worker", "ray_head", "ray_worker"):
        monkeypatch.setattr(services, name, lambda *arguments: SLEEP)
    answers = {"spark_workers": 2, "ray_nodes": 3, "ray_takes_jobs": True, "s3_answers": True, "fetch": b""}
    for name, answer in answers.items():
        monkeypatch.setattr(readiness, name, lambda *arguments, answer=answer, **named: answer)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    let_it_sleep(monkeypatch)
    yield tmp_path / "c"
    cluster.down(tmp_path / "c")


def running(folder: Path) -> dict[str, bool]:
    standing = record.read(folder)
    assert standing is not None
    return {process.name: processes.is_running(process) for process in standing.processes}


NAMES = ["s3", "spark-master", "ray-head", "spark-worker-1", "spark-worker-2", "ray-worker-1", "ray-worker-2"]


def test_up_up_again_and_down(folder: Path) -> None:
    made, was_up = cluster.up(folder, 2)
    assert (made.state, was_up) == ("up", False) and running(folder) == dict.fromkeys(NAMES, True)
    assert Path(made.alias).resolve() == folder.resolve() and folder.stat().st_mode & 0o777 == 0o700
    assert cluster.up(folder, 2) == (made, True)
    with pytest.raises(UsageError, match="has 2 workers and 3 are asked for"):
        cluster.up(folder, 3)
    assert cluster.down(folder) == 7
    assert not any(map(processes.is_running, made.processes))
    assert sorted(path.name for path in folder.iterdir()) == ["logs"] and not Path(made.alias).is_symlink()
    assert cluster.down(folder) is None


def test_another_s3_server_is_used_and_none_started(folder: Path) -> None:
    made, _ = cluster.up(folder, 1, "http://127.0.0.1:9")
    assert made.s3 == made.environment["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9"
    assert [process.name for process in made.processes] == [
        "spark-master",
        "ray-head",
        "spark-worker-1",
        "ray-worker-1",
    ]


def test_a_program_that_ends_is_named_with_its_last_words_and_the_others_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "ray_head", lambda *arguments: DYING)
    monkeypatch.setattr(readiness, "ray_nodes", lambda ray, token: -1)
    with pytest.raises(TriplaneError, match=r"^ray-head ended: no more ports \(all it said: .*logs/ray-head.log\)$"):
        cluster.up(folder, 2)
    assert record.read(folder) is None and marked_anywhere(folder) == []


def test_one_that_is_not_ready_in_time_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = processes.start("spark-master", SLEEP, os.environ, folder.parent / "log")
    try:
        with pytest.raises(TriplaneError, match=r"^spark-master was not ready within 0 s: it said nothing"):
            readiness.wait_until(lambda: False, "spark-master", [sleeper], 0.1)
        readiness.wait_until(lambda: True, "spark-master", [sleeper], 0.1)
    finally:
        os.kill(sleeper.pid, signal.SIGKILL)


def marked_anywhere(folder: Path) -> list[str]:
    """Processes whose output goes below a folder."""
    found = []
    for pid in (name for name in os.listdir("/proc") if name.isdigit()):
        try:
            target = os.readlink(f"/proc/{pid}/fd/1")
        except OSError:
            continue
        if target.startswith(str(folder)):
            found.append(pid)
    return found


def test_down_ends_what_a_killed_up_had_started(folder: Path) -> None:
    """Also what it had not yet noted: the record is put back to that of before the first process."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    up = subprocess.Popen([sys.executable, "-c", UP, str(folder)], env=environment)
    end = time.monotonic() + 60
    while len(marked_anywhere(folder)) < 5:  # the heads and Spark's workers; it waits for Ray for ever
        assert up.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    with pytest.raises(TriplaneError, match=f"is being started by process {up.pid}: wait for it"):
        cluster.up(folder, 2)
    with pytest.raises(TriplaneError, match=f"is being started by process {up.pid}: wait for it, or interrupt it"):
        cluster.down(folder)
    up.kill()
    up.wait()
    with pytest.raises(TriplaneError, match="is not whole"):
        cluster.up(folder, 2)
    path = folder / record.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"processes": []}))
    assert len(marked_anywhere(folder)) == 5
    assert cluster.down(folder) == 5
    assert marked_anywhere(folder) == [] and record.read(folder) is None


def test_down_leaves_alone_who_has_a_recorded_pid_by_now(folder: Path) -> None:
    """After a start of the machine, and within one; the cluster next to it stays too."""
    made, _ = cluster.up(folder, 1)
    stranger = subprocess.Popen(SLEEP)
    try:
        other = processes.Process("old", stranger.pid, (processes.started_at(stranger.pid) or 0) - 7, "")
        record.write(folder, made.model_copy(update={"processes": (*made.processes, other)}))
        assert cluster.dead(record.read(folder)) == ["old"]
        assert cluster.down(folder) == 5 and stranger.poll() is None
        right = processes.Process("old", stranger.pid, processes.started_at(stranger.pid) or 0, "")
        earlier = made.model_copy(update={"processes": (right,), "boot": "another"})
        assert record.create(folder, earlier) and cluster.dead(earlier) == ["old"]
        assert cluster.down(folder) == 0 and stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_damaged_record_is_refused(folder: Path) -> None:
    folder.mkdir()
    (folder / record.NAME).write_text('{"id": "x"}')
    with pytest.raises(Refused, match="is no record of a cluster"):
        cluster.down(folder)
    (folder / record.NAME).unlink()


def test_no_worker_is_wrong_use(folder: Path) -> None:
    with pytest.raises(UsageError, match="needs a worker"):
        cluster.up(folder, 0)
