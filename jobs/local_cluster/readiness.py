"""Whether the services of a cluster answer, asked over HTTP on loopback; and waiting until they do, or until one of them has ended.

Addresses -> counts of workers that are alive; processes and a question -> an answer, or one error that names the process and its last words.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jobs.local_cluster.processes import Process, is_running, last_line
from triplane.errors import TriplaneError

DEADLINE_SECONDS = 180.0
POLL_SECONDS = 0.2
ANSWER_SECONDS = 5.0

_direct = urllib.request.build_opener(
    urllib.request.ProxyHandler({})
)  # loopback is not behind the proxy that the user may have


def fetch(url: str, token: str | None = None, method: str = "GET") -> bytes:
    """The body of an answer. Raises OSError when there is none, or one that says no."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with _direct.open(
            urllib.request.Request(url, headers=headers, method=method), timeout=ANSWER_SECONDS
        ) as answer:
            body: bytes = answer.read()
            return body
    except urllib.error.HTTPError as error:
        error.close()
        raise


def spark_workers(page: str) -> int:
    """Workers that the master has and that live; -1 while it does not answer."""
    state = _json(f"{page}/json/", None)
    return -1 if state is None else int(state["aliveworkers"])


def ray_nodes(ray: str, token_file: Path) -> int:
    """Nodes that Ray has and that live, the head among them; -1 while it does not answer."""
    state = _json(f"{ray}/nodes?view=summary", token_file.read_text())
    if state is None:
        return -1
    return sum(node["raylet"].get("state") == "ALIVE" for node in state["data"]["summary"])


def ray_takes_jobs(ray: str, token_file: Path) -> bool:
    """Whether a job could be submitted now."""
    return _json(f"{ray}/api/jobs/", token_file.read_text()) is not None


def s3_answers(s3: str) -> bool:
    """Whether something speaks HTTP there, be it only to refuse."""
    try:
        fetch(s3)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _json(url: str, token: str | None) -> Any:
    try:
        return json.loads(fetch(url, token))
    except (OSError, ValueError):
        return None


def wait_until(
    is_ready: Callable[[], bool],
    waited_for: str,
    processes: Sequence[Process],
    deadline_seconds: float = DEADLINE_SECONDS,
) -> None:
    """Returns when `is_ready`. Raises TriplaneError when one of `processes` ends before, or the deadline passes: then `waited_for`, the name of
    one of them, is to blame."""
    deadline = time.monotonic() + deadline_seconds
    while not is_ready():
        for process in processes:
            if not is_running(process):
                raise TriplaneError(f"{process.name} ended: {last_line(process.log)} (all it said: {process.log})")
        if time.monotonic() > deadline:
            late = next(process for process in processes if process.name == waited_for)
            raise TriplaneError(
                f"{late.name} was not ready within {deadline_seconds:.0f} s: {last_line(late.log)} (all it said: {late.log})"
            )
        time.sleep(POLL_SECONDS)
