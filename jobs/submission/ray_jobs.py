"""Jobs on a Ray cluster, by the REST API of its dashboard; Ray itself is not imported here, so a submission starts at once.

A job goes as one content-addressed package: the unpacked wheel with the recipe in it, which Ray puts into every process's working folder and on its
path. (As `py_modules` the wheel would be installed by pip, its dependencies with it, by every node: ray issue 27624.) What the job's environment
holds is the cluster's, credentials too; only where the object store is goes along. Source: Ray 2.60,
https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html
"""

import asyncio
import hashlib
import http.client
import json
import os
import re
import shlex
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from jobs.submission import package
from jobs.submission.job import RECIPE, Job, Parcel, State, Unreachable
from triplane.errors import LostRace, Refused, TriplaneError, UsageError

DASHBOARD_PORT = 8265
REQUEST_SECONDS = 30.0
UPLOAD_SECONDS = 300.0
SUBMIT_SECONDS = 60.0
MAX_BYTES = 100 << 20  # what a dashboard takes in one request
STOP_SECONDS = 60  # between SIGTERM and SIGKILL; Ray's own 3 s would cut a checkpoint off
PASSED = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
TOKEN, TOKEN_PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
STATUS: dict[str, Any] = {"PENDING": "pending", "RUNNING": "running", "SUCCEEDED": "succeeded", "FAILED": "failed", "STOPPED": "stopped"}  # fmt: skip
_RAYS_LINE = re.compile(r"Running entrypoint for job |[0-9-]+ [0-9:,]+\tINFO job_manager\.py:")


@dataclass(frozen=True)
class RayJobs:
    """The jobs of a Ray cluster. `target` as it was given, `address` its dashboard's URL."""

    target: str
    address: str
    token: str | None = field(repr=False)
    token_from: str

    def prepare(self, job: Job) -> Parcel:
        """The package. Raises UsageError over MAX_BYTES."""
        files = package.entries()
        content = package.archive(files | {RECIPE: job.recipe.encode()})
        if len(content) > MAX_BYTES:
            name = max(files, key=lambda one: len(files[one]))
            raise UsageError(
                f"the package is {package.size(len(content))}, a Ray cluster takes {package.size(MAX_BYTES)}: "
                f"move what is large ({name}: {package.size(len(files[name]))}) to the object store"
            )
        what = f"{package.file_name()} and {RECIPE}"
        return Parcel(what, len(content), package.digest(files), tuple(job.command("python", RECIPE)), content)

    def find(self, id: str) -> State | None:
        code, body = self._request("GET", f"/api/jobs/{quote(id)}")
        return None if code == 404 else _state(_json(body, self.address))

    def submit(self, id: str, job: Job, parcel: Parcel) -> None:
        """Uploads the package unless the cluster has it, and starts the job. A request whose answer is lost is asked about, not repeated blindly."""
        name = f"_ray_pkg_{hashlib.sha256(parcel.content).hexdigest()[:16]}.zip"
        at = f"/api/packages/gcs/{name}"
        code, _ = self._request("GET", at)  # this also keeps it from being collected before the job refers to it
        if code == 404:
            self._accepted(*self._request("PUT", at, parcel.content, UPLOAD_SECONDS), "takes no package")
        fingerprint = job.fingerprint(parcel.code)
        passed = {name: os.environ[name] for name in PASSED if name in os.environ}
        request = {
            "entrypoint": shlex.join(parcel.command),
            "submission_id": id,
            "metadata": {"triplane_plane": job.plane, "triplane_fingerprint": fingerprint},
            "runtime_env": {
                "working_dir": f"gcs://{name}",
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **passed},
            },
        }
        self._start(id, fingerprint, json.dumps(request).encode())

    def log_of(self, id: str) -> str:
        return id

    def stream(self, id: str, emit: Callable[[str], None], stop: threading.Event) -> None:
        """The job's log by WebSocket, without Ray's own lines before it. Raises Unreachable when the connection breaks."""
        asyncio.run(self._tail(id, _JobsOwn(emit).add, stop))

    def output(self, id: str) -> str:
        code, body = self._request("GET", f"/api/jobs/{quote(id)}/logs")
        self._accepted(code, body, f"does not show the output of {id}")
        pieces: list[str] = []
        own = _JobsOwn(pieces.append)
        own.add(_json(body, self.address)["logs"])
        own.finish()
        return "".join(pieces)

    def cancel(self, id: str) -> None:
        code, body = self._request("POST", f"/api/jobs/{quote(id)}/stop", b"")
        self._accepted(code, body, f"does not stop {id}")

    def jobs(self) -> list[State]:
        code, body = self._request("GET", "/api/jobs/")
        self._accepted(code, body, "does not list its jobs")
        found = [_state(one) for one in _json(body, self.address) if one.get("submission_id")]
        return sorted(found, key=lambda one: one.started or 0.0)

    def _start(self, id: str, fingerprint: str, request: bytes) -> None:
        deadline = time.monotonic() + SUBMIT_SECONDS
        while True:
            try:
                code, body = self._request("POST", "/api/jobs/", request)
            except Unreachable:
                known = self.find(id)  # raises in turn if nobody answers any more
                if known is not None and known.fingerprint == fingerprint:
                    return
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
                continue
            if b"already exists" in body and code != 200:
                raise LostRace(f"job {id} was submitted by another command at this moment: run this one again")
            return self._accepted(code, body, f"does not start {id}")

    def _accepted(self, code: int, body: bytes, what: str) -> None:
        if code != 200:
            lines = body.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
            raise TriplaneError(f"{self.address} {what} (it answered {code}: {lines[-1]})")

    def _request(
        self, method: str, path: str, body: bytes | None = None, seconds: float = REQUEST_SECONDS
    ) -> tuple[int, bytes]:
        """Status and body of an answer, which may be a refusal. Raises Refused for 401 and 403, Unreachable where there is no answer or none now."""
        request = urllib.request.Request(self.address + path, body, self._headers(), method=method)
        try:
            with _OPENER.open(request, timeout=seconds) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                answered = error.read()
            if error.code in (401, 403):
                raise Refused(self._unauthorized(error.code)) from error
            if error.code in (408, 429, 502, 503, 504) or (error.code == 500 and method == "GET"):
                raise Unreachable(f"{self.address} answers {error.code}") from error
            return error.code, answered
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise Unreachable(
                f"no Ray dashboard answers at {self.address} ({getattr(reason, 'strerror', None) or reason}): "
                f"check the address (the dashboard's port, {DASHBOARD_PORT} unless set) and that the cluster runs"
            ) from error

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def _unauthorized(self, code: int) -> str:
        if not self.token:
            return f"{self.address} answers {code}: it wants a token: set {TOKEN}, or {TOKEN_PATH} to the file that holds it"
        return f"{self.address} answers {code}: the token from {self.token_from} is not this cluster's: set {TOKEN} or {TOKEN_PATH}"

    async def _tail(self, id: str, emit: Callable[[str], None], stop: threading.Event) -> None:
        import aiohttp

        url = f"{self.address}/api/jobs/{quote(id)}/logs/tail"
        try:
            async with aiohttp.ClientSession(headers=self._headers(), trust_env=True) as session:
                reading = asyncio.create_task(_read_messages(session, url, emit))
                while not reading.done():
                    await asyncio.wait({reading}, timeout=0.2)
                    if stop.is_set():
                        reading.cancel()
                        return
                await reading
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"the output of {id} broke off ({error})") from error


async def _read_messages(session: Any, url: str, emit: Callable[[str], None]) -> None:
    import aiohttp

    async with session.ws_connect(url, heartbeat=REQUEST_SECONDS, max_msg_size=0) as socket:
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                emit(message.data)


@dataclass
class _JobsOwn:
    """The job's own output: `emit` is handed all but the lines of Ray's before it, which repeat the command."""

    emit: Callable[[str], None]
    held: str = ""
    passed: bool = False

    def add(self, text: str) -> None:
        self.held += text
        while not self.passed and "\n" in self.held:
            self.passed = not _RAYS_LINE.match(self.held)
            if not self.passed:
                self.held = self.held.partition("\n")[2]
        if self.passed and self.held:
            self.emit(self.held)
            self.held = ""

    def finish(self) -> None:
        """Hands over a last line that has no end; only of a whole output, as it may be the beginning of one of Ray's."""
        if self.held and not _RAYS_LINE.match(self.held):
            self.emit(self.held)


def connect(target: str) -> RayJobs:
    """`ray://HOST[:PORT]` and `http[s]://HOST[:PORT]` name a dashboard; the token comes from the variables that Ray reads. Raises UsageError."""
    scheme, _, place = target.partition("://")
    place = place.rstrip("/")
    try:
        named = urlsplit(f"//{place}")
        port = named.port or (DASHBOARD_PORT if scheme == "ray" else None)
    except ValueError:
        named, port = urlsplit(""), None
    if not named.hostname or named.netloc != place or named.username is not None:
        raise UsageError(f"--to {target} names no Ray dashboard: write ray://HOST:PORT or http://HOST:PORT")
    if port and not named.port:
        place = f"{place}:{port}"
    token, token_from = _token()
    return RayJobs(target, f"{'https' if scheme == 'https' else 'http'}://{place}", token, token_from)


def _token() -> tuple[str | None, str]:
    """The token and the variable or file it came from, in Ray's order. Its own file only where RAY_AUTH_MODE asks for tokens, as with Ray: it may be
    another cluster's. Raises UsageError for a file that cannot be read."""
    if os.environ.get(TOKEN):
        return os.environ[TOKEN].strip(), TOKEN
    named = os.environ.get(TOKEN_PATH)
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    if not named and not (os.environ.get("RAY_AUTH_MODE") == "token" and path.exists()):
        return None, TOKEN
    try:
        return path.read_text().strip(), f"{path} ({TOKEN_PATH})" if named else str(path)
    except OSError as error:
        raise UsageError(f"{TOKEN_PATH} names {path}, which cannot be read ({error.strerror})") from error


def _json(body: bytes, address: str) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise TriplaneError(f"{address} is no Ray dashboard (its answer is no JSON): check the address") from error


def _state(said: dict[str, Any]) -> State:
    """A job as Ray describes it (times in ms). The exit code of a killed process is negative there."""
    metadata = said.get("metadata") or {}
    status = STATUS.get(said["status"], "pending")
    message = (
        "" if said.get("driver_exit_code") is not None or status in ("pending", "running") else said.get("message")
    )
    return State(
        id=said["submission_id"],
        status=status,
        exit_code=said.get("driver_exit_code"),
        message=message or "",
        plane=metadata.get("triplane_plane", ""),
        fingerprint=metadata.get("triplane_fingerprint", ""),
        started=(said.get("start_time") or 0) / 1000 or None,
        ended=(said.get("end_time") or 0) / 1000 or None,
    )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer as any other: following it would hand the token to whom it names."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)
