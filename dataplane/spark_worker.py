"""What runs in a Spark worker: a task for each shard, pieces by part, attribute tables in and out; and how a result or an error travels back as text.

Rows that `spark.py` sends -> calls of module-level functions -> rows. Knows no pyspark: a worker needs only pyarrow and `triplane`.
"""

import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from triplane import errors, storage
from triplane.errors import Refused, TriplaneError

ROW_GROUP_ROWS = 10_000
SCRATCH = re.compile(r"triplane-([a-z0-9_]{8}|spark-[a-z0-9_]{8}\.log)")  # as `tempfile` names them
STALE_SECONDS = 24 * 3600
ARROW_TYPES = {
    "bigint": pa.int64(),
    "int": pa.int32(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "string": pa.string(),
    "array<bigint>": pa.list_(pa.int64()),
}

ShardFunction = Callable[[dict[str, Any]], dict[str, Any]]
WriteFunction = Callable[[int, pa.Table], dict[str, Any]]
Derive = Callable[[pa.Table], pa.Table]
Piece = tuple[int, tuple[bytes, float]]  # its part; its content and the CPU seconds it took
Emit = Callable[[dict[str, Any]], Iterable[tuple[int, bytes]]]
Reduce = Callable[[int, list[bytes]], Iterable[tuple[int, bytes]]]
Finish = Callable[[int, list[bytes]], dict[str, Any]]


def write_parquet(table: pa.Table, path: Path) -> None:
    """One file with the same bytes for the same table: zstd, row groups of a fixed size."""
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table.combine_chunks(), row_group_size=ROW_GROUP_ROWS)


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer with the settings of every attribute table; give it tables of whole row groups."""
    return pq.ParquetWriter(path, schema, compression="zstd", compression_level=1)


@functools.cache  # once a process
def remove_stale_scratch(folder: str) -> None:
    """Removes what processes that were killed left in a temporary folder: our scratch folders and logs, a day after they last changed."""
    with os.scandir(folder) as found:
        scratch = [entry.path for entry in found if SCRATCH.fullmatch(entry.name)]
    for path in scratch:
        with contextlib.suppress(OSError):  # another process removes it too, or it is another user's
            if time.time() - os.stat(path).st_mtime > STALE_SECONDS:
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def run_tasks(function: ShardFunction, bins: Iterator[list[tuple[int, str]]]) -> Iterator[tuple[int, str, float]]:
    """Lists of (position, payload) -> (position, result, CPU seconds): `function` of each payload."""
    remove_stale_scratch(tempfile.gettempdir())
    for members in bins:
        for position, payload in members:
            start = time.process_time()
            result = _reported(function, json.loads(payload))
            yield position, result, time.process_time() - start


def emit_pieces(emit: Emit, bins: Iterator[list[str]]) -> Iterator[Piece]:
    """Lists of payloads -> what `emit` gives for each, with the CPU seconds that each piece took."""
    for members in bins:
        for payload in members:
            yield from _timed(emit(json.loads(payload)), 0.0)


def reduce_pieces(reduce: Reduce, rows: Iterator[Piece]) -> Iterator[Piece]:
    """All pieces of one part -> the pieces that `reduce` makes of them; none of none."""
    if gathered := list(rows):
        yield from _timed(reduce(gathered[0][0], [data for _, (data, _) in gathered]), _seconds(gathered))


def finish_pieces(finish: Finish, rows: Iterator[Piece]) -> Iterator[tuple[int, str, float]]:
    """All pieces of one part -> (part, result, CPU seconds of this and of all that led to it)."""
    if gathered := list(rows):
        start = time.process_time()
        part = gathered[0][0]
        result = _reported(functools.partial(finish, part), [data for _, (data, _) in gathered])
        yield part, result, time.process_time() - start + _seconds(gathered)


def part_of(part: int) -> int:
    """Where Spark puts a piece: its part's number says so."""
    return part


def _timed(pieces: Iterable[tuple[int, bytes]], before: float) -> Iterator[Piece]:
    """Each piece with the CPU seconds since the last one; the first also with what came before."""
    start = time.process_time() - before
    for part, data in pieces:
        now = time.process_time()
        yield part, (data, now - start)
        start = time.process_time()


def _seconds(pieces: Iterable[Piece]) -> float:
    return sum(seconds for _, (_, seconds) in pieces)


def read_shards(
    columns: dict[str, str], derive: Derive | None, derived_from: Sequence[str], batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """(shard, url) rows -> the columns of each Parquet object; only those and what `derive` needs are decoded."""
    for batch in batches:
        for row in batch.to_pylist():
            file = pq.ParquetFile(pa.BufferReader(storage.read(row["url"])))
            needed = [name for name in file.schema_arrow.names if name in columns or name in derived_from]
            table = file.read(needed) if derive is None else derive(file.read(needed))
            kinds = [(table.column(name).combine_chunks(), ARROW_TYPES[kind]) for name, kind in columns.items()]
            shard = pa.array([row["shard"]] * table.num_rows, pa.int32())
            yield from pa.table([shard, *(_as_type(*pair) for pair in kinds)], ["shard", *columns]).to_batches()


def _as_type(array: pa.Array, kind: pa.DataType) -> pa.Array:
    return array.view(pa.int64()) if array.type == pa.uint64() and kind == pa.int64() else array.cast(kind)


def write_shards(write: WriteFunction, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Rows sorted by shard -> (shard, result): `write` of all rows of each."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        for piece in _runs(batch):
            if waiting and waiting[0].column(0)[0] != piece.column(0)[0]:
                yield _written(write, waiting)
                waiting = []
            waiting.append(piece)
    if waiting:
        yield _written(write, waiting)


def _runs(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch cut where its first column, sorted, changes."""
    shards = batch.column(0).to_numpy(zero_copy_only=False)
    edges = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(shards)]
    for start, end in itertools.pairwise(edges):
        if end > start:
            yield batch.slice(start, end - start)


def _written(write: WriteFunction, pieces: list[pa.RecordBatch]) -> pa.RecordBatch:
    shard = int(pieces[0].column(0)[0].as_py())
    result = _reported(functools.partial(write, shard), pa.Table.from_batches(pieces))
    return pa.RecordBatch.from_arrays(
        [pa.array([shard], pa.int32()), pa.array([result], pa.string())], ["shard", "result"]
    )


def _reported(function: Callable[[Any], dict[str, Any]], value: Any) -> str:
    """The result as JSON; an error that a user can act on as its class and sentence, anything else raised for Spark to retry."""
    try:
        return json.dumps({"value": function(value)})
    except TriplaneError as error:
        return json.dumps({"error": type(error).__name__, "message": str(error)})
    except OSError as error:
        return json.dumps(
            {
                "error": "TriplaneError",
                "message": f"{error.strerror or error} ({error.filename or 'while writing'}): free or mend it, then run again",
            }
        )


def raised(result: dict[str, Any]) -> dict[str, Any]:
    """In the driver: the value of a result, or its error raised with its own class."""
    if "error" in result:
        raise getattr(errors, result["error"], Refused)(result["message"])
    value: dict[str, Any] = result["value"]
    return value
