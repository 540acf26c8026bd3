"""A planted set of mistakes, all found by one look at each submission, each with file and line; and nothing was sent.

`planted/SCENARIO` holds clean files and, in mistakes.yaml, what is planted into them. Without any there is no finding; taking one away takes away
its finding and no other.
"""

import socket
from collections.abc import Callable
from typing import Any

import pytest

from tests.jobs.submission.planted_submission import MISTAKES, PLANES, Submission


def test_at_least_thirty_mistakes_are_planted() -> None:
    assert sum(map(len, MISTAKES.values())) >= 30
    said = [one["says"] for planted in MISTAKES.values() for one in planted]
    assert len(set(said)) >= 30


@pytest.mark.parametrize("name", PLANES)
def test_a_clean_submission_has_no_findings(name: str, make: Callable[[str], Submission]) -> None:
    assert make(name).findings() == []


@pytest.mark.parametrize("name", PLANES)
def test_one_command_finds_all_that_is_planted(
    name: str, make: Callable[[str], Submission], dashboard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = make(name)
    submission.plant(MISTAKES[name])
    connected: list[Any] = []
    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda self, to: (connected.append(to), connect(self, to))[1])
    found = submission.findings()
    by_mistake = [[one for one in found if submission.is_of(one, mistake)] for mistake in MISTAKES[name]]
    missed = [mistake for mistake, those in zip(MISTAKES[name], by_mistake, strict=True) if len(those) != 1]
    assert missed == [], "\n".join(map(str, found))
    assert sorted(those[0] for those in by_mistake) == found, "something else was found"
    # Nothing was sent: nobody but the planted target was spoken to, and kubectl was only asked.
    assert {to[1] for to in connected if isinstance(to, tuple)} <= {1}
    assert dashboard.RequestHandlerClass.asked == []
    calls = submission.folder / "calls"
    asked = calls.read_text().splitlines() if calls.exists() else []
    assert all(line.startswith(("kustomize ", "get ")) for line in asked), asked
    assert (len(asked) > 0) is (name == "kubernetes")


@pytest.mark.parametrize(
    ("name", "part"), [(name, slice(at, at + 10)) for name in PLANES for at in range(0, len(MISTAKES[name]), 10)]
)
def test_a_mistake_by_itself_is_its_finding_alone(name: str, part: slice, make: Callable[[str], Submission]) -> None:
    clean = make(name)
    for mistake in MISTAKES[name][part]:
        submission = Submission(name, clean.folder, dict(clean.options))
        kept = {path: path.read_bytes() for path in clean.folder.rglob("*") if path.is_file()}
        submission.plant([mistake])
        found = submission.findings()
        assert len(found) == 1 and submission.is_of(found[0], mistake), (mistake, list(map(str, found)))
        (clean.folder / "down").unlink(missing_ok=True)
        for path, content in kept.items():
            path.write_bytes(content)


def test_taking_one_away_takes_its_finding_away(make: Callable[[str], Submission]) -> None:
    name = "data"
    clean = make(name)
    kept = {path: path.read_bytes() for path in clean.folder.rglob("*") if path.is_file()}
    for left_out in MISTAKES[name]:
        submission = Submission(name, clean.folder, dict(clean.options))
        submission.plant([one for one in MISTAKES[name] if one is not left_out])
        found = submission.findings()
        assert len(found) == len(MISTAKES[name]) - 1
        assert not any(submission.filled(left_out["says"]) in one.message for one in found)
        for path, content in kept.items():
            path.write_bytes(content)
