"""Evaluates one model on a suite and commits the result.

In: a model (URL or `run/...` reference), a suite name or tasks, a root. Out: the artifact `evaluation/{suite}-{model}@{version}`:
Parquet files of items and of requests a shard of a task and format, scores with standard errors in the manifest's metadata. The version
follows from the model's weights, its tokenizer, the tasks and their data, so a committed evaluation is recognised and read back, and an
interrupted one goes on with the shards that have no record. They are answered in this process or by a pool of others (`cluster`).

Of the data the files' sha256 count and not the rows': they are known without reading them. So the same rows in another file are scored again, to
the same scores; other rows are never taken for the same, and a task that pins its rows (`data.sha256`) refuses others whatever the file.
"""

import dataclasses
import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from evalplane import data, decontamination, metrics, models, readers, scorers, shards
from evalplane.decontamination import OnContamination
from evalplane.shards import Shard
from evalplane.task import Backend, Item, Score, Suite, Task, load_suite
from triplane import artifact, recipe
from triplane.contamination_status import Status
from triplane.errors import NotFound, TriplaneError
from triplane.tokenizer import Tokenizer

KIND = "evaluation"
COUNTERS = ("items", "requests", "overlong_requests", "failed_requests")
STAGE_VERSION = 2  # raised when the same model, tasks and data would score differently

# Answers and commits shards of a plan; told of each that stands.
Answer = Callable[["Plan", Sequence[Shard], Callable[[Shard], None]], None]


@dataclass(frozen=True)
class Evaluation:
    """A committed evaluation. `scores[task]` has metric, value, stderr, num_items, format and, under `formats`, every format's."""

    url: str
    manifest: artifact.Manifest

    @property
    def reference(self) -> str:
        return self.manifest.reference

    @property
    def scores(self) -> dict[str, Any]:
        return self.manifest.metadata["scores"]

    def items(self, task: str, format: str | None = None) -> pa.Table:
        """The items of a task, in item order; `format` defaults to the task's counting one. NotFound when not of this suite, Corrupt."""
        name = format or self.scores.get(task, {}).get("format")
        records = _records_of(self.manifest.records, task, name)
        if records:
            return pa.concat_tables(shards.read_items(self.url, one) for one in records).combine_chunks()
        raise NotFound(f"{self.reference} holds no items of {task}-{name}; its tasks are {', '.join(self.scores)}")

    def keys(self, task: str) -> list[str]:
        """The items of a task as `Item.key` names them. Raises as `items`."""
        rows = self.items(task).select(["part", "id"]).to_pylist()
        return [f"{row['part']}/{row['id']}" if row["part"] else row["id"] for row in rows]


@dataclass(frozen=True)
class Plan:
    """What an evaluation will do, found without loading the model: `draft` names the result, `files` the inputs of each task."""

    suite: Suite
    source: models.Model
    draft: artifact.Draft
    files: dict[str, list[readers.Input]]
    shots: dict[str, list[readers.Input]]
    limit: int | None
    root: str

    @cached_property
    def prepared(self) -> shards.Prepared:
        """The items and shots, read when they are needed."""
        return shards.Prepared(self)

    @cached_property
    def contamination(self) -> dict[str, Status]:
        """Whether the items of each task are in what the model was trained on."""
        names = [task.name for task in self.suite.tasks]
        return decontamination.statuses(self.root, self.source.url, names, self._ids)

    def _ids(self, task: str) -> list[str]:
        return [item.key for item in self.prepared[task].items]

    def describe(self) -> dict[str, Any]:
        """What would be done, for --dry-run: reads the data, loads no model."""
        return {
            "reference": self.draft.reference,
            "committed": artifact.committed(self.draft) is not None,
            "model": self.source.describe(),
            "tasks": [self._describe_task(task) for task in self.suite.tasks],
        }

    def _describe_task(self, task: Task) -> dict[str, Any]:
        files = self.files[task.name]
        num_items = len(self.prepared[task.name].items)
        return {
            "name": task.name,
            "num_items": num_items,
            "formats": list(task.formats),
            "files": [one.url for one in files],
            "decontamination": self.contamination[task.name].status,
        }


def evaluate(
    model_url: str,
    suite_or_tasks: str | Suite | Sequence[Task],
    root: str,
    *,
    tokenizer: str | None = None,
    limit: int | None = None,
    folders: Sequence[str] = (),
    device: str | None = None,
    progress: Any = None,
    answer: Answer | None = None,
    on_contamination: OnContamination = "refuse",
) -> Evaluation:
    """Evaluates and commits, or reads what is committed. `folders` are where relative data paths are looked for, before `root`.

    `answer` is who answers shards instead of this process: `cluster.Pool.answer`. `on_contamination`: what becomes of items that the model was
    trained on (`decontamination.check`), before anything is asked.

    Raises NotFound (model, tokenizer or data absent, saying where it looked), Refused (items that were trained on, nothing fits the
    model's context, a wrong tokenizer), TriplaneError (a log-likelihood that is not a number), LostRace (another result has this name).
    """
    made = plan(model_url, suite_or_tasks, root, tokenizer=tokenizer, limit=limit, folders=folders)
    decontamination.check(made.contamination, made.source.name, on_contamination)
    return committed(made) or complete(made, answer or _here(device), progress, on_contamination)


def committed(made: Plan) -> Evaluation | None:
    """What a plan came to, if it was carried out, with what is known of its items now. LostRace."""
    manifest = artifact.committed(made.draft)
    if manifest is None:
        return None
    metadata = decontamination.updated(manifest.metadata, made.contamination)
    return Evaluation(made.draft.url, dataclasses.replace(manifest, metadata=metadata))


def complete(
    made: Plan, answer: Answer, progress: Any = None, on_contamination: OnContamination = "refuse"
) -> Evaluation:
    """Has the shards answered that have no record, scores the tasks and commits: what stands, whoever was first. Raises as `evaluate`."""
    decontamination.check(made.contamination, made.source.name, on_contamination)
    return Evaluation(made.draft.url, _run(made, answer, progress))


def load_backend(source: models.Model, device: str | None, before: Any = None) -> Backend:
    """torch loads only when a model is needed. `before`: requests tokenized for another model (`tokenized.Tokenized`)."""
    loaded: Backend = importlib.import_module(f"evalplane.backends.{source.backend}").load(source, device, before)
    return loaded


def _here(device: str | None) -> Answer:
    def answer(made: Plan, todo: Sequence[Shard], advance: Callable[[Shard], None]) -> None:
        asker = shards.Asker(made.prepared, load_backend(made.source, device))
        for shard in todo:
            shards.commit(made.draft, shard, asker.answer(shard))
            advance(shard)

    return answer


def plan(
    model_url: str,
    suite_or_tasks: str | Suite | Sequence[Task],
    root: str,
    *,
    tokenizer: str | None = None,
    limit: int | None = None,
    folders: Sequence[str] = (),
) -> Plan:
    """Finds model, tokenizer and data, and names the result; loads no weights."""
    suite = suite_of(suite_or_tasks)
    source = models.locate(model_url, root, tokenizer)
    places = [*folders, root]
    files = {task.name: data.inputs(task.data, places, root) for task in suite.tasks}
    shots = {task.name: data.shot_inputs(task, places) for task in suite.tasks}
    draft = _draft(suite, source, Tokenizer.load(source.tokenizer_url).sha256, files, shots, limit, root)
    return Plan(suite, source, draft, files, shots, limit, root)


def of_model(made: Plan, source: models.Model) -> Plan:
    """The same asked of another model. The data is not looked at again, nor a tokenizer that is where the first one's is."""
    tokenizer = json.loads(made.draft.header)["inputs"]["tokenizer"]
    if source.tokenizer_url != made.source.tokenizer_url:
        tokenizer = Tokenizer.load(source.tokenizer_url).sha256
    draft = _draft(made.suite, source, tokenizer, made.files, made.shots, made.limit, made.root)
    other = dataclasses.replace(made, source=source, draft=draft)
    vars(other)["prepared"] = made.prepared  # where a cached property is kept: what was read stays read
    return other


def _draft(
    suite: Suite,
    source: models.Model,
    tokenizer_sha256: str,
    files: dict[str, list[readers.Input]],
    shots: dict[str, list[readers.Input]],
    limit: int | None,
    root: str,
) -> artifact.Draft:
    return artifact.begin(
        root,
        KIND,
        f"{suite.name}-{source.name}",
        inputs={
            "model": source.identity,
            **({} if source.backend == "native" else {"backend": source.backend}),
            "tokenizer": tokenizer_sha256,
            **_identities(files, shots),
        },
        recipe={
            "tasks": [recipe.resolved(_content(task)) for task in suite.tasks],
            "limit": limit,
            "aggregation": suite.aggregation,
        },
        stage_versions={KIND: STAGE_VERSION},
        parents=_parents(files),
    )


def suite_of(suite_or_tasks: str | Suite | Sequence[Task]) -> Suite:
    """A suite by name, as it is, or tasks as the suite `custom`."""
    if isinstance(suite_or_tasks, str):
        return load_suite(suite_or_tasks)
    return suite_or_tasks if isinstance(suite_or_tasks, Suite) else Suite("custom", tuple(suite_or_tasks), "none")


def _run(made: Plan, answer: Answer, progress: Any) -> artifact.Manifest:
    done = made.draft.records
    asked = {task.name: _shards(made, task) for task in made.suite.tasks if task.name not in done}
    todo = [shard for group in asked.values() for shard in group if shard.name not in done]
    if todo:
        with _bar(progress, made.suite.name, sum(shard.end - shard.start for shard in todo)) as advance:
            answer(made, todo, lambda shard: advance(shard.end - shard.start))
    records = made.draft.records
    for task in made.suite.tasks:
        if task.name not in done:
            made.draft.record(task.name, [], {"score": _score(made, task, records)})
    records = made.draft.records
    scores = {task.name: records[task.name].counts["score"] for task in made.suite.tasks}
    return made.draft.commit(
        {
            "model": made.source.describe(),
            "suite": made.suite.name,
            "limit": made.limit,
            "scores": scores,
            "counters": _counters(records),
            "decontamination": {task: status.to_json() for task, status in made.contamination.items()},
            **_aggregate(made.suite, scores),
        }
    )


def all_shards(made: Plan) -> list[Shard]:
    """Those of every task, done or not, in the order in which they are asked."""
    return [shard for task in made.suite.tasks for shard in _shards(made, task)]


def _shards(made: Plan, task: Task) -> list[Shard]:
    return shards.of_task(task.name, list(task.formats), len(made.prepared[task.name].items))


def _records_of(records: Iterable[artifact.Record], task: str, format: str | None) -> list[artifact.Record]:
    """The records of a format's shards, in the order of its items."""
    found = {one.shard.rpartition("-")[2]: one for one in records if one.shard.rpartition("-")[0] == f"{task}-{format}"}
    return [found[number] for number in sorted(found)]


def _score(made: Plan, task: Task, records: Mapping[str, artifact.Record]) -> dict[str, Any]:
    """From what was committed, so that it is the same whoever answered. TriplaneError where a shard is missing."""
    if missing := [shard.name for shard in _shards(made, task) if shard.name not in records]:
        raise TriplaneError(f"{len(missing)} shards of {task.name} have no answers ({missing[0]}): run the same again")
    counts, tables = {}, {}
    for name in task.formats:
        of_format = _records_of(records.values(), task.name, name)
        counts[name] = _together([one.counts for one in of_format])
        tables[name] = pa.concat_tables(shards.read_items(made.draft.url, one) for one in of_format).combine_chunks()
    return scored(task, tables, counts, made.prepared[task.name].reason)


def _together(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums over shards; how they were asked is the same in all."""
    sums = {name: sum(one.get(name, 0) for one in counts) for name in (*COUNTERS, "windowed")}
    return {**counts[0], **sums}


def _counters(records: Mapping[str, artifact.Record]) -> dict[str, int]:
    of_shards = [one.counts for one in records.values() if "requests" in one.counts]
    return {name: sum(one.get(name, 0) for one in of_shards) for name in COUNTERS}


def evaluate_task(
    task: Task,
    items: Sequence[Item],
    shots: Sequence[Item],
    backend: Backend,
    progress: Any = None,
    substitute: str | None = None,
) -> tuple[dict[str, Any], dict[str, pa.Table]]:
    """(score as JSON values, items table a format), committed nowhere: what training asks of the model it holds.

    The task's score is that of its best format, named in `format`. `substitute` says what stands in for a part of the task that was
    missing (`data.Prepared.reason`). The numbers are those of `evaluate`.
    """
    counts: dict[str, dict[str, Any]] = {}
    tables: dict[str, pa.Table] = {}
    for name, format in task.formats.items():
        used, reason = shards.usable_shots(format, items, shots, backend)
        parts = []
        with _bar(progress, f"{task.name}:{name}", len(items)) as advance:
            for shard in shards.of_task(task.name, [name], len(items)):
                parts.append(shards.answers(format, items[shard.start : shard.end], used, reason, backend))
                advance(shard.end - shard.start)
        counts[name] = _together([part.counts for part in parts])
        tables[name] = pa.concat_tables(part.items for part in parts).combine_chunks()
    return scored(task, tables, counts, substitute), tables


def scored(
    task: Task, tables: dict[str, pa.Table], counts: Mapping[str, Mapping[str, Any]], substitute: str | None
) -> dict[str, Any]:
    """The score of a task from the items of its formats, as JSON values."""
    scores: dict[str, Score] = {}
    for name, format in task.formats.items():
        about = counts[name]
        said = [about["reason"], substitute if about["num_shots"] else None, _windowed(about, tables[name].num_rows)]
        scores[name] = scorers.score(format, tables[name], about["num_shots"], "; ".join(filter(None, said)) or None)
    best = scorers.best_of(task, tables, scores)
    by_format = {name: score.to_json() for name, score in scores.items()}
    found = {"format": best.name, "interval": best.interval and list(best.interval), "excess": best.excess}
    return {**by_format[best.name], **found, "task_version": task.version, "formats": by_format}


def _windowed(about: Mapping[str, Any], num_rows: int) -> str | None:
    long = about["windowed"]
    what = f"{long} of {num_rows} documents exceed the model's context of {about['max_length']} tokens"
    return f"{what} and are read in windows" if long else None


def _aggregate(suite: Suite, scores: dict[str, Any]) -> dict[str, Any]:
    if suite.aggregation == "none":
        return {}
    return {"mean": metrics.suite_mean([scores[task.name] for task in suite.tasks])}


def _identities(files: dict[str, list[readers.Input]], shots: dict[str, list[readers.Input]]) -> dict[str, str]:
    named = {
        f"{task}.{i}.{one.source or ''}": one.identity for task, group in files.items() for i, one in enumerate(group)
    }
    pools = {f"{task}.shots.{i}": one.identity for task, group in shots.items() for i, one in enumerate(group)}
    return {**named, **pools}


def _content(task: Task) -> Task:
    """The task without where its data lies and what is said of it: `inputs` holds what the data is."""
    nowhere: dict[str, object] = {"path": (), "also": ()}
    shots = task.shots and task.shots.model_copy(update={"path": "", "also": ()})
    return task.model_copy(update={"data": task.data.model_copy(update=nowhere), "shots": shots, "source": ""})


def _parents(files: dict[str, list[readers.Input]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.parent for group in files.values() for one in group if one.parent is not None))


@contextmanager
def _bar(progress: Any, tag: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields the `advance` of a progress bar, or of nothing."""
    if progress is None:
        yield lambda _: None
        return
    with progress.bar(tag, total, "items") as bar:
        yield bar.advance
