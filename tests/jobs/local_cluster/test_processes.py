"""Processes are known by pid and start time and by a mark in their environment; exactly those are ended."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.local_cluster import processes
from jobs.local_cluster.processes import MARK, Process

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
# A child in a session of its own, which outlives its parent, as Ray's workers and Spark's executors do; its name is written over its arguments.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process of somebody else."""
    process = subprocess.Popen(SLEEP, stdout=subprocess.DEVNULL)
    yield process
    process.kill()
    process.wait()


def start(folder: Path, mark: str, code: list[str] = SLEEP) -> Process:
    started = processes.start("it", code, {**os.environ, MARK: mark}, folder / "it.log")
    end = time.monotonic() + 20
    while not (folder / "it.log").read_text().strip():
        assert time.monotonic() < end
        time.sleep(0.02)
    return started


def test_what_was_started_is_found_by_its_mark_alone_and_ended(
    tmp_path: Path, stranger: subprocess.Popen[bytes]
) -> None:
    process = start(tmp_path, "mark-1")
    assert processes.is_running(process)
    assert processes.members("mark-1", []) == {process.pid: process.started}
    assert processes.members("mark-2", []) == {}
    assert processes.end(lambda: processes.members("mark-1", [])) == 1
    assert not processes.is_running(process)
    assert stranger.poll() is None


def test_a_child_that_outlives_its_parent_is_ended_too(tmp_path: Path) -> None:
    process = start(tmp_path, "mark-3", [sys.executable, "-c", PARENT])
    child = int((tmp_path / "it.log").read_text())
    os.kill(process.pid, 9)
    while processes.is_running(process):
        time.sleep(0.01)
    assert list(processes.members("mark-3", [process])) == [child]
    assert processes.end(lambda: processes.members("mark-3", [process])) == 1
    assert processes.started_at(child) is None


def test_descent_finds_a_child_whose_mark_is_lost(tmp_path: Path) -> None:
    code = PARENT.replace("start_new_session=True", "env={}")
    process = start(tmp_path, "mark-4", [sys.executable, "-c", code])
    child = int((tmp_path / "it.log").read_text())
    assert set(processes.members("mark-4", [])) == {process.pid, child}
    processes.end(lambda: processes.members("mark-4", []))
    assert processes.started_at(child) is None


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path, "mark-5", [sys.executable, "-c", STUBBORN])
    assert processes.end(lambda: processes.members("mark-5", []), grace_seconds=0.2) == 1
    assert not processes.is_running(process)


def test_another_process_with_the_pid_of_an_old_one_is_left_alone(
    tmp_path: Path, stranger: subprocess.Popen[bytes]
) -> None:
    """Its start time tells them apart; the control is the same record with the right one."""
    began = processes.started_at(stranger.pid)
    assert began is not None
    old, right = (Process("old", stranger.pid, ticks, "") for ticks in (began - 1, began))
    assert not processes.is_running(old) and processes.members("none", [old]) == {}
    assert processes.members("none", [right]) == {stranger.pid: began}
    processes._signal(stranger.pid, began - 1, 9)
    time.sleep(0.2)
    assert stranger.poll() is None
    processes._signal(stranger.pid, began, 9)
    assert stranger.wait(10) == -9


def test_a_zombie_does_not_run(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    end = time.monotonic() + 20
    while processes.started_at(child.pid) is not None:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert Path(f"/proc/{child.pid}").exists()
    child.wait()


def test_the_last_line_of_a_log_is_the_last_with_anything_on_it(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("first\nlast words \n\n")
    assert processes.last_line(str(tmp_path / "log")) == "last words"
    assert processes.last_line(str(tmp_path / "absent")) == "it said nothing"
