"""A back end that fails some request, or every one: the run fails and commits nothing; there is no score of 0.000 that means something else."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from evalplane import run
from evalplane.backends import native
from evalplane.task import Loglikelihood, Request, Task, load_task
from triplane import artifact
from triplane.errors import TriplaneError


@dataclass
class Failing:
    """Answers all but the requests whose numbers are in `fails`, with `instead` in the place of an answer; a token is a character."""

    fails: frozenset[int]
    instead: Loglikelihood | None = None
    max_length: int = 10_000
    asked: int = 0

    def lengths(self, requests: Sequence[Request]) -> list[int]:
        return [len(one.context) + len(one.continuation) for one in requests]

    def loglikelihood(self, requests: Sequence[Request]) -> list[Loglikelihood | None]:
        self.asked += len(requests)
        first = self.asked - len(requests)
        return [
            self.instead if first + i in self.fails else Loglikelihood(-1.0 - i, False, 1) for i in range(len(requests))
        ]

    def generate(self, requests: Sequence[Request]) -> list[str | None]:
        self.asked += len(requests)
        first = self.asked - len(requests)
        return [None if first + i in self.fails else "2" for i in range(len(requests))]


@pytest.fixture
def generated(arithmetic_items: str) -> Task:
    return load_task("arithmetic", [f"data.path=[{arithmetic_items}]"])


@pytest.fixture
def scored(documents: list[str]) -> Task:
    return load_task("held_out_bits_per_byte", [f"data.path=[{', '.join(documents)}]"])


def evaluate(task: Task, backend: Failing, model_folder: Path, root: Path, patch: pytest.MonkeyPatch) -> run.Evaluation:
    patch.setattr(native, "load", lambda *_: backend)
    return run.evaluate(str(model_folder), [task], str(root))


@pytest.mark.parametrize("fails", [range(100), [0], [2]], ids=["every", "first", "last"])
@pytest.mark.parametrize("kind", ["generated", "scored"])
def test_a_failed_request_fails_the_run(
    kind: str,
    fails: Sequence[int],
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    task: Task = request.getfixturevalue(kind)
    said = r"requests failed: the backend gave no answer, .* no score"
    with pytest.raises(TriplaneError, match=said):
        evaluate(task, Failing(frozenset(fails)), model_folder, tmp_path / "root", monkeypatch)
    assert artifact.references(str(tmp_path / "root"), "evaluation") == []


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_sum_that_is_no_number_fails_the_run(
    value: float, scored: Task, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Failing(frozenset([1]), Loglikelihood(value, False, 1))
    with pytest.raises(TriplaneError, match="1 of 4 requests failed"):
        evaluate(scored, backend, model_folder, tmp_path / "root", monkeypatch)
    assert artifact.references(str(tmp_path / "root"), "evaluation") == []


def test_what_does_not_fit_is_counted_apart_and_a_whole_run_says_that_none_failed(
    generated: Task, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = evaluate(generated, Failing(frozenset()), model_folder, tmp_path / "root", monkeypatch)
    assert made.manifest.metadata["counters"] == {
        "items": 3,
        "requests": 3,
        "overlong_requests": 0,
        "failed_requests": 0,
    }
    assert made.scores["arithmetic"]["value"] == pytest.approx(1 / 3)
    short = Failing(frozenset([1]), max_length=1)
    found = evaluate(generated, short, model_folder, tmp_path / "other", monkeypatch).manifest.metadata["counters"]
    assert (found["overlong_requests"], found["failed_requests"]) == (1, 0)
