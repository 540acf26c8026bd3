"""Processes of a cluster: started apart from who starts them, known by pid and start time, found again by a mark in their environment, ended.

A pid alone says little, as it is used again: with the time its process began (/proc/PID/stat, clock ticks since the machine did) it names one
process. What a process starts inherits its environment, so a mark put there finds all of a cluster, also what was started in the instant
before its starter was killed. Linux only. Source: proc(5), pidfd_open(2).
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MARK = "TRIPLANE_CLUSTER_ID"
GRACE_SECONDS = 5.0
POLL_SECONDS = 0.05
DEAD = b"ZX"


@dataclass(frozen=True)
class Process:
    """One process that `up` started: its name in the cluster, its pid, when it began (clock ticks since boot), and where its output goes."""

    name: str
    pid: int
    started: int
    log: str


def start(name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
    """Starts a child in a session of its own, its output appended to `log`. Raises OSError when there is no such program."""
    with log.open("ab") as stream:
        child = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    child.returncode = 0  # it outlives us: nobody waits for it, and Popen must not warn of that
    return Process(name, child.pid, started_at(child.pid) or 0, str(log))


def started_at(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process that runs; None if there is none, or only what is left of one (a zombie)."""
    fields = _fields(pid)
    return int(fields[19]) if fields and fields[0] not in DEAD else None


def is_running(process: Process) -> bool:
    """Whether this very process runs, not another of the same pid."""
    return started_at(process.pid) == process.started


def last_line(log: str) -> str:
    """The last line with anything on it, for an error message."""
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in Path(log).read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return lines[-1]
    return "it said nothing"


def members(mark: str, processes: Collection[Process]) -> dict[int, int]:
    """pid -> start time of every process of a cluster: those that carry its mark, those recorded that run, and what descends from either."""
    running = {pid: started for pid in _pids() if (started := started_at(pid)) is not None}
    found = {pid for pid in running if _is_marked(pid, mark)}
    found |= {process.pid for process in processes if running.get(process.pid) == process.started}
    parents = {pid: int(fields[1]) for pid in running if (fields := _fields(pid))}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: running[pid] for pid in found - {os.getpid()}}


def end(find: Callable[[], Mapping[int, int]], grace_seconds: float = GRACE_SECONDS) -> int:
    """Ends what `find` gives (pid -> start time), and what it gives when those have ended, until it gives none -> how many: by SIGTERM, by
    SIGKILL what is left after the grace."""
    ended: set[tuple[int, int]] = set()
    deadline = time.monotonic() + grace_seconds
    while found := find():
        number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        for pid, started in found.items():
            if number == signal.SIGKILL or (pid, started) not in ended:
                _signal(pid, started, number)
        ended.update(found.items())
        time.sleep(POLL_SECONDS)
    return len(ended)


def _signal(pid: int, started: int, number: int) -> None:
    """Sends a signal to one process and never to another that has its pid by now: the descriptor holds the one that was looked at."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            if started_at(pid) == started:
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _fields(pid: int) -> list[bytes]:
    """/proc/PID/stat after the name, which may hold anything: state, parent, ...; [] if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []


def _is_marked(pid: int, mark: str) -> bool:
    try:
        return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is another user's
        return False
