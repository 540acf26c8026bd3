"""What a scrape sees while a job runs. Each test is a process of its own, as a port and the registry are a process's."""

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from triplane import metrics
from triplane.errors import UsageError

JOB = """
import sys
from triplane import metrics
from triplane.progress import Progress

with Progress().bar("tag", 100, "bytes") as bar:
    bar.advance(30)
    bar.name = "tag, fast"
    bar.advance(12)
metrics.gauge("loss", 2.5, run="a")
metrics.count("tokens_total", 7, plane="train")
print(metrics.serve(), flush=True)
sys.stdin.read()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scrape(port: int, header: str | None = None) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics")
    if header is not None:
        request.add_header("Authorization", header)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


def scraped(headers: list[str | None], **variables: str) -> list[str | int]:
    """What the job answers to a scrape with each header: the text, or the status where it is refused."""
    port = free_port()
    environment = {**os.environ, metrics.PORT_VARIABLE: str(port), **variables}
    with subprocess.Popen(
        [sys.executable, "-c", JOB],
        env=environment,
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as job:
        assert job.stdout is not None and job.stdin is not None
        try:
            assert job.stdout.readline() == f"{port}\n"
            found: list[str | int] = []
            for header in headers:
                try:
                    found.append(scrape(port, header))
                except urllib.error.HTTPError as error:
                    found.append(error.code)
                    error.close()
        finally:
            job.stdin.close()
            assert job.wait(30) == 0
        return found


def test_a_scrape_shows_what_was_counted() -> None:
    (text,) = scraped([None])
    lines = str(text).splitlines()
    assert 'triplane_done_total{job="tag",unit="bytes"} 42.0' in lines
    assert 'triplane_loss{run="a"} 2.5' in lines
    assert 'triplane_tokens_total{plane="train"} 7.0' in lines
    assert "# TYPE triplane_loss gauge" in lines


def test_a_token_is_asked_of_every_scrape() -> None:
    answers = scraped([None, "Bearer wrong", "Bearer right"], **{metrics.TOKEN_VARIABLE: "right"})
    assert answers[:2] == [401, 401]
    assert "triplane_loss" in str(answers[2])


def test_nobody_else_is_served_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(metrics.PORT_VARIABLE, "1")
    monkeypatch.setenv(metrics.ADDRESS_VARIABLE, "0.0.0.0")
    monkeypatch.delenv(metrics.TOKEN_VARIABLE, raising=False)
    with pytest.raises(UsageError, match=r"metrics on 0\.0\.0\.0 are for everybody .* set TRIPLANE_METRICS_TOKEN"):
        metrics.serve.__wrapped__()


def test_a_port_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for port in ("http", "-1", "65536"):
        monkeypatch.setenv(metrics.PORT_VARIABLE, port)
        with pytest.raises(UsageError, match=f"TRIPLANE_METRICS_PORT is '{port}'"):
            metrics.serve.__wrapped__()


def test_a_taken_port_is_told_and_the_job_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv(metrics.PORT_VARIABLE, str(taken.getsockname()[1]))
        assert metrics.serve.__wrapped__() is None
    assert "warning: no metrics of this process" in capsys.readouterr().err


def test_without_a_port_nothing_is_imported() -> None:
    environment = {name: value for name, value in os.environ.items() if name != metrics.PORT_VARIABLE}
    code = "import sys; from triplane import metrics; metrics.count('tokens_total', 1, plane='train'); print('prometheus_client' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
