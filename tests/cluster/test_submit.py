"""`triplane submit` and `triplane jobs` on real clusters: a Ray head and a Spark master and worker, started here and ended here."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner, Result

from jobs.cli import app
from jobs.local_cluster import cluster
from jobs.local_cluster.record import Record
from jobs.submission import follow, job, package, ray_jobs, targets
from jobs.submission import submit as submission
from jobs.submission.job import Job, Parcel, State
from triplane.errors import LostRace

TRIPLANE = (sys.executable, "-c", "from jobs.cli import app; app()")
ASKS = """
import sys
from pyspark import SparkContext

def ask(number):
    import jobs
    from jobs.submission import package
    here = jobs.__file__
    return package.digest(package.entries())[:16], "/app-" in here, here.startswith(sys.prefix)

context = SparkContext()
print("executor", *context.parallelize([0], 1).map(ask).first())
context.stop()
sys.exit(7)
"""
STOPPABLE = (
    "import os, signal, sys, time; "
    "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(4), print('committed', flush=True), sys.exit(143))); "
    "print('up', os.getpid(), flush=True); time.sleep(600)"
)  # 4 s: longer than the 3 that Ray would give it


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Record]:
    """A cluster, used as `triplane cluster env` says."""
    folder = tmp_path_factory.mktemp("cluster")
    own = folder / "Ann's files é"
    before = dict(os.environ)
    try:
        made, _ = cluster.up(folder / "c", 1, "http://127.0.0.1:1")
        for name in ("state", "cache"):
            os.environ[f"XDG_{name.upper()}_HOME"] = str(own / name)
        os.environ.update({name: value for name, value in made.environment.items() if not name.startswith("AWS_")})
        yield made
    finally:
        cluster.down(folder / "c")
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.2)


def triplane(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def python_job(running: Record, id: str, code: str) -> ray_jobs.RayJobs:
    """Submits `python -c CODE` to Ray as a training run would be."""
    backend = ray_jobs.connect(running.ray)
    content = package.archive({job.RECIPE: b"name: x\n"})
    backend.submit(
        id, Job("train", "name: x\n", "/root", (code,)), Parcel("x", 0, "x", ("python", "-c", code), content)
    )
    return backend


def followed(backend: Any, id: str) -> tuple[State, str, list[str]]:
    written: list[str] = []
    said: list[str] = []
    state = follow.follow(backend, id, written.append, said.append)
    return state, "".join(written), said


def test_ray_jobs_end_with_their_own_exit_code_and_output(running: Record) -> None:
    cases = {
        "done": ("print('fine')", 0, "fine\n", "done finished"),
        "killed": (
            "import os; print('up', flush=True); os.kill(os.getpid(), 9)",
            137,
            "up\nKilled\n",  # Ray's shell says the second
            "killed failed with exit code 137",
        ),
        "silent": ("import os; os._exit(5)", 5, "", "silent failed with exit code 5 before its first line of output"),
    }
    for id, (code, *_) in cases.items():
        python_job(running, id, code)
    for id, (_, exit_code, output, sentence) in cases.items():
        state, written, said = followed(ray_jobs.connect(running.ray), id)
        assert (state.own_exit_code, written, said[-1]) == (exit_code, output, sentence)
    listed = json.loads(triplane("jobs", "list", "--to", running.ray, "--json").stdout)
    assert {one["id"]: one["exit_code"] for one in listed} == {id: case[1] for id, case in cases.items()}
    other = Job("train", "name: y\n", "/root", ())
    with pytest.raises(LostRace, match=r"done is another train job .*give another --name"):
        submission.submit(ray_jobs.connect(running.ray), other, "done", lambda line: None)


class Proxy:
    """Passes a port on. A WebSocket is cut once its answer passes the next of `cuts` bytes; while `away`, all get 503."""

    def __init__(self, to: str, cuts: list[int]) -> None:
        place = urlsplit(to)
        self.to, self.cuts = (place.hostname, place.port), cuts
        self.cut, self.refused = 0, 0
        self.away, self.stop = threading.Event(), threading.Event()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.listening.settimeout(0.1)
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.threads = [threading.Thread(target=self.serve)]
        self.threads[0].start()

    def serve(self) -> None:
        while not self.stop.is_set():
            with contextlib.suppress(TimeoutError):
                client, _ = self.listening.accept()
                self.threads.append(threading.Thread(target=self.connection, args=(client,)))
                self.threads[-1].start()

    def connection(self, client: socket.socket) -> None:
        with client:
            if self.away.is_set():
                self.refused += 1
                client.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            with socket.create_connection(self.to) as server, contextlib.suppress(OSError):
                self.pass_on(client, server)

    def pass_on(self, client: socket.socket, server: socket.socket) -> None:
        passed, is_stream = 0, False
        while not self.stop.is_set():
            for source in select.select([client, server], [], [], 0.1)[0]:
                data = source.recv(4096)
                if not data:
                    return
                is_stream = is_stream or (source is server and b"101 Switching Protocols" in data)
                passed += len(data) if source is server else 0
                if is_stream and self.cuts and passed > self.cuts[0]:
                    self.cuts.pop(0)
                    self.cut += 1
                    return
                (server if source is client else client).sendall(data)

    def close(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(10)
        self.listening.close()


def test_a_log_that_is_cut_and_a_dashboard_that_is_away(running: Record) -> None:
    code = "import sys, time; [(print('line', i, flush=True), time.sleep(0.1)) for i in range(40)]; sys.exit(3)"
    python_job(running, "long", code)
    with closing(Proxy(running.ray, [400, 600, 800])) as proxy:
        threading.Timer(1.0, proxy.away.set).start()
        threading.Timer(2.5, proxy.away.clear).start()
        state, written, said = followed(ray_jobs.connect(proxy.url), "long")
    assert (state.own_exit_code, written) == (3, "".join(f"line {i}\n" for i in range(40)))
    assert proxy.cut >= 1 and proxy.refused >= 1
    assert (
        said[0].startswith(f"{proxy.url} answers 503; long may go on all the same")
        and said[-1] == "long failed with exit code 3"
    )


def test_leaving_does_not_end_a_job_and_cancelling_lets_it_commit(running: Record) -> None:
    backend = python_job(running, "stoppable", STOPPABLE)
    command = [*TRIPLANE, "jobs", "logs", "stoppable", "--follow", "--to", running.ray]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        pid = int(follower.stdout.readline().split()[1])
        follower.send_signal(signal.SIGINT)
        _, said = follower.communicate(timeout=30)
    assert follower.returncode == 130
    assert said == (
        f"detached: stoppable goes on; follow it by `triplane jobs logs stoppable --follow --to {running.ray}`, "
        f"end it by `triplane jobs cancel stoppable --to {running.ray}`\n"
    )
    state = backend.find("stoppable")
    assert state is not None and state.status == "running" and Path(f"/proc/{pid}").exists()
    cancelled = triplane("jobs", "cancel", "stoppable", "--to", running.ray)
    assert (cancelled.exit_code, cancelled.stdout) == (0, "stoppable stopped\n")
    assert not Path(f"/proc/{pid}").exists()
    assert backend.output("stoppable").splitlines()[-1] == "committed"


def test_without_the_token_nothing_is_told(running: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("wrong")
    monkeypatch.setenv("HOME", str(tmp_path))
    for token, code in ((str(tmp_path / "token"), 403), ("", 401)):
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", token)
        asked = triplane("jobs", "list", "--to", running.ray)
        assert (asked.exit_code, asked.stdout) == (1, "")
        assert f"answers {code}" in asked.stderr and "RAY_AUTH_TOKEN_PATH" in asked.stderr
        assert len(asked.stderr.splitlines()) == 1


def test_a_spark_job_runs_the_code_that_was_sent(running: Record, tmp_path: Path) -> None:
    """In the place of a build, which compiles for long, a program that asks its executor where our packages are."""
    program = tmp_path / "asks.py"
    program.write_text(ASKS)
    backend = targets.connect(running.spark, "data")
    build = Job("data", "name: x\n", str(tmp_path), ())
    parcel = backend.prepare(build)
    command = [str(program) if part.endswith("/build_mix.py") else part for part in parcel.command]
    backend.submit("asks", build, replace(parcel, command=tuple(command)))
    state, written, said = followed(backend, "asks")
    answer = [line for line in written.splitlines() if line.startswith("executor ")]
    assert answer == [f"executor {parcel.code} True False"], written
    assert (state.own_exit_code, said[-1]) == (7, "asks failed with exit code 7")
    assert [(one.id, one.own_exit_code) for one in backend.jobs()] == [("asks", 7)]
