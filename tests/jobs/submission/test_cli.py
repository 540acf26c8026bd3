"""`triplane submit` and `triplane jobs` as a user types them, jobs being child processes."""

import functools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from jobs.cli import app
from jobs.manifests.finding import Finding
from jobs.submission import dry_run, follow, package
from jobs.submission.job import Job, Parcel
from jobs.submission.processes import Processes

SLEEP = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)")


def triplane(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(package, "entries", functools.cache(package.entries))  # a file may be edited meanwhile
    yield
    for state in Processes("local").jobs():
        if not state.is_over:
            Processes("local").cancel(state.id)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """An evaluation whose job says at once what is wrong with it, exit code 2."""
    path = tmp_path / "evaluation.yaml"
    path.write_text("model: nothing\nsuite: no-such-suite\n")
    return path


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing were found before sending, so that the job itself fails."""
    monkeypatch.setattr(dry_run, "findings", lambda *arguments: [])


def test_mistakes_are_shown_and_nothing_is_sent(tmp_path: Path, recipe: Path) -> None:
    command = ("submit", "eval", recipe, "--root", tmp_path / "root", "--to", "local", "--set", "limt=3")
    for more, in_stdout in ((["--dry-run"], True), ([], False)):
        done = triplane(*command, *more)
        assert done.exit_code == 2
        assert ("did you mean 'limit'?" in done.stdout) is in_stdout
        assert "did you mean 'limit'?" in done.output
        assert done.stderr.splitlines()[-1].endswith("nothing was sent to local")
    found = json.loads(triplane(*command, "--dry-run", "--json").stdout)["mistakes"]
    assert {"file", "line", "message"} == set(found[0])
    assert not (tmp_path / "state").exists()


def test_each_mistake_is_a_line_with_its_place(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Finding("a.yaml", 3, "wrong"), Finding("--root x", 0, "is not there")]
    monkeypatch.setattr(dry_run, "findings", lambda *arguments: found)
    done = triplane("submit", "eval", recipe, "--root", tmp_path, "--to", "local", "--dry-run")
    assert done.stdout == "a.yaml:3: wrong\n--root x: is not there\n"
    assert done.stderr == "error: 2 mistakes: nothing was sent to local\n"


def test_the_command_ends_as_the_job(recipe: Path, tmp_path: Path, unchecked: None) -> None:
    command = ("submit", "eval", recipe, "--root", tmp_path / "root", "--to", "local", "--name", "first")
    planned = triplane(*command, "--dry-run")
    assert planned.exit_code == 0 and planned.stdout.startswith(
        "first would run at local\nsends nothing (it runs here), 0 bytes\ncommand "
    )
    assert not (tmp_path / "state").exists()
    done = triplane(*command)
    assert done.exit_code == 2
    assert "no suite or task is named 'no-such-suite'" in done.stdout
    assert done.stderr == "first: sending nothing (it runs here), 0 bytes, to local\nfirst failed with exit code 2\n"
    again = triplane(*command, "--json")
    assert (again.exit_code, json.loads(again.stdout)["id"], json.loads(again.stdout)["exit_code"]) == (2, "first-2", 2)
    assert "no suite or task" in again.stderr
    other = triplane(*command, "--set", "limit=3")
    assert other.exit_code == 3
    assert "first is another eval job at local (failed)" in other.stderr
    listed = triplane("jobs", "list", "--to", "local")
    assert [line.split()[:4] for line in listed.stdout.splitlines()] == [
        ["id", "plane", "status", "exit"],
        ["first", "eval", "failed", "2"],
        ["first-2", "eval", "failed", "2"],
    ]
    assert "no suite or task" in triplane("jobs", "logs", "first", "--to", "local").stdout
    assert triplane("jobs", "logs", "first", "--follow", "--to", "local").exit_code == 2


def test_not_waiting_attaching_and_cancelling(
    recipe: Path, tmp_path: Path, unchecked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processes, "prepare", lambda self, job: Parcel("nothing", 0, "code", SLEEP))
    command = ("submit", "eval", recipe, "--root", tmp_path, "--to", "local", "--name", "long", "--no-wait")
    first = triplane(*command)
    assert (first.exit_code, first.stdout) == (0, "long\n")
    assert (
        "follow it by `triplane jobs logs long --follow --to local`, end it by `triplane jobs cancel long"
        in first.stderr
    )
    second = triplane(*command, "--json")
    assert json.loads(second.stdout)["attached"] is True
    assert "long runs at local already: attached to it" in second.stderr
    cancelled = triplane("jobs", "cancel", "long", "--to", "local")
    assert (cancelled.exit_code, cancelled.stdout) == (0, "long stopped\n")
    over = triplane("jobs", "cancel", "long", "--to", "local", "--json")
    assert over.exit_code == 0 and json.loads(over.stdout)["status"] == "stopped"
    assert triplane("jobs", "logs", "long", "--follow", "--to", "local").exit_code == 143


def test_leaving_leaves_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    Processes("local").submit("long", Job("eval", "", "/root", ()), Parcel("", 0, "", SLEEP))

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(follow, "follow", interrupted)
    left = triplane("jobs", "logs", "long", "--follow", "--to", "local")
    assert left.exit_code == 130
    assert left.stderr.startswith("detached: long goes on; follow it by `triplane jobs logs long --follow --to local`")
    time.sleep(0.2)
    state = Processes("local").find("long")
    assert state is not None and state.status == "running"


@pytest.mark.parametrize("command", [["logs", "none"], ["cancel", "none"], ["logs", "none", "--follow"]])
def test_a_job_that_is_not_known(command: list[str]) -> None:
    asked = triplane("jobs", *command, "--to", "local")
    assert asked.exit_code == 1
    assert asked.stderr == "error: local knows no job none: list them by `triplane jobs list --to local`\n"


def test_no_jobs() -> None:
    assert triplane("jobs", "list", "--to", "local").stdout == "id  plane  status  exit  started (UTC)  seconds\n"
    assert json.loads(triplane("jobs", "list", "--to", "local", "--json").stdout) == []
    assert triplane("jobs", "list", "--to", "nowhere").exit_code == 2
