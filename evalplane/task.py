"""The words of the evaluation plane: Task (one YAML file), Item, Request, Score, Suite.

In: `tasks/{name}.yaml` and `suites.yaml`, with dotted overrides. Out: frozen values the rest of the plane passes around.
A task says where its rows are, how a row becomes an item, and the formats an item is asked in; it holds no code, so a
task is added by adding a file. After OLMES (arXiv 2406.08446; reference/eval.md, A1).
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from evalplane import metrics
from triplane import recipe
from triplane.errors import UsageError

TASKS = Path(__file__).parent / "tasks"
SUITES = Path(__file__).parent / "suites.yaml"

Kind = Literal["mc", "cloze", "generate", "bits_per_byte"]


class Data(recipe.Strict):
    """Where the rows are. A path is a URL, an artifact reference (`heldout`, `heldout/web@1a2b`) or relative to the data folder."""

    format: Literal["arrow", "jsonl", "documents"]
    path: tuple[str, ...]
    rows: str  # how a row becomes an Item: a key of data.ROWS


class Sample(recipe.Strict):
    """`random.Random(seed).sample(items, count)` in that order, where there are more than `count`."""

    count: int
    seed: int


class Shots(recipe.Strict):
    """The first `count` rows of a curated pool: a JSON file of {pool name: rows}."""

    count: int
    path: str
    pool: str
    rows: str


class Format(recipe.Strict):
    """How an item is asked. In `prompt`, `{question}` and the item's other fields, and `{options}` for lettered lines, are filled in."""

    kind: Kind
    prompt: str
    metric: str
    description: str
    target: str  # what follows the prompt in a shot: "{answer}" is the letter, the choice or the answer
    clean: Literal["no", "wikihow"]
    unconditioned: str | None  # the context acc_uncond subtracts; null: no such requests are made
    max_new_tokens: int
    stop: tuple[str, ...]


class Task(recipe.Strict):
    """One benchmark: rows, shots, and the formats; its score is the best of its formats, and every format's is kept."""

    name: str
    version: int
    data: Data
    sample: Sample | None
    shots: Shots | None
    formats: dict[str, Format]


class SuiteEntry(recipe.Strict):
    """What suites.yaml says of a suite."""

    tasks: tuple[str, ...]
    aggregation: Literal["mean", "none"]


class Suites(recipe.Strict):
    """suites.yaml."""

    suites: dict[str, SuiteEntry]


@dataclass(frozen=True)
class Suite:
    """Tasks and what is made of their scores: `mean` is the plain mean over tasks, `none` nothing."""

    name: str
    tasks: tuple[Task, ...]
    aggregation: Literal["mean", "none"]


@dataclass(frozen=True)
class Item:
    """One question, or one document: `fields` fill the prompt, `gold` numbers the right choice, `answers` are the accepted ones."""

    id: str
    fields: Mapping[str, str]
    choices: tuple[str, ...] = ()
    gold: int | None = None
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """What a backend is asked: the log-likelihood of `continuation` after `context`, or a greedy continuation of it.

    An empty context means the end-of-text token. `item` and `choice` say what the answer is for; `unconditioned` marks
    the second half of acc_uncond.
    """

    item: int
    choice: int
    context: str
    continuation: str = ""
    unconditioned: bool = False
    max_new_tokens: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loglikelihood:
    """Natural-log probability of a continuation, whether each of its tokens was the likeliest, and their number."""

    total: float
    is_greedy: bool
    num_tokens: int


class Backend(Protocol):
    """A model as the plane sees it. Results are in request order; None where the request does not fit `max_length` tokens.

    A document (empty context) always has a result: one longer than `max_length` is read in windows.
    A failed request or a log-probability that is not a number raises: there is no score without an answer.
    """

    @property
    def max_length(self) -> int: ...

    def lengths(self, requests: Sequence[Request]) -> list[int]:
        """Tokens each request needs, those to be generated included."""
        ...

    def loglikelihood(self, requests: Sequence[Request]) -> list[Loglikelihood | None]: ...

    def generate(self, requests: Sequence[Request]) -> list[str | None]: ...


@dataclass(frozen=True)
class Score:
    """One format's result. `metrics` holds {metric: {"value", "stderr"}}; `metric` names the one that counts.

    `stderr` is None where one item cannot give one. `reason` says why fewer shots than the task names were used.
    `num_overlong` items did not fit the model's context; they are not scored and not cut.
    """

    metric: str
    metrics: Mapping[str, Mapping[str, float | None]]
    num_items: int
    num_overlong: int
    num_shots_used: int
    reason: str | None
    groups: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)  # bits per byte by source

    @property
    def value(self) -> float:
        return metrics.value_of(self.metrics[self.metric])

    def to_json(self) -> dict[str, object]:
        """The score as JSON values, the counting metric's value and standard error on top."""
        top = {"metric": self.metric, **self.metrics[self.metric]}
        counts = {"num_items": self.num_items, "num_overlong": self.num_overlong, "num_shots_used": self.num_shots_used}
        groups = {"by_source": dict(self.groups)} if self.groups else {}
        return {**top, **counts, "reason": self.reason, "metrics": dict(self.metrics), **groups}


def task_names() -> list[str]:
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def load_task(name: str, overrides: Sequence[str] = ()) -> Task:
    """The task in `tasks/{name}.yaml` with dotted overrides (`data.path=[s3://bucket/items.jsonl]`). UsageError when absent."""
    if name not in task_names():
        raise UsageError(
            f"no task is named {name!r}{_nearest(name, task_names())}; the tasks are {', '.join(task_names())}"
        )
    return recipe.load(TASKS / f"{name}.yaml", Task, overrides)


def load_suite(name: str, overrides: Sequence[str] = ()) -> Suite:
    """The suite `name` of suites.yaml, or the task of that name alone; overrides are `{task}.{key}={value}`. UsageError when unknown."""
    suites = recipe.load(SUITES, Suites).suites
    if name not in suites and name not in task_names():
        known = sorted({*suites, *task_names()})
        raise UsageError(f"no suite or task is named {name!r}{_nearest(name, known)}; known are {', '.join(known)}")
    entry = suites.get(name, SuiteEntry(tasks=(name,), aggregation="none"))
    by_task = _by_task(overrides, entry.tasks)
    return Suite(name, tuple(load_task(one, by_task[one]) for one in entry.tasks), entry.aggregation)


def _by_task(overrides: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    split: dict[str, list[str]] = {name: [] for name in names}
    for override in overrides:
        name, _, rest = override.partition(".")
        if name not in split or "=" not in rest:
            raise UsageError(
                f"the override {override!r} is not TASK.KEY=VALUE for a task of this suite ({', '.join(names)})"
            )
        split[name].append(rest)
    return split


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""
