"""The process that starts a submitted child, and writes down how it ended: `python -m jobs.submission.supervisor FOLDER`.

FOLDER has job.json (command, cwd, environment, grace_seconds); the child's output goes to `log`, its end to `exit.json`. The supervisor inherits
an open file with a lock on `FOLDER/lock`: whoever can take that lock knows that nobody is left who could write exit.json. SIGTERM to the pid in
`pid` is passed on to the child, which has `grace_seconds` to commit what it has; then what is left of its process group is killed.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.1
KILL_SECONDS = 2.0  # a killed process whose parent does not ask for its end stays in the table
NOT_STARTED_EXIT_CODE = 127  # as a shell says of a command that is not there


def main(folder: Path) -> None:
    """Runs the job of a folder to its end, in a process that is nobody's child: who started this one waits for it no longer."""
    if os.fork():
        os._exit(0)
    asked_to_stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked_to_stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    write(folder / "pid", os.getpid())
    said = json.loads((folder / "job.json").read_text())
    try:
        child = _start(folder, said)
    except OSError as error:
        (folder / "log").write_text(f"error: the job does not start ({error.strerror}: {error.filename})\n")
        code = NOT_STARTED_EXIT_CODE
    else:
        code = _wait(child, asked_to_stop, said["grace_seconds"])
    write(folder / "exit.json", {"exit_code": code, "stopped": asked_to_stop.is_set(), "ended": time.time()})


def _start(folder: Path, said: dict[str, Any]) -> "subprocess.Popen[bytes]":
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            said["command"],
            cwd=said["cwd"],
            env={**os.environ, **said["environment"]},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait(child: "subprocess.Popen[bytes]", asked_to_stop: threading.Event, grace_seconds: float) -> int:
    while not asked_to_stop.is_set():
        try:
            return child.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(grace_seconds)
    return _kill_group(child)


def _kill_group(child: "subprocess.Popen[bytes]") -> int:
    """Kills what is left of the child's group, and waits until it is gone -> the child's exit code."""
    with contextlib.suppress(ProcessLookupError):  # nothing may be left of it
        os.killpg(child.pid, signal.SIGKILL)
    code = child.wait()
    deadline = time.monotonic() + KILL_SECONDS
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(child.pid, 0)
            time.sleep(POLL_SECONDS / 10)
    return code


def write(path: Path, value: Any) -> None:
    """Writes a JSON file that is whole or not there."""
    scratch = path.with_name(path.name + ".new")
    scratch.write_text(json.dumps(value))
    os.replace(scratch, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
