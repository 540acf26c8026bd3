"""Jobs on a Ray cluster: what is sent and how answers are understood, against a dashboard of ours that fails on request."""

import asyncio
import functools
import io
import json
import os
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from jobs.submission import follow, package, ray_jobs
from jobs.submission import submit as submission
from jobs.submission.job import Job, State, Unreachable
from triplane.errors import LostRace, Refused, TriplaneError, UsageError

JOB = Job("train", "name: x\n", "s3://bucket/root", ("a=it's",))
PREFACE = "2026-11-25 17:58:22,335\tINFO job_manager.py:581 -- Runtime env is setting up.\nRunning entrypoint for job a: python\n"
LOG = "".join(f"step {i}\n" for i in range(30))


@dataclass
class Dashboard:
    """The routes of Ray 2.60's dashboard that jobs use. `mishaps`: (method, path's end) -> answers given in the place of its own, in turn:
    a status, `lost` (done, then no answer), `cut` (a WebSocket closed after some characters)."""

    token: str | None = None
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)
    mishaps: dict[tuple[str, str], list[Any]] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    log: str = PREFACE + LOG
    ends: dict[str, Any] = field(default_factory=lambda: {"status": "SUCCEEDED", "driver_exit_code": 0})
    url: str = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path, request.headers.get("Authorization")))
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=403 if "Authorization" in request.headers else 401, text="no")
        mishap = self._mishap(request)
        if isinstance(mishap, int):
            return web.Response(
                status=mishap, text="mishap", headers={"Location": "http://127.0.0.1:1/"} if mishap == 302 else {}
            )
        if isinstance(mishap, str) and mishap not in ("lost", "cut"):
            return web.Response(text=mishap)
        if request.path.endswith("/tail"):
            return await self._tail(request, 40 if mishap == "cut" else None)
        made = await self._handle(request)
        if mishap == "lost":
            assert request.transport is not None
            request.transport.abort()
        return made

    def _mishap(self, request: web.Request) -> Any:
        for (method, end), answers in self.mishaps.items():
            if method == request.method and request.path.endswith(end) and answers:
                return answers.pop(0)
        return None

    async def _handle(self, request: web.Request) -> web.Response:
        parts = request.path.strip("/").split("/")[1:]
        if parts[0] == "packages":
            if request.method == "PUT":
                self.packages[parts[2]] = await request.read()
            return web.Response(status=200 if parts[2] in self.packages else 404)
        if request.method == "POST" and len(parts) == 1:
            return self._submit(await request.json())
        if len(parts) == 1:
            return web.json_response(
                [*self.jobs.values(), {"submission_id": None, "status": "RUNNING", "type": "DRIVER"}]
            )
        job = self.jobs.get(parts[1])
        if job is None:
            return web.Response(status=404, text="Job does not exist")
        if parts[2:] == ["stop"]:
            job |= {"status": "STOPPED", "end_time": 3000}
            return web.json_response({"stopped": True})
        if parts[2:] == ["logs"]:
            return web.json_response({"logs": self.log})
        job["looks"] += 1
        if job["looks"] > 4 and job["status"] == "RUNNING":
            job |= self.ends | {"end_time": 2500}
        return web.json_response(job)

    def _submit(self, said: dict[str, Any]) -> web.Response:
        id = said["submission_id"]
        if id in self.jobs:
            return web.Response(
                status=500, text=f"ValueError: Job with submission_id {id} already exists. Please use a different one."
            )
        self.jobs[id] = {
            **said,
            "status": "RUNNING",
            "type": "SUBMISSION",
            "start_time": 1000,
            "end_time": None,
            "looks": 0,
        }
        return web.json_response({"submission_id": id})

    async def _tail(self, request: web.Request, cut: int | None) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        text = self.log[: cut or len(self.log)]
        for start in range(0, len(text), 25):
            await socket.send_str(text[start : start + 25])
        if cut is not None:
            assert request.transport is not None
            request.transport.abort()
            return socket
        while self.jobs[request.path.split("/")[3]]["status"] == "RUNNING":
            await asyncio.sleep(0.02)
        return socket


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    made, ready, loop = Dashboard(), threading.Event(), asyncio.new_event_loop()

    async def serve() -> web.AppRunner:
        application = web.Application(client_max_size=200 << 20)
        application.router.add_route("*", "/{path:.*}", made.answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(serve())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        pending = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    yield made
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "entries", functools.cache(package.entries))  # a file may be edited meanwhile
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(follow, "RETRY_SECONDS", 0.02)
    for name in [*os.environ]:
        if name.startswith("RAY_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def submitted(dashboard: Dashboard, name: str | None = "a") -> submission.Submitted:
    return submission.submit(ray_jobs.connect(dashboard.url), JOB, name, lambda line: None)


def followed(dashboard: Dashboard, id: str = "a") -> tuple[State, str, list[str]]:
    written: list[str] = []
    said: list[str] = []
    state = follow.follow(ray_jobs.connect(dashboard.url), id, written.append, said.append)
    return state, "".join(written), said


def test_what_is_sent(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-send")
    made = submitted(dashboard, None)
    said = dashboard.jobs[made.id]
    assert made.id == f"train-{made.fingerprint[:12]}"
    assert said["entrypoint"] == """python -m jobs.train recipe.yaml --root s3://bucket/root 'a=it'"'"'s'"""
    assert said["metadata"] == {"triplane_plane": "train", "triplane_fingerprint": made.fingerprint}
    ((name, content),) = dashboard.packages.items()
    assert said["runtime_env"] == {
        "working_dir": f"gcs://{name}",
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
    }
    assert len(content) == made.parcel.bytes
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.read("recipe.yaml") == b"name: x\n"
        assert set(archive.namelist()) == {*package.entries(), "recipe.yaml"}
    assert b"do-not-send" not in content and "do-not-send" not in json.dumps(said)


def test_the_same_package_is_uploaded_once(dashboard: Dashboard) -> None:
    submitted(dashboard, "a")
    submitted(dashboard, "b")
    assert [method for method, path, _ in dashboard.requests if "/packages/" in path] == ["GET", "PUT", "GET"]


def test_a_package_over_the_limit_is_not_sent(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "MAX_BYTES", 1000)
    monkeypatch.setattr(package, "entries", lambda: {"jobs/big.bin": os.urandom(5000), "jobs/small.py": b""})
    with pytest.raises(
        UsageError,
        match=r"the package is 5\.\d kB, a Ray cluster takes 1\.0 kB: move what is large \(jobs/big.bin: 5\.0 kB\)",
    ):
        submitted(dashboard)
    assert dashboard.requests == []


@pytest.mark.parametrize(
    ("ends", "exit_code", "said"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0, "a finished"),
        ({"status": "FAILED", "driver_exit_code": 2, "message": "Job entrypoint command failed"}, 2, "a failed with exit code 2"),
        ({"status": "FAILED", "driver_exit_code": -9, "message": "x"}, 137, "a failed with exit code 137"),
        ({"status": "FAILED", "driver_exit_code": None, "message": "Job supervisor actor died: OOM"}, 1, "a failed: Job supervisor actor died: OOM"),
        ({"status": "STOPPED", "driver_exit_code": None}, 143, "a was stopped"),
    ],
)  # fmt: skip
def test_the_jobs_own_exit_code_and_output(
    dashboard: Dashboard, ends: dict[str, Any], exit_code: int, said: str
) -> None:
    dashboard.ends = ends
    submitted(dashboard)
    state, written, lines = followed(dashboard)
    assert (state.own_exit_code, written, lines[-1]) == (exit_code, LOG, said)
    assert (state.plane, state.started, state.ended) == ("train", 1.0, 2.5)


def test_a_log_that_is_cut_and_a_dashboard_that_is_away(dashboard: Dashboard) -> None:
    dashboard.ends = {"status": "FAILED", "driver_exit_code": 4}
    dashboard.mishaps = {("GET", "/logs/tail"): ["cut", 503, "cut"], ("GET", "/logs"): [500, 503, "cut"]}
    submitted(dashboard)
    dashboard.mishaps[("GET", "/jobs/a")] = [503, 502, 504, 500]
    state, written, said = followed(dashboard)
    assert (state.own_exit_code, written) == (4, LOG)
    assert said[0].startswith(f"{dashboard.url} answers 503; a may go on all the same")
    assert said[-1] == "a failed with exit code 4"


def test_a_job_that_dies_before_its_first_line(dashboard: Dashboard) -> None:
    dashboard.log, dashboard.ends = PREFACE, {"status": "FAILED", "driver_exit_code": 127, "message": "x"}
    submitted(dashboard)
    state, written, said = followed(dashboard)
    assert (state.own_exit_code, written) == (127, "")
    assert said == ["a failed with exit code 127 before its first line of output"]


@pytest.mark.parametrize(
    "log", ["", "no end", "Running", PREFACE, PREFACE + "no end", "a\n" + PREFACE, PREFACE + "\n\nx\n" + PREFACE]
)
def test_rays_own_lines_are_left_out_and_nothing_else(log: str) -> None:
    wanted = log.removeprefix(PREFACE)
    for step in (1, 2, 1000):
        pieces: list[str] = []
        own = ray_jobs._JobsOwn(pieces.append)
        for start in range(0, len(log), step):
            own.add(log[start : start + step])
        own.finish()
        assert "".join(pieces) == wanted


def test_an_answer_that_is_lost_is_asked_about(dashboard: Dashboard) -> None:
    dashboard.mishaps[("POST", "/api/jobs/")] = ["lost"]
    submitted(dashboard)
    assert list(dashboard.jobs) == ["a"]
    assert [method for method, path, _ in dashboard.requests if path == "/api/jobs/"] == ["POST"]


def test_a_dashboard_that_is_away_for_a_moment_gets_the_job_once(dashboard: Dashboard) -> None:
    dashboard.mishaps[("POST", "/api/jobs/")] = [503]
    submitted(dashboard)
    assert list(dashboard.jobs) == ["a"]


def test_two_that_submit_at_once_both_have_the_job(dashboard: Dashboard) -> None:
    first = submitted(dashboard)
    dashboard.mishaps[("GET", "/jobs/a")] = [404]  # as it was when the second looked
    second = submitted(dashboard)
    assert (first.attached, second.attached, second.id) == (False, True, "a")
    dashboard.jobs["a"]["metadata"]["triplane_fingerprint"] = "another"
    dashboard.mishaps[("GET", "/jobs/a")] = [404]
    with pytest.raises(LostRace, match="job a was submitted by another command"):
        submitted(dashboard)


@pytest.mark.parametrize("variable", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", None])
def test_the_token_comes_from_where_ray_reads_it(
    dashboard: Dashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    dashboard.token = "open sesame"
    path = tmp_path / (".ray/auth_token" if variable is None else "token")
    path.parent.mkdir(exist_ok=True)
    path.write_text("open sesame\n")
    if variable is None:
        with pytest.raises(Refused, match="answers 401"):
            submitted(dashboard)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
    else:
        monkeypatch.setenv(variable, "open sesame" if variable == "RAY_AUTH_TOKEN" else str(path))
    submitted(dashboard)
    state, written, _ = followed(dashboard)
    assert (state.status, written) == ("succeeded", LOG)
    assert "sesame" not in repr(ray_jobs.connect(dashboard.url))


def test_no_token_and_a_wrong_one(dashboard: Dashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dashboard.token = "right"
    with pytest.raises(
        Refused, match="answers 401: it wants a token: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to the file"
    ):
        submitted(dashboard)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    with pytest.raises(Refused, match="answers 403: the token from RAY_AUTH_TOKEN is not this cluster's"):
        submitted(dashboard)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match=r"RAY_AUTH_TOKEN_PATH names .*nothing, which cannot be read"):
        submitted(dashboard)
    assert dashboard.jobs == {}


def test_the_token_does_not_follow_a_redirect(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    dashboard.mishaps[("GET", "/api/jobs/")] = [302]
    with pytest.raises(TriplaneError, match="it answered 302"):
        ray_jobs.connect(dashboard.url).jobs()


def test_what_is_no_dashboard(dashboard: Dashboard) -> None:
    dashboard.mishaps[("GET", "/jobs/a")] = ["<html>hello</html>"]
    with pytest.raises(TriplaneError, match="is no Ray dashboard"):
        submitted(dashboard)
    with pytest.raises(
        Unreachable,
        match=r"no Ray dashboard answers at http://127\.0\.0\.1:1 \(Connection refused\): check the address",
    ):
        submission.submit(ray_jobs.connect("ray://127.0.0.1:1"), JOB, "a", lambda line: None)
    with pytest.raises(Unreachable, match=r"no Ray dashboard answers at http://no\.such\.host\.invalid:8265 \("):
        submission.submit(ray_jobs.connect("ray://no.such.host.invalid"), JOB, "a", lambda line: None)


def test_cancel_and_list(dashboard: Dashboard) -> None:
    submitted(dashboard, "a")
    submitted(dashboard, "b")
    backend = ray_jobs.connect(dashboard.url)
    backend.cancel("a")
    assert follow.wait_for_end(backend, "a", lambda line: None).status == "stopped"
    assert [(one.id, one.status, one.plane) for one in backend.jobs()] == [
        ("a", "stopped", "train"),
        ("b", "running", "train"),
    ]
    with pytest.raises(TriplaneError, match=r"does not stop c \(it answered 404: Job does not exist\)"):
        backend.cancel("c")


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("ray://head", "http://head:8265"),
        ("ray://head:9000", "http://head:9000"),
        ("ray://[::1]", "http://[::1]:8265"),
        ("http://127.0.0.1:8265/", "http://127.0.0.1:8265"),
        ("https://ray.example.org", "https://ray.example.org"),
    ],
)
def test_addresses(target: str, address: str) -> None:
    assert ray_jobs.connect(target).address == address


@pytest.mark.parametrize(
    "target", ["ray://", "ray://head:port", "http://user:word@head", "http://head/path", "ray://:8265"]
)
def test_what_is_no_address(target: str) -> None:
    with pytest.raises(UsageError, match="names no Ray dashboard"):
        ray_jobs.connect(target)
