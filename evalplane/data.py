"""Where a task's rows are, and how a row becomes an Item.

In: `Task.data` and the folders to look in. Out: items in the task's order, and the identity of every input for the
evaluation's version. Readers: Arrow streams (Hugging Face `data-*.arrow`), JSON lines, dolma documents (files, folders, or
`heldout/*` artifacts). Rows: ARC, HellaSwag, OLMES request dumps (reference/eval.md, A1), question and answer, documents.
"""

import gzip
import hashlib
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import pyarrow as pa
import zstandard

from evalplane.task import Data, Item, Shots, Task
from triplane import artifact, storage
from triplane.errors import Corrupt, NotFound

HELD_OUT = "heldout"
UNCONDITIONED_DOC_ID = 1_000_000  # `uncond_docid_offset` of the dumps
DOCUMENT_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz")
Row = dict[str, Any]


@dataclass(frozen=True)
class Input:
    """One file to read: its URL, the sha256 of its content, the source of its documents, the artifact it is part of."""

    url: str
    identity: str
    source: str | None = None
    parent: str | None = None


def inputs(data: Data, folders: Sequence[str], root: str) -> list[Input]:
    """Every file of `data`, in path order. NotFound names the file and each place where it was looked for."""
    found = [one for path in data.path for one in _inputs_at(path, data, folders, root)]
    if not found:
        raise NotFound(
            f"no held-out documents are committed under {root}; build data with a `held_out_fraction` or name files"
        )
    return found


def _inputs_at(path: str, data: Data, folders: Sequence[str], root: str) -> list[Input]:
    if data.format == "documents" and path.split("/")[0] == HELD_OUT:
        return [one for reference in _held_out(path, root) for one in _of_artifact(root, reference)]
    url = locate(path, folders)
    if data.format == "documents" and not storage.exists(url):
        names = [name for name in storage.list_names(url) if name.endswith(DOCUMENT_SUFFIXES)]
        return [Input(one, _sha256(one), _last(url)) for name in names for one in [storage.join(url, name)]]
    return [Input(url, _sha256(url), _last(url.rsplit("/", 1)[0]) if data.format == "documents" else None)]


def locate(path: str, folders: Sequence[str]) -> str:
    """The URL of `path`: as it is when absolute, else the first folder that has it. NotFound when none has."""
    tried = [path] if "://" in path or path.startswith("/") else [storage.join(folder, path) for folder in folders]
    for url in tried:
        if storage.exists(url) or storage.list_names(url):
            return url
    places = ", ".join(tried) or "no folder: none was given"
    raise NotFound(f"the evaluation data {path} is missing; looked for it at {places}; give its folder with --data")


def _held_out(path: str, root: str) -> list[str]:
    """`heldout` -> the newest of each source, by name; `heldout/web` -> the newest; `heldout/web@v` -> itself."""
    if path != HELD_OUT:
        return [artifact.load(root, path).reference]
    newest: dict[str, str] = {}
    for reference in artifact.references(root, HELD_OUT):
        newest.setdefault(reference.split("@")[0], reference)
    return [newest[name] for name in sorted(newest)]


def _of_artifact(root: str, reference: str) -> list[Input]:
    manifest = artifact.load(root, reference)
    url = artifact.artifact_url(root, reference)
    files = [entry for entry in manifest.files if entry.name.endswith(DOCUMENT_SUFFIXES)]
    return [Input(storage.join(url, entry.name), entry.sha256, manifest.name, reference) for entry in files]


def items(task: Task, files: Sequence[Input], limit: int | None) -> list[Item]:
    """The task's items: rows in file order, the task's sample of them, then the first `limit` (for documents: of each source)."""
    made = [item for one in files for item in _items_of(one, task.data)]
    if not made:
        raise Corrupt(f"the data of {task.name} holds no rows: {', '.join(one.url for one in files)}")
    if task.sample is not None and len(made) > task.sample.count:
        made = random.Random(task.sample.seed).sample(made, task.sample.count)
    return first(made, limit)


def first(made: list[Item], limit: int | None) -> list[Item]:
    """The first `limit` items of each source; items without one count as one source."""
    if limit is None:
        return made
    kept, seen = [], dict[str, int]()
    for item in made:
        source = item.fields.get("source", "")
        seen[source] = seen.get(source, 0) + 1
        if seen[source] <= limit:
            kept.append(item)
    return kept


def shot_items(shots: Shots, file: Input) -> list[Item]:
    """The first `count` items of the pool. NotFound when the file has no such pool or too few rows."""
    pool = json.loads(storage.read(file.url)).get(shots.pool, [])
    if len(pool) < shots.count:
        raise NotFound(f"{file.url} holds {len(pool)} shots in pool {shots.pool!r}, {shots.count} are asked for")
    return [ROWS[shots.rows](row) for row in pool[: shots.count]]


def shot_input(shots: Shots, folders: Sequence[str]) -> Input:
    url = locate(shots.path, folders)
    return Input(url, _sha256(url))


def _items_of(file: Input, data: Data) -> Iterator[Item]:
    convert = ROWS[data.rows]
    for number, row in enumerate(READERS[data.format](file.url), 1):
        if file.source is not None:
            row = {**row, "source": file.source}
        try:
            if data.rows == "arc_request" and not is_first_request(row):
                continue
            yield convert(row)
        except (KeyError, ValueError, TypeError) as error:
            raise Corrupt(f"row {number} of {file.url} is not a {data.rows} row: {error!r}") from error


def read_arrow(url: str) -> Iterator[Row]:
    """Rows of an Arrow IPC stream file."""
    for batch in pa.ipc.open_stream(storage.read(url)):
        yield from batch.to_pylist()


def read_jsonl(url: str) -> Iterator[Row]:
    """Rows of a JSON lines file, plain, gzip or zstd (several frames too). Corrupt names the line that does not parse."""
    with storage.open_stream(url) as raw, io.TextIOWrapper(_decompressed(url, raw), "utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise Corrupt(f"line {number} of {url} is not JSON: {error}") from error


def _decompressed(url: str, raw: BinaryIO) -> BinaryIO:
    if url.endswith(".zst"):
        stream = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        return cast(BinaryIO, io.BufferedReader(stream))
    return cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if url.endswith(".gz") else raw


def is_first_request(row: Row) -> bool:
    """Of a dump's requests for one document, the first conditioned one (unconditioned ones number documents from 1,000,000)."""
    return row["idx"] == 0 and row["doc_id"] < UNCONDITIONED_DOC_ID


def arc_row(row: Row) -> Item:
    """ARC as AI2 publishes it. Labels are A to E or 1 to 5; the prompt always shows letters."""
    gold = row["choices"]["label"].index(row["answerKey"])
    return Item(row["id"], {"question": row["question"]}, tuple(row["choices"]["text"]), gold)


def arc_request_row(row: Row) -> Item:
    """ARC from an OLMES cloze request dump: the question is the query without its wording."""
    doc = row["doc"]
    question = doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
    return Item(doc["id"], {"question": question}, tuple(doc["choices"]), doc["gold"])


def hellaswag_row(row: Row) -> Item:
    """HellaSwag: the activity and both halves of the context, uncleaned (the format cleans the whole prompt)."""
    question = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return Item(str(row["ind"]), {"question": question}, tuple(row["endings"]), int(row["label"]))


def question_answer_row(row: Row) -> Item:
    return Item(str(row["id"]), {"question": row["question"]}, answers=(row["answer"],))


def document_row(row: Row) -> Item:
    return Item(str(row["id"]), {"text": row["text"], "source": row["source"]})


def _sha256(url: str) -> str:
    return hashlib.sha256(storage.read(url)).hexdigest()


def _last(url: str) -> str:
    return url.rstrip("/").rsplit("/", 1)[-1]


READERS: dict[str, Callable[[str], Iterator[Row]]] = {
    "arrow": read_arrow,
    "jsonl": read_jsonl,
    "documents": read_jsonl,
}
ROWS: dict[str, Callable[[Row], Item]] = {
    "arc": arc_row,
    "arc_request": arc_request_row,
    "hellaswag": hellaswag_row,
    "question_answer": question_answer_row,
    "document": document_row,
}
