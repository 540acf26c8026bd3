"""Parquet shards: every row is a document or quarantined, columns are mapped, damage is seen, and a folder may mix formats."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from dataplane import documents, parquet_documents
from triplane.errors import NotFound, UsageError


def written(path: Path, **columns: object) -> documents.DocumentShard:
    pq.write_table(pa.table(columns), path, row_group_size=4)
    return documents.DocumentShard(path.name, str(path), path.stat().st_size)


def mapped(shard: documents.DocumentShard, id: str | None, text: str) -> documents.DocumentShard:
    return documents.DocumentShard(shard.name, shard.url, shard.bytes, (id, text))


def test_rows_are_documents_in_their_order(tmp_path: Path) -> None:
    texts = [f"text {n} é" for n in range(10)]
    shard = written(tmp_path / "a.parquet", id=[f"d{n}" for n in range(10)], other=list(range(10)), text=texts)
    batches = list(parquet_documents.read(shard, batch_rows=3))
    assert [batch.rows.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert [text for batch in batches for text in batch.text.to_pylist()] == texts
    [whole] = documents.read(shard)
    assert whole.id.to_pylist() == [f"d{n}" for n in range(10)] and whole.source.null_count == 10
    offsets, data = whole.text_buffers()
    assert (len(offsets), bytes(data[offsets[1] : offsets[2]]).decode()) == (11, "text 1 é")


def test_columns_are_mapped(tmp_path: Path) -> None:
    shard = written(tmp_path / "a.parquet", number=[7, 8], content=pa.array(["x", "y"]).dictionary_encode())
    [batch] = documents.read(mapped(shard, "number", "content"))
    assert (batch.id.to_pylist(), batch.text.to_pylist()) == (["7", "8"], ["x", "y"])
    [batch] = documents.read(mapped(shard, None, "content"))
    assert batch.id.to_pylist() == ["0", "1"]
    with pytest.raises(UsageError, match="has no column id: set columns to some of number, content"):
        list(documents.read(shard))
    with pytest.raises(UsageError, match="column number holds int64, not text"):
        list(documents.read(mapped(shard, None, "number")))


def test_rows_that_are_no_documents(tmp_path: Path) -> None:
    shard = written(tmp_path / "a.parquet", id=["a", None, "c", "d", "e"], text=["1", "2", None, "four", "5"])
    [batch] = parquet_documents.read(shard, max_document_bytes=3)
    assert batch.rows.tolist() == [0, 4] and batch.id.to_pylist() == ["a", "e"]
    assert [(one.row, one.reason) for one in batch.quarantined] == [
        (1, "missing_id"),
        (2, "missing_text"),
        (3, "too_large"),
    ]
    assert batch.num_records == 5


@pytest.mark.parametrize("damage", ["cut", "page"])
def test_damage_is_one_record_more(tmp_path: Path, damage: str) -> None:
    shard = written(tmp_path / "a.parquet", id=[str(n) for n in range(8)], text=["some text"] * 8)
    data = bytearray(Path(shard.url).read_bytes())
    if damage == "cut":
        del data[-20:]
    else:
        data[4:60] = b"\xff" * 56  # the first page
    Path(shard.url).write_bytes(bytes(data))
    batches = list(documents.read(shard))
    assert [one.reason for batch in batches for one in batch.quarantined] == ["corrupt_stream"]
    with pytest.raises(NotFound):
        list(documents.read(documents.DocumentShard("b.parquet", str(tmp_path / "b.parquet"), 0)))


def test_a_folder_of_every_format(tmp_path: Path) -> None:
    line = json.dumps({"id": "1", "text": "hello"}).encode() + b"\n"
    for name, data in {
        "a.json": line, "b.jsonl": line, "c.json.gz": gzip.compress(line), "d.jsonl.gz": gzip.compress(line),
        "e.json.zst": zstandard.compress(line), "sub/f.jsonl.zst": zstandard.compress(line), "README.md": b"no",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    written(tmp_path / "g.parquet", id=["1"], text=["hello"])
    found = documents.shards(str(tmp_path))
    assert len(found) == 7
    assert [text for shard in found for batch in documents.read(shard) for text in batch.text.to_pylist()] == [
        "hello"
    ] * 7
