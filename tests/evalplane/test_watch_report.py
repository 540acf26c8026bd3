"""The report that counts is the one of the most tokens, whoever wrote last."""

import json
from pathlib import Path
from typing import Any

import pytest

from evalplane import watch_report
from evalplane.watch_report import Report
from triplane import storage
from triplane.errors import Corrupt


def entry(tokens: int) -> dict[str, Any]:
    score = {
        "metric": "exact_match",
        "value": 0.5,
        "stderr": 0.1,
        "num_items": 4,
        "num_overlong": 0,
        "num_shots_used": 0,
    }
    score |= {"reason": None, "format": "generate", "interval": [0.3, 0.7], "excess": 0.0}
    model = {"name": f"m-tokens-{tokens:015d}", "url": f"run/m@1/checkpoints/tokens-{tokens:015d}", "identity": "i"}
    known = {"t": {"status": "unknown", "items": []}}
    whole = {"reference": f"evaluation/s-m@{tokens}", "model": model, "suite": "s", "limit": None}
    return {**whole, "scores": {"t": {**score, "formats": {"generate": score}}}, "decontamination": known}


def of(*tokens: int, worse: dict[int, list[str]] | None = None) -> Report:
    return Report({one: entry(one) for one in tokens}, worse or {})


@pytest.fixture(params=["local", "s3"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    root = str(request.getfixturevalue("s3_root")) if request.param == "s3" else str(tmp_path)
    return storage.join(root, "reports/m@1/s@1")


def shown(where: str) -> list[str]:
    return list(json.loads(storage.read(storage.join(where, "report.json")))["evaluations"])


def test_the_newest_by_tokens_counts_whoever_writes_last(where: str) -> None:
    assert watch_report.newest(where) == Report({}, {}) and watch_report.is_shown(where)
    watch_report.publish(where, of(9, 1000, worse={1000: ["t 1 -> 0"]}))
    assert watch_report.publish(where, of(9)) == storage.join(where, "report.html")  # an older one, later
    assert watch_report.newest(where) == of(9, 1000, worse={1000: ["t 1 -> 0"]})
    assert shown(where) == ["9", "1000"]
    assert "- at 1000 tokens, worse than before: t 1 -> 0" in storage.read(storage.join(where, "report.md")).decode()
    watch_report.publish(where, of(8, 9, 1000))  # as many tokens, one more that was late
    assert list(watch_report.newest(where).evaluations) == [8, 9, 1000] and shown(where) == ["8", "9", "1000"]


def test_what_two_know_is_put_together(where: str) -> None:
    """Two watchers each had evaluated what the other had not: neither's is lost, whichever of the names is higher."""
    watch_report.publish(where, of(1, 3))
    watch_report.publish(where, of(2, 3, worse={3: ["t 1 -> 0"]}))  # the same name, and other checkpoints
    assert watch_report.newest(where) == of(1, 2, 3, worse={3: ["t 1 -> 0"]})
    watch_report.publish(where, of(1, 2, 2_500))
    watch_report.publish(where, of(1, 9))
    assert shown(where) == ["1", "2", "3", "9", "2500"]


def test_what_came_between_a_look_and_a_higher_name_is_not_lost(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, met = watch_report._kept, []

    def meanwhile(at: str) -> list[Report]:
        found = plain(at)
        if not met:
            met.append(at)
            watch_report.publish(at, of(5))
        return found

    monkeypatch.setattr(watch_report, "_kept", meanwhile)
    watch_report.publish(where, of(7))
    assert watch_report.newest(where) == of(5, 7) and shown(where) == ["5", "7"]


def test_a_writer_stopped_between_look_and_write_leaves_the_newest(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It wakes after a newer report was committed and shown, and overwrites the copies with what it knew: then it looks again."""
    plain, stopped = watch_report._show, []

    def stop_first(at: str, made: Report) -> None:
        if not stopped:
            stopped.append(made)
            watch_report.publish(at, of(1, 2))
        plain(at, made)

    monkeypatch.setattr(watch_report, "_show", stop_first)
    watch_report.publish(where, of(1))
    assert stopped == [of(1)] and shown(where) == ["1", "2"]


def test_copies_that_a_kill_left_behind_are_noticed(where: str) -> None:
    watch_report.publish(where, of(1))
    storage.put_if_absent(storage.join(where, of(1, 2).name), watch_report._to_bytes(of(1, 2)))
    assert not watch_report.is_shown(where)
    watch_report.publish(where, watch_report.newest(where))
    assert watch_report.is_shown(where) and shown(where) == ["1", "2"]


def test_old_reports_go_but_for_a_few(where: str) -> None:
    for count in range(1, 7):
        watch_report.publish(where, of(*range(1, count + 1)))
    assert [name for name in storage.list_names(where) if name.startswith("tokens-")] == [
        of(*range(1, count + 1)).name for count in (4, 5, 6)
    ]


def test_a_report_that_is_none_is_named(tmp_path: Path) -> None:
    where = str(tmp_path)
    storage.put(storage.join(where, of(1).name), b"{}")
    with pytest.raises(Corrupt, match="is not a report"):
        watch_report.newest(where)
