"""Whatever ends a command: one sentence on stderr and the exit code that says which kind of end it was."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from safetensors import SafetensorError
from typer.testing import CliRunner, Result

from jobs.cli import common
from triplane.errors import LostRace

LONG_COMMAND = """
import sys, time, typer
from jobs.cli.common import reports_errors

@reports_errors
def long(ray: bool = False) -> None:
    if ray:
        from trainplane.cluster import start_ray
        start_ray()
    try:
        print("started", flush=True)
        time.sleep(60)
    except Exception as error:
        print("a failure to try again?", error)
    finally:
        print("closed", flush=True)

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(long)
app()
"""


def ended_by(error: BaseException) -> Result:
    @common.reports_errors
    def command() -> None:
        raise error

    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/y"),
            "cannot use /x/y (No space left on device): check space",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "cannot use /x (Permission denied): check space"),
        (
            ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
            "cannot use a file or connection (Connection",
        ),
        (SafetensorError("I/O error: No space left"), "cannot use a weights file (I/O error: No space left): check"),
    ],
)
def test_failures_of_the_machine_are_one_sentence(error: Exception, line: str) -> None:
    done = ended_by(error)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"error: {line}") and "then run the same command again" in done.stderr


def test_other_errors_have_their_code_or_their_traceback() -> None:
    assert (ended_by(LostRace("x is y")).exit_code, ended_by(KeyboardInterrupt()).exit_code) == (3, 130)
    bug = ended_by(KeyError("a bug"))
    assert isinstance(bug.exception, KeyError) and bug.stderr == ""
    assert isinstance(ended_by(OSError("no system call failed")).exception, OSError)


def terminated(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LONG_COMMAND, *arguments]
    root = Path(common.__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.parametrize("arguments", [(), ("--ray",)], ids=["plain", "ray"])
def test_preemption_closes_what_is_open_and_exits_with_143(arguments: tuple[str, ...]) -> None:
    done = terminated(*arguments)
    assert (done.returncode, done.stdout) == (143, "closed\n")  # Ray has put handlers of its own in place
    assert done.stderr.splitlines()[-1] == "preempted; the same command goes on from what is committed"
    assert "Traceback" not in done.stderr


def test_the_handler_before_stands_again() -> None:
    before = signal.getsignal(signal.SIGTERM)
    ended_by(KeyError("x"))
    assert signal.getsignal(signal.SIGTERM) is before
