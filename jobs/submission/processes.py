"""Jobs as child processes of this machine: `local`, and `spark://` (spark-submit in client mode, its driver here).

What is known of a job lies in a folder of its own below `$XDG_STATE_HOME/triplane/jobs/TARGET`, so that every later command finds it; a supervisor
starts the child there and writes down its exit code (`supervisor`). What a child needs to know and nobody else reads it from its environment.
"""

import codecs
import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.submission import package, supervisor
from jobs.submission.job import RECIPE, Job, Parcel, State
from triplane.errors import LostRace, NotFound, TriplaneError

CONNECT_SECONDS = 5.0
POLL_SECONDS = 0.1
START_SECONDS = 20.0
GRACE_SECONDS = 60.0  # between SIGTERM and SIGKILL: time for a checkpoint
CHUNK = 1 << 16
ARCHIVE = "triplane"  # what the unpacked wheel is called in a Spark executor's working folder


@dataclass(frozen=True)
class Processes:
    """The jobs of this machine and user whose target is `target`: `local` or `spark://HOST:PORT`."""

    target: str

    def prepare(self, job: Job) -> Parcel:
        """Nothing is sent to a child; Spark's executors fetch the wheel from its driver. Raises TriplaneError without pyspark."""
        if self.target == "local":
            command = job.command(sys.executable, RECIPE)
            command.insert(1, "-P")  # what lies in this folder, maybe another checkout, is not what was looked over
            return Parcel("nothing (it runs here)", 0, package.digest(package.entries()), tuple(command))
        wheel = package.wheel(".zip")  # Spark unpacks by the name's end
        command = spark_submit(self.target, wheel, job)
        return Parcel(package.file_name(), wheel.stat().st_size, wheel.parent.name, tuple(command))

    @property
    def folder(self) -> Path:
        """Where the target's jobs are: the same build may go to two masters, under the same id."""
        home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        return home / "triplane" / "jobs" / self.target.replace("://", "-").replace(":", "-")

    def find(self, id: str) -> State | None:
        said = _read(self.folder / id / "job.json")
        return None if said is None else _state(self.folder / id, said)

    def submit(self, id: str, job: Job, parcel: Parcel) -> None:
        """Starts the child. LostRace when the id is in use; TriplaneError when no Spark master listens."""
        name: tuple[str, ...] = ()
        if self.target != "local":
            _require_listener(self.target)
            name = ("--name", id)  # what Spark's pages call it
        folder = self.folder / id
        program, *rest = parcel.command
        parts = [str(folder / RECIPE) if part == RECIPE else part for part in (program, *name, *rest)]
        said = {
            "plane": job.plane,
            "fingerprint": job.fingerprint(parcel.code),
            "command": parts,
            "environment": _environment(self.target),
            "cwd": os.getcwd(),
            "grace_seconds": GRACE_SECONDS,
            "started": time.time(),
        }
        lock = _make_folder(folder, said, job.recipe)
        try:
            _supervise(folder, lock)
        finally:
            os.close(lock)

    def log_of(self, id: str) -> str:
        return id

    def stream(self, id: str, emit: Callable[[str], None], stop: threading.Event) -> None:
        """The log file as it grows, to its end."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with (self.folder / id / "log").open("rb") as log:
            while not stop.is_set():
                over = _is_over(self.folder / id)  # asked before the read: what was written before the end is read
                chunk = log.read(CHUNK)
                if chunk:
                    emit(decoder.decode(chunk))
                elif over:
                    return
                else:
                    stop.wait(POLL_SECONDS)

    def output(self, id: str) -> str:
        return (self.folder / id / "log").read_bytes().decode("utf-8", "replace")

    def cancel(self, id: str) -> None:
        """SIGTERM to the supervisor, which passes it on. Raises NotFound."""
        folder = self.folder / id
        if self.find(id) is None:
            raise NotFound(f"no job {id} was submitted to {self.target} from here: list them by `triplane jobs list`")
        deadline = time.monotonic() + START_SECONDS
        while not (folder / "pid").exists() and not _is_over(folder) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        pid = _read(folder / "pid")
        if pid is not None and not _is_over(folder):
            with contextlib.suppress(ProcessLookupError):  # it ended at this moment
                os.kill(pid, signal.SIGTERM)

    def jobs(self) -> list[State]:
        found = [self.find(path.parent.name) for path in self.folder.glob("*/job.json")]
        return sorted((one for one in found if one is not None), key=lambda one: one.started or 0.0)


def spark_submit(master: str, wheel: Path, job: Job) -> list[str]:
    """The command of a build on a Spark master. The wheel goes as an archive, unpacked by each executor: numba keeps what it compiles
    beside the source, which a ZIP archive on the path has no place for. Raises TriplaneError without pyspark."""
    program = Path(_pyspark()) / "bin" / "spark-submit"
    main = Path(__file__).parents[1] / "build_mix.py"
    settings = {
        "spark.executorEnv.PYTHONPATH": ARCHIVE,
        "spark.log.level": "WARN",
        "spark.ui.showConsoleProgress": "false",
    }
    flags = [part for name, value in settings.items() for part in ("--conf", f"{name}={value}")]
    return [
        str(program), "--master", master, "--archives", f"{wheel.as_uri()}#{ARCHIVE}", *flags, str(main), *job.arguments(RECIPE),
    ]  # fmt: skip


def _pyspark() -> str:
    found = importlib.util.find_spec("pyspark")
    if found is None or not found.submodule_search_locations:
        raise TriplaneError("pyspark is not installed here: run `pip install 'triplane[data]'`")
    return next(iter(found.submodule_search_locations))


def _environment(target: str) -> dict[str, str]:
    """What is set for the child beside this process's environment, which it inherits, secrets too: none of them is written down."""
    found = {"PYTHONUNBUFFERED": "1"}
    if target == "local":
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        found["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if importlib.util.find_spec("pyspark") is not None:
        found |= {"SPARK_HOME": _pyspark(), "PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable}
    return found


def _require_listener(master: str) -> None:
    """Spark would try for a minute and then say it on forty lines."""
    host, _, port = master.removeprefix("spark://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise TriplaneError(
            f"no Spark master answers at {master} ({error.strerror or error}): check the address and that it runs"
        ) from error


def _make_folder(folder: Path, said: dict[str, Any], recipe: str) -> int:
    """Puts a job's folder in place, whole, with a lock held -> the lock's file descriptor. Raises LostRace."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    (scratch / RECIPE).write_text(recipe, "utf-8")
    (scratch / "log").touch()
    supervisor.write(scratch / "job.json", said)
    lock = os.open(scratch / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        os.rename(scratch, folder)  # fails on a folder that has something in it
    except OSError as error:
        os.close(lock)
        shutil.rmtree(scratch)
        raise LostRace(
            f"job {folder.name} was submitted by another command at this moment: run this one again"
        ) from error
    return lock


def _supervise(folder: Path, lock: int) -> None:
    subprocess.run(
        [sys.executable, "-m", "jobs.submission.supervisor", str(folder)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=(lock,),
        check=True,
    )


def _state(folder: Path, said: dict[str, Any]) -> State:
    known = {"plane": said["plane"], "fingerprint": said["fingerprint"], "started": said["started"]}
    ended = _read(folder / "exit.json")
    if ended is None and _is_over(folder):
        ended = _read(folder / "exit.json")  # it may have been written between the two looks
        if ended is None:
            return State(folder.name, "failed", None, "its supervisor was killed: how it ended is not known", **known)
    if ended is None:
        return State(folder.name, "running", **known)
    code = ended["exit_code"]
    status: Any = "succeeded" if code == 0 else "stopped" if ended["stopped"] else "failed"
    return State(folder.name, status, code, "", ended=ended["ended"], **known)


def _is_over(folder: Path) -> bool:
    """Whether nobody is left who could say how the job ends."""
    try:
        lock = os.open(folder / "lock", os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
