"""Evaluates one model on a suite and commits the result.

In: a model (URL or `run/...` reference), a suite name or tasks, a root. Out: the artifact `evaluation/{suite}-{model}@{version}`:
one Parquet file of items a task and format, scores with standard errors in the manifest's metadata. The version follows from
the model's weights, its tokenizer, the tasks and their data, so a committed evaluation is recognised and read back, and an
interrupted one goes on with the tasks that have no record.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evalplane import data, formats, metrics, models, readers, scorers
from evalplane.task import Backend, Format, Item, Request, Score, Suite, Task, load_suite
from triplane import artifact, recipe
from triplane.errors import NotFound, TriplaneError
from triplane.tokenizer import Tokenizer

KIND = "evaluation"
STAGE_VERSION = 1  # raised when the same model, tasks and data would score differently
CHUNK_ITEMS = 256  # requests given to the backend at once, in items: the grain of the progress bar

T = TypeVar("T")


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
        name = f"{task}-{format or self.scores.get(task, {}).get('format')}"
        for entry in self.manifest.files:
            if entry.name.rsplit("-", 1)[0] == name:
                return pq.read_table(pa.BufferReader(artifact.read(self.url, entry)))
        raise NotFound(f"{self.reference} holds no items of {name}; its tasks are {', '.join(self.scores)}")


@dataclass(frozen=True)
class Plan:
    """What an evaluation will do, found without loading the model: `draft` names the result, `files` the inputs of each task."""

    suite: Suite
    source: models.Model
    draft: artifact.Draft
    files: dict[str, list[readers.Input]]
    shots: dict[str, list[readers.Input]]
    limit: int | None

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
        num_items = len(data.prepare(task, files, self.shots[task.name], self.limit).items)
        return {
            "name": task.name,
            "num_items": num_items,
            "formats": list(task.formats),
            "files": [one.url for one in files],
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
) -> Evaluation:
    """Evaluates and commits, or reads what is committed. `folders` are where relative data paths are looked for, before `root`.

    Raises NotFound (model, tokenizer or data absent, saying where it looked), Refused (nothing fits the model's context, a
    wrong tokenizer), TriplaneError (a log-likelihood that is not a number), LostRace (another result has this name).
    """
    made = plan(model_url, suite_or_tasks, root, tokenizer=tokenizer, limit=limit, folders=folders)
    manifest = artifact.committed(made.draft)
    if manifest is None:
        manifest = _run(made, lambda: _load(made.source, device), progress)
    return Evaluation(made.draft.url, manifest)


def _load(source: models.Model, device: str | None) -> Backend:
    from evalplane.backends import native  # torch loads only when a model is needed

    return native.load(source, device)


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
    draft = artifact.begin(
        root,
        KIND,
        f"{suite.name}-{source.name}",
        inputs={
            "model": source.identity,
            "tokenizer": Tokenizer.load(source.tokenizer_url).sha256,
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
    return Plan(suite, source, draft, files, shots, limit)


def suite_of(suite_or_tasks: str | Suite | Sequence[Task]) -> Suite:
    """A suite by name, as it is, or tasks as the suite `custom`."""
    if isinstance(suite_or_tasks, str):
        return load_suite(suite_or_tasks)
    return suite_or_tasks if isinstance(suite_or_tasks, Suite) else Suite("custom", tuple(suite_or_tasks), "none")


def _run(made: Plan, load: Callable[[], Backend], progress: Any) -> artifact.Manifest:
    done = made.draft.records
    backend = load() if any(task.name not in done for task in made.suite.tasks) else None
    for task in made.suite.tasks:
        if task.name not in done and backend is not None:
            ready = data.prepare(task, made.files[task.name], made.shots[task.name], made.limit)
            score, tables = evaluate_task(task, ready.items, ready.shots, backend, progress, ready.reason)
            files = [
                made.draft.put_bytes(_parquet(table), f"{task.name}-{name}", ".parquet", rows=table.num_rows)
                for name, table in tables.items()
            ]
            made.draft.record(task.name, files, {"score": score})
    records = made.draft.records
    scores = {task.name: records[task.name].counts["score"] for task in made.suite.tasks}
    return made.draft.commit(
        {
            "model": made.source.describe(),
            "suite": made.suite.name,
            "limit": made.limit,
            "scores": scores,
            **_aggregate(made.suite, scores),
        }
    )


def evaluate_task(
    task: Task,
    items: Sequence[Item],
    shots: Sequence[Item],
    backend: Backend,
    progress: Any = None,
    substitute: str | None = None,
) -> tuple[dict[str, Any], dict[str, pa.Table]]:
    """(score as JSON values, items table a format). The task's score is that of its best format, named in `format`.

    `substitute` says what stands in for a part of the task that was missing (`data.Prepared.reason`).
    """
    scores: dict[str, Score] = {}
    tables: dict[str, pa.Table] = {}
    for name, format in task.formats.items():
        used, reason = usable_shots(format, items, shots, backend)
        with _bar(progress, f"{task.name}:{name}", len(items)) as advance:
            tables[name] = _ask(format, items, used, backend, advance)
        said = [reason, substitute if used else None, _windowed(tables[name], backend.max_length)]
        num_shots = max(map(len, data.by_part(used).values()), default=0)
        scores[name] = scorers.score(format, tables[name], num_shots, "; ".join(filter(None, said)) or None)
    best = scorers.best_of(task, tables, scores)
    by_format = {name: score.to_json() for name, score in scores.items()}
    about = {"format": best.name, "interval": best.interval and list(best.interval), "excess": best.excess}
    return {**by_format[best.name], **about, "task_version": task.version, "formats": by_format}, tables


def _windowed(table: pa.Table, max_length: int) -> str | None:
    """Says how many documents did not fit the context and were read in windows; their first tokens saw less before them."""
    if "bits" not in table.column_names:
        return None
    long = int(np.count_nonzero(table["tokens"].to_numpy() > max_length))
    what = f"{long} of {table.num_rows} documents exceed the model's context of {max_length} tokens"
    return f"{what} and are read in windows" if long else None


def usable_shots(
    format: Format, items: Sequence[Item], shots: Sequence[Item], backend: Backend
) -> tuple[Sequence[Item], str | None]:
    """The shots, or none with the reason, where the longest prompt with all of them exceeds the model's context.

    All items of a format are asked alike, so that its score is of one thing.
    """
    if not shots:
        return [], None
    longest = max(backend.lengths(formats.requests(format, items, shots)))
    if longest <= backend.max_length:
        return shots, None
    what = f"the longest prompt with {len(shots)} shots is {longest} tokens"
    return [], f"{what}, the model's context {backend.max_length}"


def _ask(
    format: Format, items: Sequence[Item], shots: Sequence[Item], backend: Backend, advance: Callable[[int], None]
) -> pa.Table:
    parts = []
    for chunk in _chunks(items, CHUNK_ITEMS):
        asked = formats.requests(format, chunk, shots)
        parts.append(_rows(format, chunk, asked, backend))
        advance(len(chunk))
    return pa.concat_tables(parts).combine_chunks()


def _rows(format: Format, items: Sequence[Item], asked: Sequence[Request], backend: Backend) -> pa.Table:
    if format.kind == "generate":
        return scorers.answer_rows(format, items, _complete(asked, backend.generate(asked)))
    return scorers.loglikelihood_rows(format, items, asked, _complete(asked, backend.loglikelihood(asked)))


def _complete(asked: Sequence[Request], results: Sequence[T]) -> Sequence[T]:
    if len(results) != len(asked):
        raise TriplaneError(
            f"the backend answered {len(results)} of {len(asked)} requests; the evaluation has no score"
        )
    return results


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


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


@contextmanager
def _bar(progress: Any, tag: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields the `advance` of a progress bar, or of nothing."""
    if progress is None:
        yield lambda _: None
        return
    with progress.bar(tag, total, "items") as bar:
        yield bar.advance
