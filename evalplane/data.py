"""Where a task's rows are, and how a row becomes an Item.

In: `Task.data` and the folders to look in. Out: items in the task's order, and the identity of every input for the
evaluation's version; what is read must have it. Readers: Arrow streams (Hugging Face `data-*.arrow`), JSON lines, dolma documents
(files, folders, or `heldout/*` artifacts). Rows: ARC, HellaSwag, OLMES request dumps (reference/eval.md, A1), question and
answer, documents.
"""

import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from evalplane.task import Data, Item, Shots, Task
from triplane import artifact, decompression, storage
from triplane.artifact_format import MANIFEST
from triplane.errors import Corrupt, NotFound

HELD_OUT = "heldout"
UNCONDITIONED_DOC_ID = 1_000_000  # `uncond_docid_offset` of the dumps
Row = dict[str, Any]


@dataclass(frozen=True)
class Input:
    """One file to read: its folder's URL, name, size and sha256, the source of its documents, the artifact it is part of."""

    folder: str
    entry: artifact.FileEntry
    source: str | None = None
    parent: str | None = None

    @property
    def url(self) -> str:
        return storage.join(self.folder, self.entry.name)

    @property
    def identity(self) -> str:
        return self.entry.sha256

    def read(self) -> bytes:
        """Its bytes as they are stored. Corrupt unless they are those that were found; NotFound."""
        return artifact.read(self.folder, self.entry)


def inputs(data: Data, folders: Sequence[str], root: str) -> list[Input]:
    """Every file of `data`, in path order. NotFound names the file and each place where it was looked for."""
    return [one for path in data.path for one in _inputs_at(path, data, folders, root)]


def _inputs_at(path: str, data: Data, folders: Sequence[str], root: str) -> list[Input]:
    if data.format != "documents":
        return [_file(locate(path, folders))]
    if path.split("/")[0] == HELD_OUT:
        found = [(artifact.artifact_url(root, reference), reference) for reference in _held_out(path, root)]
        return [one for url, reference in found for one in _of_artifact(url, reference)]
    url = locate(path, folders)
    if storage.exists(url):
        return [_file(url, source=_last(url.rpartition("/")[0]))]
    if storage.exists(storage.join(url, MANIFEST)):
        return _of_artifact(url, None)
    names = [name for name in storage.list_names(url) if decompression.DOCUMENT_SUFFIX.search(name)]
    return _some([Input(url, artifact.describe(url, name), _last(url)) for name in names], url)


def _file(url: str, source: str | None = None) -> Input:
    folder, _, name = url.rpartition("/")
    return Input(folder, artifact.describe(folder, name), source)


def _some(found: list[Input], url: str) -> list[Input]:
    if not found:
        raise NotFound(f"{url} holds no document files ({decompression.DOCUMENT_FORMS}): check the path")
    return found


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
    if not newest:
        raise NotFound(
            f"no held-out documents are committed under {root}; build data with a `held_out_fraction` or name files"
        )
    return [newest[name] for name in sorted(newest)]


def _of_artifact(url: str, reference: str | None) -> list[Input]:
    manifest = artifact.load_url(url)
    files = [entry for entry in manifest.files if decompression.DOCUMENT_SUFFIX.search(entry.name)]
    return _some([Input(url, entry, manifest.name, reference) for entry in files], url)


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
    """The first `count` items of the pool. NotFound when the file has no such pool or too few rows; Corrupt."""
    try:
        pool = json.loads(file.read()).get(shots.pool, [])[: shots.count]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Corrupt(f"{file.url} is no JSON object of lists of shots: {_said(error)}") from error
    if len(pool) < shots.count:
        raise NotFound(f"{file.url} holds {len(pool)} shots in pool {shots.pool!r}, {shots.count} are asked for")
    made = []
    for number, row in enumerate(pool, 1):
        with _named(shots.rows, f"row {number} of pool {shots.pool!r} of {file.url}"):
            made.append(_checked(ROWS[shots.rows](row)))
    return made


def shot_input(shots: Shots, folders: Sequence[str]) -> Input:
    return _file(locate(shots.path, folders))


def _items_of(file: Input, data: Data) -> Iterator[Item]:
    for number, row in enumerate(READERS[data.format](file), 1):
        with _named(data.rows, f"row {number} of {file.url}"):
            if data.rows == "arc_request" and not is_first_request(row):
                continue
            item = _checked(ROWS[data.rows](row if file.source is None else {**row, "source": file.source}))
        yield item


@contextmanager
def _named(form: str, where: str) -> Iterator[None]:
    """What a row of another form raises becomes Corrupt, which says where it is."""
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise Corrupt(f"{where} is not a {form} row: {_said(error)}") from error


def _checked(item: Item) -> Item:
    """Raises TypeError or ValueError where a text is no string or no Unicode text, or no choice is the right one."""
    "".join([*item.fields.values(), *item.choices, *item.answers]).encode()
    if item.gold is not None and not 0 <= item.gold < len(item.choices):
        raise ValueError(f"the right choice is number {item.gold} of {len(item.choices)}")
    return item


def read_arrow(file: Input) -> Iterator[Row]:
    """Rows of an Arrow IPC stream file. Corrupt names the batch that cannot be read."""
    number = 0
    try:
        for batch in pa.ipc.open_stream(file.read()):
            number += 1
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Corrupt(f"{file.url} is no whole Arrow stream after batch {number}: {_said(error)}") from error


def read_jsonl(file: Input) -> Iterator[Row]:
    """Rows of a JSON lines file, plain, gzip or zstd (several frames too). Corrupt names the line that cannot be read."""
    number = 0
    try:
        for line in _lines(decompression.chunks(io.BytesIO(file.read()), file.url)):
            number += 1
            yield json.loads(line.decode())
    except decompression.Damaged as error:
        raise Corrupt(f"{file.url} is damaged after line {number} ({error}): restore it from a copy") from error
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"line {number} of {file.url} is not JSON: {_said(error)}") from error


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []  # the pieces of a line that goes on
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        held.append(first)
        if others:
            yield b"".join(held)
            yield from others[:-1]
            held = others[-1:]
    if rest := b"".join(held):
        yield rest


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


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


def _last(url: str) -> str:
    return url.rstrip("/").rsplit("/", 1)[-1]


READERS: dict[str, Callable[[Input], Iterator[Row]]] = {
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
