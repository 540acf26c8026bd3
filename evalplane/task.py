"""The words of the evaluation plane: Task (one YAML file), Item, Request, Score, Suite.

In: `tasks/{name}.yaml` and `suites.yaml`, with dotted overrides. Out: frozen values the rest of the plane passes around.
A task says where its rows are, how a row becomes an item, and the formats an item is asked in; it holds no code, so a
task is added by adding a file. After OLMES (arXiv 2406.08446; reference/eval.md, A1). What a name on the command line
means (`arc_challenge:mc::olmes`) is in `names`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal, Protocol

from evalplane import metrics, names
from triplane import recipe
from triplane.errors import UsageError

TASKS = Path(__file__).parent / "tasks"
SUITES = Path(__file__).parent / "suites.yaml"
SAMPLED_BY_OLMES = 1000  # what `:full` undoes; a smaller draw is another benchmark

Kind = Literal["mc", "cloze", "generate", "gold", "bits_per_byte"]
FileFormat = Literal["arrow", "parquet", "jsonl", "json_examples", "requests", "pools", "documents"]


class Source(recipe.Strict):
    """A place with rows. A path is a URL, an artifact reference (`heldout`, `heldout/web@1a2b`) or relative to a data folder.

    `{part}` in a path stands for each part of the task in turn. `rows` says how a row becomes an Item: a key of rows.ROWS.
    """

    format: FileFormat
    path: tuple[str, ...]
    rows: str
    same_rows: bool = True  # false: another version of the rows, which the checksum does not hold for


class Data(recipe.Strict):
    """The rows of a task as in `Source`, the other places that hold the same rows, and what they are."""

    format: FileFormat
    path: tuple[str, ...]
    rows: str
    also: tuple[Source, ...] = ()  # tried in order when the first is not found
    is_drawn: bool = False  # the first source holds the task's sample alone
    parts: tuple[str, ...] = ()  # subjects, categories: each has its own shots and description
    part_fields: Mapping[str, Mapping[str, str]] = {}  # what every item of a part has besides its row
    sha256: str | None = None  # of the scored rows' content as items (data.content_sha256), whatever file they came in

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where the rows may be, in the order in which they are looked for."""
        return (Source(format=self.format, path=self.path, rows=self.rows), *self.also)

    def undrawn(self) -> "Data":
        """The data without what holds the sample alone; the checksum is the sample's, so it goes too."""
        whole = self.sources[1:] if self.is_drawn else self.sources
        first = {"format": whole[0].format, "path": whole[0].path, "rows": whole[0].rows}
        return self.model_copy(update={**first, "also": whole[1:], "is_drawn": False, "sha256": None})


class Sample(recipe.Strict):
    """`random.Random(seed).sample(items, count)` in that order, where there are more than `count`."""

    count: int
    seed: int


class Shots(recipe.Strict):
    """The first `count` rows of a curated pool, or of a split, of each part; never drawn at random.

    `substitute: own_rows` is what happens where they are nowhere to be found: the first rows of each part are the shots, they are
    not scored, and the score says so.
    """

    count: int
    format: FileFormat = "pools"
    path: str
    pool: str = ""  # of a `pools` file, a JSON object of {pool name: rows}; `{part}` as in a path
    rows: str
    ids: tuple[str, ...] = ()  # which they are, where rows have ids
    sha256: str | None = None  # of their content as items
    also: tuple[Source, ...] = ()
    substitute: Literal["none", "own_rows"] = "none"


class Format(recipe.Strict):
    """How an item is asked. `{question}` and the item's other fields, and `{options}` for lettered lines, are filled in.

    In `target`, what follows the prompt in a shot and in a cloze or lettered request, `{answer}` is the letter, the choice or
    the answer. A cloze prompt that names `{choice}` has one context a choice (partial scoring).
    """

    kind: Kind
    prompt: str
    target: str
    metric: str
    description: str = ""
    clean: Literal["no", "wikihow"] = "no"
    unconditioned: str | None = None  # the context acc_uncond subtracts; null: no such requests are made
    average: Literal["items", "parts"] = "items"  # micro, or the plain mean over parts
    gold: str = " {answer}"  # what bits per byte are asked of, where the task is asked in kind `gold`
    grader: str = "exact"  # how a generated answer is judged: a key of verifiers.grading.GRADERS
    max_new_tokens: int = 0
    stop: tuple[str, ...] = ()


class Task(recipe.Strict):
    """One benchmark: rows, shots, and the formats; its score is the best of its formats, and every format's is kept.

    `olmes` is its name there, `olmes_part` that of a part without the part's own; `variant` and `regime` are the rest of a full name:
    agi_eval_english:1shot::olmes.
    """

    name: str
    version: int
    source: str = ""  # data set @ revision, split, rows, licence, and what of its prompts is proven
    olmes: str = ""
    olmes_part: str = ""
    variant: str = ""
    regime: str = "olmes"
    data: Data
    sample: Sample | None
    shots: Shots | None
    formats: dict[str, Format]


class SuiteEntry(recipe.Strict):
    """What suites.yaml says of a suite. `columns`: what a task is called in the published table the suite is compared with."""

    tasks: tuple[str, ...]
    aggregation: Literal["mean", "none"]
    olmes: str = ""
    columns: Mapping[str, str] = {}


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
    """One question, or one document: `fields` fill the prompt, `gold` numbers the right choice, `answers` are the accepted ones.

    `spans` are accepted answers of several texts each (DROP); `part` is the subject or category it belongs to.
    """

    id: str
    fields: Mapping[str, str]
    choices: tuple[str, ...] = ()
    gold: int | None = None
    answers: tuple[str, ...] = ()
    spans: tuple[tuple[str, ...], ...] = ()
    part: str = ""

    @property
    def key(self) -> str:
        """What tells it from every other item of its task: `part/id`, or `id`."""
        return f"{self.part}/{self.id}" if self.part else self.id


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
    groups: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)  # by source, or by part
    grouped_by: Literal["source", "part"] = "source"

    @property
    def value(self) -> float:
        return metrics.value_of(self.metrics[self.metric])

    def to_json(self) -> dict[str, object]:
        """The score as JSON values, the counting metric's value and standard error on top."""
        top = {"metric": self.metric, **self.metrics[self.metric]}
        counts = {"num_items": self.num_items, "num_overlong": self.num_overlong, "num_shots_used": self.num_shots_used}
        groups = {f"by_{self.grouped_by}": dict(self.groups)} if self.groups else {}
        return {**top, **counts, "reason": self.reason, "metrics": dict(self.metrics), **groups}


def task_names() -> list[str]:
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def load_task(name: str, overrides: Sequence[str] = ()) -> Task:
    """The task of a name (`arc_easy`, `arc_easy:mc::olmes`, `mmlu_anatomy:rc`) with dotted overrides. UsageError when there is none.

    A task whose data or shots are replaced (`data.path=[s3://bucket/items.jsonl]`) is not held to the checksum of its own.
    """
    if name in task_names():
        return recipe.load(TASKS / f"{name}.yaml", Task, _unpinned(overrides))
    meant = names.resolve(name, heads(), suite_names())
    return _restricted(recipe.load(TASKS / f"{meant.task}.yaml", Task, _unpinned(overrides)), meant)


def _unpinned(overrides: Sequence[str]) -> list[str]:
    keys = [override.partition("=")[0] for override in overrides]
    made = list(overrides)
    if any(key.startswith(("data.path", "data.format", "data.rows", "sample")) for key in keys):
        made += ["data.sha256=null"] if "data.sha256" not in keys else []
    if any(key.startswith(("data.path", "data.format", "data.rows")) for key in keys):
        made += ["data.also=[]"] if "data.also" not in keys else []
    if any(key.startswith(("shots.path", "shots.pool")) for key in keys):
        empty = (("shots.ids", "[]"), ("shots.also", "[]"), ("shots.sha256", "null"))
        made += [f"{key}={value}" for key, value in empty if key not in keys]
    return made


def _restricted(task: Task, meant: names.Meant) -> Task:
    """The task asked in fewer formats or over fewer parts, or for the bits per byte of its gold answers; the name says which."""
    formats = task.formats
    if meant.format == names.BITS_PER_BYTE:
        formats = {names.BITS_PER_BYTE: gold_format(task)}
    elif meant.format is not None:
        formats = {meant.format: formats[meant.format]}
    update: dict[str, object] = {"formats": formats}
    if meant.part is not None:
        update["data"] = task.data.model_copy(update={"parts": (meant.part,), "sha256": None})
        update["shots"] = task.shots and task.shots.model_copy(update={"ids": (), "sha256": None})
    if meant.is_full:
        update |= {"sample": None, "data": task.data.undrawn()}
    said = [
        meant.part,
        meant.format if formats.keys() != task.formats.keys() else None,
        "full" if meant.is_full else None,
    ]
    return task.model_copy(
        update={**update, "name": names.as_artifact("-".join([task.name, *(one for one in said if one)]))}
    )


def gold_format(task: Task) -> Format:
    """The task's cloze or generated format, asked only for the log-likelihood of the right answer. UsageError when it has neither."""
    for format in task.formats.values():
        if format.kind == "gold":
            return format
        if format.kind in ("cloze", "generate"):
            return format.model_copy(update={"kind": "gold", "metric": "bits_per_byte", "unconditioned": None})
    raise UsageError(f"the task {task.name} has no answers in words, so none whose bits per byte could be asked")


@cache
def heads() -> tuple[names.Head, ...]:
    """What names of tasks are made of, for every task file."""
    loaded = [recipe.load(TASKS / f"{name}.yaml", Task) for name in task_names()]
    return tuple(
        names.Head(
            one.name,
            one.olmes,
            one.olmes_part or one.olmes,
            one.variant,
            one.regime,
            tuple(one.formats),
            one.data.parts,
            all(format.kind == "bits_per_byte" for format in one.formats.values()),
            one.sample is not None and one.sample.count >= SAMPLED_BY_OLMES,
        )
        for one in loaded
    )


@cache
def suite_entries() -> Mapping[str, SuiteEntry]:
    """suites.yaml by name; a suite of olmes by its name there too."""
    found = recipe.load(SUITES, Suites).suites
    return {**found, **{entry.olmes: entry for entry in found.values() if entry.olmes}}


def suite_names() -> list[str]:
    return sorted(suite_entries())


def load_suite(name: str, overrides: Sequence[str] = ()) -> Suite:
    """The suite `name` of suites.yaml, or the task of that name alone; overrides are `{task}.{key}={value}`. UsageError when unknown."""
    entry = suite_entries().get(name) or SuiteEntry(tasks=(name,), aggregation="none")
    if name not in suite_entries() and name not in task_names():
        names.resolve(name, heads(), suite_names())
    by_task = _by_task(overrides, entry.tasks)
    tasks = tuple(load_task(one, by_task[one]) for one in entry.tasks)
    return Suite(names.as_artifact(name), tasks, entry.aggregation)


def _by_task(overrides: Sequence[str], tasks: Sequence[str]) -> dict[str, list[str]]:
    split: dict[str, list[str]] = {name: [] for name in tasks}
    for override in overrides:
        name, _, rest = override.partition(".")
        if name not in split or "=" not in rest:
            raise UsageError(
                f"the override {override!r} is not TASK.KEY=VALUE for a task of this suite ({', '.join(tasks)})"
            )
        split[name].append(rest)
    return split
