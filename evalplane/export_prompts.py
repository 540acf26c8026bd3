"""The items that are evaluated, for decontamination: `triplane eval export-prompts`.

A suite's tasks, and data files that no task describes, -> an artifact `eval_items/NAME@VERSION`: one Parquet file a set with the columns task, split,
item, question, answer, passage. Items are those that `evalplane.data` would ask, of the same files; nothing is drawn anew. A set that cannot be
read, or has no item with words in it, stops the export.
"""

import csv
import io
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evalplane import data, readers
from evalplane.task import Item, Task
from triplane import artifact
from triplane.errors import Corrupt, UsageError

VERSION = 1
KIND = "eval_items"
COLUMNS = ("task", "split", "item", "question", "answer", "passage")
SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])
_SPLIT = re.compile(r"(?<![a-z])(train|test|validation|valid|val|dev)(?![a-z])")
_SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}
_PASSAGES, _ANSWERS = ("passage", "context"), ("solution", "value")


@dataclass(frozen=True)
class File:
    """A data file that no task describes. fields: which of its columns is question, answer, passage and item; only question must be there."""

    url: str
    task: str
    split: str
    fields: Mapping[str, str]


def export(
    root: str, name: str, tasks: Sequence[Task], files: Sequence[File], folders: Sequence[str]
) -> artifact.Manifest:
    """The artifact of all items, committed. NotFound, Corrupt when a set cannot be read or is empty; UsageError when two have one name."""
    sets = [(task.name, _of_task(task, folders, root)) for task in tasks] + [
        (file.task, _of_file(file)) for file in files
    ]
    names = [one for one, _ in sets]
    if len(set(names)) < len(names) or not names:
        raise UsageError(f"the sets to export are {', '.join(names) or 'none'}: name at least one, and each once")
    tables = {one: _table(one, rows) for one, (_, rows) in sets}
    inputs = {one: identity for one, (identity, _) in sets}
    draft = artifact.begin(
        root, KIND, name, inputs=inputs, recipe={"columns": list(COLUMNS)}, stage_versions={"export": VERSION}
    )
    standing = artifact.committed(draft)
    if standing is not None:
        return standing
    for one, table in tables.items():
        _write(draft, one, table)
    return draft.commit({"sets": {one: table.num_rows for one, table in tables.items()}})


def _write(draft: artifact.Draft, name: str, table: pa.Table) -> None:
    with tempfile.TemporaryDirectory(prefix="triplane-") as folder:
        path = Path(folder) / "items.parquet"
        pq.write_table(table, path, compression="zstd")
        draft.record(name, [draft.put_file(path, name, ".parquet", rows=table.num_rows)], {"items": table.num_rows})


def _table(name: str, rows: list[dict[str, str]]) -> pa.Table:
    table = pa.Table.from_pylist(rows, SCHEMA)
    if not any(re.search(r"\w", row["question"] + row["answer"] + row["passage"]) for row in rows):
        raise Corrupt(
            f"the evaluation set {name} has {len(rows)} items and not one word: check its file and its fields"
        )
    return table


def _of_task(task: Task, folders: Sequence[str], root: str) -> tuple[str, list[dict[str, str]]]:
    """(identity of what was read, rows) of a task's items, as its evaluation asks them."""
    files = data.inputs(task.data, folders, root)
    items = data.prepare(task, files, data.shot_inputs(task, folders), None).items
    split = split_of(files[0].url)
    return data.content_sha256(items), [_row(task.name, split, item) for item in items]


def split_of(path: str) -> str:
    """train, validation or test, as the last part of a path that names one says; "" where none does."""
    found = _SPLIT.findall(path.lower())
    return _SPLIT_NAMES.get(found[-1], found[-1]) if found else ""


def _row(task: str, split: str, item: Item) -> dict[str, str]:
    """The question as the item has it, the answer in its longest form: a chain of thought says more than a number."""
    fields = item.fields
    passage = next((fields[name] for name in _PASSAGES if fields.get(name)), "")
    question = fields.get("question") or fields.get("sentence") or fields.get("text", "")
    if not question.strip():
        question, passage = passage, ""
    answer = next((fields[name] for name in _ANSWERS if fields.get(name)), "")
    if not answer:
        answer = item.choices[item.gold] if item.gold is not None else next(iter(item.answers), "")
    return dict(zip(COLUMNS, (task, split, item.key, question, answer, passage), strict=True))


def _of_file(file: File) -> tuple[str, list[dict[str, str]]]:
    """(sha256 of the file, rows). Corrupt names the row without a question, or the field that no row has."""
    folder, _, name = file.url.rpartition("/")
    entry = artifact.describe(folder, name)
    rows = list(_records(readers.Input(folder, entry, "jsonl", "")))
    if not rows:
        raise Corrupt(f"{file.url} holds no rows: check the file")
    for part, field in file.fields.items():
        if not any(field in row for row in rows):
            raise Corrupt(
                f"no row of {file.url} has the field {field} for {part}: its fields are {', '.join(map(str, rows[0]))}"
            )
    made = []
    for number, row in enumerate(rows):
        said = {part: _text(row.get(field)) for part, field in file.fields.items()}
        defaults = {"task": file.task, "split": file.split or split_of(file.url), "item": str(number)}
        made.append({**dict.fromkeys(COLUMNS, ""), **defaults, **said})
    return entry.sha256, made


def _text(value: Any) -> str:
    """A field as text: the first of a list; nothing for null."""
    if isinstance(value, list):
        value = value[0] if value else ""
    return "" if value is None else str(value)


def _records(file: readers.Input) -> Iterator[dict[str, Any]]:
    """Rows of a JSON list, CSV, Parquet, Arrow or JSON lines file, by its name."""
    if file.url.endswith(".csv"):
        yield from csv.DictReader(io.StringIO(file.read().decode("utf-8-sig")))
    elif file.url.endswith(".json"):
        yield from _json_rows(file)
    else:
        form = next(
            (form for end, form in ((".parquet", "parquet"), (".arrow", "arrow")) if file.url.endswith(end)), "jsonl"
        )
        yield from readers.READERS[form](file)


def _json_rows(file: readers.Input) -> list[dict[str, Any]]:
    try:
        rows = json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{file.url} is not JSON: {readers.said(error)}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Corrupt(f"{file.url} is no JSON list of objects: convert it to JSON lines")
    return rows
