"""Progress: plain lines with rate and time to go, a bar on a terminal, and JSON lines when asked for."""

import io
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from triplane import progress
from triplane.errors import UsageError
from triplane.progress import Bar, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_says_how_much_how_fast_and_how_long() -> None:
    now = [100.0]
    bar = Bar("tag", 5000, "documents", lambda _: None, clock=lambda: now[0])
    assert bar.line() == "tag: 0/5 k documents (0%), 0 documents/s"
    now[0] += 4
    bar.advance(1200)
    assert (bar.rate, bar.eta_seconds) == (300.0, pytest.approx(12.667, abs=0.001))
    assert bar.line() == "tag: 1.2 k/5 k documents (24%), 300 documents/s, 13 s to go"
    unknown = Bar("read", None, "bytes", lambda _: None, clock=lambda: now[0])
    now[0] += 2
    unknown.advance(3_000_000)
    assert unknown.line() == "read: 3 M bytes, 1.5 M bytes/s"


def test_plain_lines_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = io.StringIO(), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(stream, line_seconds=5).bar("tag", 200, "documents") as bar:
        for _ in range(200):
            now[0] += 0.1
            bar.advance()
    lines = stream.getvalue().splitlines()
    assert len(lines) <= 5  # 20 s: one each 5 s, and the last
    assert lines[-1].startswith("tag: 200/200 documents (100%)") and "took" in lines[-1]


def test_the_last_line_comes_also_when_nothing_was_shown() -> None:
    stream = io.StringIO()
    with Progress(stream).bar("tag", None, "documents") as bar:
        bar.advance(3)
    assert stream.getvalue().count("\n") == 1


def test_a_terminal_gets_bars_side_by_side() -> None:
    stream = Terminal()
    shown = Progress(stream)
    with shown, shown.bar("outer", 2, "shards") as outer, shown.bar("inner", 10, "documents") as inner:
        inner.advance(10)
        outer.advance(2)
    assert "outer" in stream.getvalue() and "inner" in stream.getvalue() and "\x1b[" in stream.getvalue()
    assert "10 documents" in stream.getvalue() and "100%" in stream.getvalue()
    assert shown._display is None


def test_threads_lose_no_count() -> None:
    with Progress(io.StringIO()).bar("tag", None, "documents") as bar:
        threads = [threading.Thread(target=lambda: [bar.advance() for _ in range(2000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert bar.done == 8000


def test_the_log_is_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "logs" / "run.jsonl"
    progress.log("ignored")
    monkeypatch.setenv(progress.LOG_VARIABLE, str(path))
    progress.log("spike", step=3, where=Path("a"))
    with pytest.raises(ValueError), Progress(io.StringIO()).bar("tag", 10, "documents") as bar:
        bar.advance(4)
        raise ValueError
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["spike", "started", "failed"]
    assert (lines[0]["step"], lines[0]["where"]) == (3, "a")
    assert (lines[2]["job"], lines[2]["done"], lines[2]["unit"]) == ("tag", 4, "documents")
    assert all(line["time"] > 1e9 and line["pid"] > 0 for line in lines)


@pytest.fixture
def log_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(progress.LOG_VARIABLE, str(tmp_path / "log"))
    return tmp_path / "log"


def test_a_log_that_cannot_be_written_is_wrong_use(log_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_file.mkdir()
    with pytest.raises(UsageError, match=r"log \(TRIPLANE_LOG\) cannot be written \(Is a directory\): name a file"):
        progress.log("first")
    assert capsys.readouterr().err == ""


def test_a_log_that_fails_later_is_told_once(
    log_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    progress.log("first")
    log_file.unlink()
    log_file.mkdir()
    progress.log("second")
    progress.log("third")
    assert capsys.readouterr().err == (
        f"warning: the log {log_file} (TRIPLANE_LOG) cannot be written (Is a directory); "
        "the job goes on, lines of the log are missing\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_log_ends_no_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(progress.LOG_VARIABLE, "/dev/full")
    with progress.bar("tag", 1, "documents") as bar:
        bar.advance()
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_processes_share_a_log(tmp_path: Path) -> None:
    script = "from triplane import progress\nfor i in range(300): progress.log('x' * 500, i=i)"
    environment = {"TRIPLANE_LOG": str(tmp_path / "log"), "PATH": ""}
    writers = [subprocess.Popen([sys.executable, "-c", script], env=environment) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(lines) == 900 and len({(line["pid"], line["i"]) for line in lines}) == 900


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar("tag", 1, "documents") as bar:
        bar.advance()
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("tag: 1/1 documents (100%)")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (1234, "1.23 k"),
        (999.7, "1 k"),
        (0.25, "0.25"),
        (2.5e13, "25 T"),
        (12e6, "12 M"),
    ],
)
def test_amounts_have_three_figures(value: float, text: str) -> None:
    assert progress.amount(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (4.25, "4.2 s"), (9.96, "10 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations_have_two_figures(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
