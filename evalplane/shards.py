"""A task's items in shards: what is asked, answered, stored and committed at once, by whichever process comes to it.

In: a plan and a backend. Out: for each shard two Parquet files, one of items and one of requests with what came back, and a record that says
they stand: written once, whoever writes it. A shard's answers do not depend on the others, so it may be asked anywhere, and again.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evalplane import data, formats, readers, scorers
from evalplane.task import Backend, Format, Item, Loglikelihood, Request, Suite
from triplane import artifact
from triplane.errors import TriplaneError
from triplane.lease import Lease

SHARD_ITEMS = 256

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Items [start, end) of a task, asked in one format."""

    task: str
    format: str
    number: int
    start: int
    end: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.format}-{self.number:05d}"


@dataclass(frozen=True)
class Answers:
    """What a shard's items came to, its requests with what came back, and how it was asked."""

    items: pa.Table
    requests: pa.Table
    counts: dict[str, Any]


class Asked(Protocol):
    """What a process needs to answer shards: the part of `run.Plan` that is not its result's name."""

    @property
    def suite(self) -> Suite: ...

    @property
    def files(self) -> dict[str, list[readers.Input]]: ...

    @property
    def shots(self) -> dict[str, list[readers.Input]]: ...

    @property
    def limit(self) -> int | None: ...


class Unanswered(TriplaneError):
    """A request that fits the model has no answer, or one that is no number."""


def is_same(one: Asked, other: Asked) -> bool:
    """Whether two are asked the same items."""
    return all(getattr(one, name) == getattr(other, name) for name in ("suite", "files", "shots", "limit"))


def of_task(task: str, format_names: Sequence[str], num_items: int, size: int = SHARD_ITEMS) -> list[Shard]:
    """Every item once in each format."""
    return [
        Shard(task, name, number, start, min(start + size, num_items))
        for name in format_names
        for number, start in enumerate(range(0, num_items, size))
    ]


class Prepared:
    """The items and shots of a plan's tasks, read when they are asked for and kept."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.tasks = {task.name: task for task in asked.suite.tasks}
        self._ready: dict[str, data.Prepared] = {}

    def __getitem__(self, task: str) -> data.Prepared:
        if task not in self._ready:
            made = self.asked
            self._ready[task] = data.prepare(self.tasks[task], made.files[task], made.shots[task], made.limit)
        return self._ready[task]


class Asker:
    """Answers shards of a plan with one backend. How a format is asked (with its shots or without) is found once, from all its items."""

    def __init__(self, prepared: Prepared, backend: Backend) -> None:
        self.prepared, self.backend = prepared, backend
        self._shots: dict[tuple[str, str], tuple[Sequence[Item], str | None]] = {}

    def answer(self, shard: Shard) -> Answers:
        """Raises TriplaneError where a request has no answer or one that is no number."""
        ready, format = self.prepared[shard.task], self.prepared.tasks[shard.task].formats[shard.format]
        key = shard.task, shard.format
        if key not in self._shots:
            self._shots[key] = usable_shots(format, ready.items, ready.shots, self.backend)
        shots, reason = self._shots[key]
        return answers(format, ready.items[shard.start : shard.end], shots, reason, self.backend)


def usable_shots(
    format: Format, items: Sequence[Item], shots: Sequence[Item], backend: Backend
) -> tuple[Sequence[Item], str | None]:
    """The shots, or none with the reason, where the longest prompt with all of them exceeds the model's context.

    All items of a format are asked alike, so that its score is of one thing.
    """
    if not shots:
        return [], None
    parts = (
        items[start : start + SHARD_ITEMS] for start in range(0, len(items), SHARD_ITEMS)
    )  # never all prompts at once
    longest = max(max(backend.lengths(formats.requests(format, part, shots))) for part in parts)
    if longest <= backend.max_length:
        return shots, None
    what = f"the longest prompt with {len(shots)} shots is {longest} tokens"
    return [], f"{what}, the model's context {backend.max_length}"


def answers(
    format: Format, items: Sequence[Item], shots: Sequence[Item], reason: str | None, backend: Backend
) -> Answers:
    """Asks the backend for some items of a format. Unanswered where a request that fits has no answer, or one that is no number."""
    asked = formats.requests(format, items, shots)
    if format.kind == "generate":
        texts = _asked(backend.generate, asked)
        overlong, failed = _unanswered(asked, texts, backend)
        made, found = scorers.answer_rows(format, items, texts), _requests(items, asked, texts=texts)
    else:
        sums = _asked(backend.loglikelihood, asked)
        overlong, failed = _unanswered(asked, sums, backend)
        made, found = scorers.loglikelihood_rows(format, items, asked, sums), _requests(items, asked, sums=sums)
    counts: dict[str, Any] = {"items": len(items), "requests": len(asked)}
    counts |= {"overlong_requests": overlong, "failed_requests": failed}
    num_shots = max(map(len, data.by_part(shots).values()), default=0)
    about = {"num_shots": num_shots, "reason": reason, "windowed": _windowed(made, backend.max_length)}
    return Answers(made, found, {**counts, **about, "max_length": backend.max_length})


def _asked(ask: Callable[[Sequence[Request]], T], asked: Sequence[Request]) -> T:
    try:
        return ask(asked)
    except TriplaneError as error:
        if type(error) is not TriplaneError:  # wrong use, a refusal: of every model alike
            raise
        raise Unanswered(str(error)) from error


def _windowed(table: pa.Table, max_length: int) -> int:
    """How many documents did not fit the context and were read in windows; their first tokens saw less before them."""
    return int(np.count_nonzero(table["tokens"].to_numpy() > max_length)) if "bits" in table.column_names else 0


def _unanswered(asked: Sequence[Request], results: Sequence[Any], backend: Backend) -> tuple[int, int]:
    """(requests that do not fit the model's context, those that failed): of the latter there are none, or Unanswered says how many."""
    if len(results) != len(asked):
        raise Unanswered(f"the backend answered {len(results)} of {len(asked)} requests; the evaluation has no score")
    missing = [request for request, result in zip(asked, results, strict=True) if result is None]
    failed = sum(length <= backend.max_length for length in backend.lengths(missing)) if missing else 0
    failed += sum(isinstance(one, Loglikelihood) and not math.isfinite(one.total) for one in results)
    if failed:
        raise Unanswered(
            f"{failed} of {len(asked)} requests failed: the backend gave no answer, or one that is not a number, to what fits its context of "
            f"{backend.max_length} tokens. The evaluation has no score: look at the backend and run the same again"
        )
    return len(missing), failed


def _requests(
    items: Sequence[Item],
    asked: Sequence[Request],
    sums: Sequence[Loglikelihood | None] | None = None,
    texts: Sequence[str | None] | None = None,
) -> pa.Table:
    """One row a request: what was asked, and what came back (nulls where it did not fit the context)."""
    found = sums or [None] * len(asked)
    return pa.table(
        {
            "id": pa.array([items[one.item].id for one in asked], pa.string()),
            "choice": pa.array([one.choice for one in asked], pa.int32()),
            "unconditioned": pa.array([one.unconditioned for one in asked], pa.bool_()),
            "context": pa.array([one.context for one in asked], pa.string()).dictionary_encode(),
            "continuation": pa.array([one.continuation for one in asked], pa.string()),
            "loglikelihood": pa.array([one and one.total for one in found], pa.float64()),
            "is_greedy": pa.array([one and one.is_greedy for one in found], pa.bool_()),
            "num_tokens": pa.array([one and one.num_tokens for one in found], pa.int64()),
            "answer": pa.array(texts or [None] * len(asked), pa.string()),
        }
    )


def commit(draft: artifact.Draft, shard: Shard, made: Answers, lease: Lease | None = None) -> bool:
    """Stores the files, then the record: the first one stands, and a later attempt changes nothing.

    False, and nothing at all is written, for whoever held a lease that another has taken over.
    """
    if lease is not None and not lease.is_current():
        return False
    files = [
        draft.put_bytes(_parquet(table), stem, ".parquet", rows=table.num_rows)
        for stem, table in ((shard.name, made.items), (f"{shard.name}.requests", made.requests))
    ]
    draft.record(shard.name, files, made.counts)
    return True


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def read_items(url: str, record: artifact.Record) -> pa.Table:
    """The items of a committed shard. NotFound, Corrupt."""
    return pq.read_table(pa.BufferReader(artifact.read(url, record.files[0])))
