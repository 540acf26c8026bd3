"""Jobs as child processes: real ones, killed for real."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from jobs.submission import follow, processes
from jobs.submission.job import Job, Parcel, State
from jobs.submission.processes import Processes
from triplane.errors import LostRace, NotFound, TriplaneError

JOB = Job("train", "name: x\n", "/root", ())
HERE = Processes("local")


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(follow, "RETRY_SECONDS", 0.05)
    yield tmp_path / "triplane" / "jobs" / "local"
    for state in HERE.jobs():
        if not state.is_over:
            HERE.cancel(state.id)


def start(id: str, code: str, *arguments: str) -> None:
    HERE.submit(id, JOB, Parcel("nothing", 0, "code", (sys.executable, "-c", code, *arguments)))


def ended(id: str) -> tuple[State, str]:
    written: list[str] = []
    return follow.follow(HERE, id, written.append, lambda line: None), "".join(written)


@pytest.mark.parametrize(
    ("code", "exit_code", "status", "output"),
    [
        ("print('hello'); print('there')", 0, "succeeded", "hello\nthere\n"),
        ("import sys; print('wrong', file=sys.stderr); sys.exit(2)", 2, "failed", "wrong\n"),
        ("import os; os.kill(os.getpid(), 9)", 137, "failed", ""),
        ("import sys; sys.stdout.write('no end'); sys.exit(1)", 1, "failed", "no end"),
        ("import sys; sys.stdout.buffer.write('\u00e9'.encode() * 100_000)", 0, "succeeded", "\u00e9" * 100_000),
    ],
)
def test_its_own_exit_code_and_all_of_its_output(code: str, exit_code: int, status: str, output: str) -> None:
    start("a", code)
    state, written = ended("a")
    assert (state.own_exit_code, state.status, written) == (exit_code, status, output)
    assert HERE.output("a") == output
    assert state.fingerprint == JOB.fingerprint("code") and state.plane == "train"
    assert state.ended is not None and state.started is not None and 0 <= state.ended - state.started < 60


def test_a_program_that_is_not_there() -> None:
    HERE.submit("a", JOB, Parcel("nothing", 0, "code", ("/no/such/program",)))
    state, written = ended("a")
    assert state.own_exit_code == 127
    assert written == "error: the job does not start (No such file or directory: /no/such/program)\n"


def test_the_recipe_is_a_copy_and_the_environment_is_inherited(
    monkeypatch: pytest.MonkeyPatch, state_folder: Path
) -> None:
    monkeypatch.setenv("SECRET_OF_A_TEST", "not written down")
    code = "import os, sys; print(open(sys.argv[1]).read(), os.environ['SECRET_OF_A_TEST'])"
    start("a", code, "recipe.yaml")
    assert ended("a")[1] == "name: x\n not written down\n"
    assert "not written down" not in (state_folder / "a" / "job.json").read_text()


def test_what_lies_in_this_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    evaluation = Job("eval", "modle: x\n", str(tmp_path), ())
    HERE.submit("a", evaluation, HERE.prepare(evaluation))
    state, written = ended("a")
    assert state.exit_code == 2 and "did you mean 'model'?" in written


def test_an_id_in_use_is_a_lost_race(state_folder: Path) -> None:
    start("a", "")
    with pytest.raises(LostRace, match="job a was submitted by another command"):
        start("a", "print('another')")
    ended("a")
    assert sorted(path.name for path in state_folder.iterdir()) == ["a"]


def test_cancel_lets_it_commit_and_waits(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "def stop(*_):\n"
        "    time.sleep(0.3); print('committed', flush=True); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); print('up', flush=True); time.sleep(600)"
    )
    start("a", code)
    wait_for("up", "a")
    HERE.cancel("a")
    state = follow.wait_for_end(HERE, "a", lambda line: None)
    assert (state.status, state.own_exit_code) == ("stopped", 143)
    assert HERE.output("a") == "up\ncommitted\n"
    HERE.cancel("a")  # what is over stays as it ended
    assert HERE.find("a") == state


def test_what_does_not_end_is_killed_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.5)
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = os.fork()\n"
        "print('up', os.getpid(), flush=True) if child else None; time.sleep(600)"
    )
    start("a", code)
    group = int(wait_for("up", "a").split()[1])
    HERE.cancel("a")
    state = follow.wait_for_end(HERE, "a", lambda line: None)
    assert (state.status, state.exit_code) == ("stopped", -9)
    deadline = time.monotonic() + 5
    while living(group):  # a loaded machine takes a moment to end what it was told to kill
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_when_the_supervisor_is_killed_nobody_pretends_to_know(state_folder: Path) -> None:
    start("a", "import time; print('up', flush=True); time.sleep(600)")
    wait_for("up", "a")
    supervisor = int((state_folder / "a" / "pid").read_text())
    (child,) = children(supervisor)
    os.kill(supervisor, signal.SIGKILL)
    state, _ = ended("a")
    os.killpg(child, signal.SIGKILL)
    assert (state.status, state.exit_code, state.own_exit_code) == ("failed", None, 1)
    assert "how it ended is not known" in state.message


def test_a_list_has_the_jobs_of_its_target() -> None:
    start("b", "")
    ended("b")
    start("a", "import sys; sys.exit(3)")
    ended("a")
    assert [(one.id, one.own_exit_code) for one in HERE.jobs()] == [("b", 0), ("a", 3)]
    assert Processes("spark://localhost:7077").jobs() == []
    assert Processes("spark://localhost:7077").find("a") is None
    with pytest.raises(NotFound, match="no job a was submitted to spark://localhost:7077"):
        Processes("spark://localhost:7077").cancel("a")


def test_one_id_at_two_targets_is_two_jobs(tmp_path: Path) -> None:
    """The same build sent to a second master has the same id there."""
    program = tmp_path / "submit"
    program.write_text("#!/bin/sh\nfor last; do :; done\nexit $last\n")
    program.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = [one.getsockname()[1] for one in (first, second)]
        places = [HERE, *(Processes(f"spark://127.0.0.1:{port}") for port in ports)]
        for exit_code, place in enumerate(places):
            place.submit("a", JOB, Parcel("nothing", 0, "code", (str(program), str(exit_code))))
    for exit_code, place in enumerate(places):
        assert follow.follow(place, "a", lambda text: None, lambda line: None).exit_code == exit_code
        assert [one.id for one in place.jobs()] == ["a"]


def test_no_master_is_said_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(
        TriplaneError, match=r"no Spark master answers at spark://127\.0\.0\.1:1 \(Connection refused\)"
    ):
        Processes("spark://127.0.0.1:1").submit("a", JOB, Parcel("", 0, "", ("true",)))
    assert time.monotonic() - began < 5
    assert Processes("spark://127.0.0.1:1").find("a") is None


def test_spark_submit_gets_an_argument_list_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "my cache é"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-show")
    job = Job("data", "name: x\n", "s3://b/root", ("a=b c; rm -rf $HOME",))
    parcel = Processes("spark://h:7077").prepare(job)
    command = list(parcel.command)
    assert command[0].endswith("/pyspark/bin/spark-submit")
    assert command[command.index("--master") + 1] == "spark://h:7077"
    archive = urlsplit(command[command.index("--archives") + 1])
    assert (archive.scheme, archive.fragment) == ("file", "triplane") and "/my%20cache%20%C3%A9/" in archive.path
    assert Path(unquote(archive.path)).stat().st_size == parcel.bytes
    assert command[-4:] == [
        str(Path(processes.__file__).parents[1] / "build_mix.py"),
        "recipe.yaml",
        "s3://b/root",
        job.overrides[0],
    ]
    assert "do-not-show" not in " ".join(command)


def test_following_ends_when_asked_to() -> None:
    start("a", "import time; print('up', flush=True); time.sleep(600)")
    stop, seen = threading.Event(), threading.Event()
    reader = threading.Thread(target=HERE.stream, args=("a", lambda text: seen.set(), stop))
    reader.start()
    assert seen.wait(20)
    stop.set()
    reader.join(5)
    assert not reader.is_alive()


def wait_for(word: str, id: str) -> str:
    deadline = time.monotonic() + 20
    while word not in HERE.output(id):
        assert time.monotonic() < deadline, HERE.output(id)
        time.sleep(0.02)
    return HERE.output(id)


def living(group: int) -> list[str]:
    """The processes of a group that are not just waiting for someone to note their end."""
    found = [line.rpartition(")")[2].split() for line in map(stat, Path("/proc").glob("[0-9]*")) if line]
    return [fields[0] for fields in found if int(fields[2]) == group and fields[0] != "Z"]


def stat(process: Path) -> str:
    try:
        return (process / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(one) for one in found.split()]
