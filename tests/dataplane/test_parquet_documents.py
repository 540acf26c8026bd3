"""Parquet shards: every row is a document or quarantined, columns are mapped, damage is seen, and a folder may mix formats."""

import contextlib
import gzip
import io
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from dataplane import documents, parquet_documents, parquet_pages
from triplane.errors import NotFound, UsageError


def written(path: Path, **columns: object) -> documents.DocumentShard:
    pq.write_table(pa.table(columns), path, row_group_size=4)
    return documents.DocumentShard(path.name, str(path), path.stat().st_size)


def mapped(shard: documents.DocumentShard, id: str | None, text: str) -> documents.DocumentShard:
    return documents.DocumentShard(shard.name, shard.url, shard.bytes, (id, text))


def whole(batches: Iterable[documents.Batch]) -> documents.Batch:
    """All documents and quarantined records in one batch."""
    parts = list(batches)
    columns = [pa.concat_arrays([getattr(part, name) for part in parts]) for name in ("id", "text", "source")]
    refused = tuple(one for part in parts for one in part.quarantined)
    return documents.Batch(np.concatenate([part.rows for part in parts]), *columns, None, refused)


def test_rows_are_documents_in_their_order(tmp_path: Path) -> None:
    texts = [f"text {n} é" for n in range(10)]
    shard = written(tmp_path / "a.parquet", id=[f"d{n}" for n in range(10)], other=list(range(10)), text=texts)
    batches = list(parquet_documents.read(shard, batch_rows=3))
    assert whole(batches).rows.tolist() == list(range(10)) and max(batch.num_documents for batch in batches) == 3
    assert [text for batch in batches for text in batch.text.to_pylist()] == texts
    batch = whole(documents.read(shard))
    assert batch.id.to_pylist() == [f"d{n}" for n in range(10)] and batch.source.null_count == 10
    offsets, data = batch.text_buffers()
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
    batch = whole(parquet_documents.read(shard, max_document_bytes=3))
    assert batch.rows.tolist() == [0, 4] and batch.id.to_pylist() == ["a", "e"]
    assert [(one.row, one.reason) for one in batch.quarantined] == [
        (1, "missing_id"),
        (2, "missing_text"),
        (3, "too_large"),
    ]
    assert batch.num_records == 5


def raw(values: list[bytes | None]) -> pa.Array:
    """Strings of these bytes, whatever they are."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


@pytest.mark.parametrize("dictionary", [True, False])
def test_what_is_not_utf8_is_quarantined_alone(tmp_path: Path, dictionary: bool) -> None:
    """Arrow hands on bytes that a file calls a string: one such row would end the build."""
    texts = [b"one", b"\xff\xfe", None, b"cut \xc3", b"\xed\xa0\x80", "six é".encode(), b"seven"]
    ids = [b"a", b"b", b"c", b"d", b"e", b"f", b"\xc3"]
    table = pa.table({"id": raw(ids), "text": raw(texts)})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=dictionary)
    batch = whole(documents.read(documents.DocumentShard("a.parquet", str(tmp_path / "a.parquet"), 1)))
    assert batch.rows.tolist() == [0, 5] and batch.text.to_pylist() == ["one", "six é"]
    assert batch.id.to_pylist() == ["a", "f"] and batch.source.null_count == 2
    reasons = [(one.row, one.reason) for one in batch.quarantined]
    assert reasons == [(n, "missing_text" if n == 2 else "invalid_utf8") for n in (1, 2, 3, 4, 6)]


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


def repeated(text: str, rows: int) -> pa.Table:
    """A column whose dictionary holds one text."""
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text]))
    return pa.table({"id": [str(n) for n in range(rows)], "text": column})


def read_all(path: Path) -> tuple[int, list[tuple[int, str]]]:
    shard = documents.DocumentShard(path.name, str(path), path.stat().st_size)
    batches = list(documents.read(shard))
    assert all(batch.text.nbytes < 80 << 20 for batch in batches)
    return sum(batch.num_documents for batch in batches), [(q.row, q.reason) for b in batches for q in b.quarantined]


def test_a_dictionary_that_expands_without_end_is_a_bomb(tmp_path: Path) -> None:
    """100,000 times 1 MiB in a file of about 1 MiB: what is allowed is read, then one record stands for the rest."""
    text = np.random.default_rng(0).integers(97, 123, 1 << 20, np.uint8).tobytes().decode()
    pq.write_table(repeated(text, 100_000), tmp_path / "a.parquet", compression="zstd")
    size = (tmp_path / "a.parquet").stat().st_size
    assert size < 2 << 20
    count, refused = read_all(tmp_path / "a.parquet")
    assert refused == [(count, "decompression_bomb")] and 0 < count * len(text) < 500 * size + (80 << 20)
    pq.write_table(repeated(text, 300), tmp_path / "b.parquet", compression="zstd")  # the same within the allowance
    assert read_all(tmp_path / "b.parquet") == (300, [])


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_page_that_expands_without_end_is_a_bomb_behind_the_groups_before_it(tmp_path: Path, version: str) -> None:
    table = pa.table({"id": ["a", "b", "c"], "text": ["one", "two", "x" * (200 << 20)]})
    path, options = tmp_path / "a.parquet", {"use_dictionary": False, "data_page_version": version}
    pq.write_table(table, path, row_group_size=2, compression="zstd", **options)
    assert path.stat().st_size < 1 << 20
    assert read_all(path) == (2, [(2, "decompression_bomb")])
    pq.write_table(table.slice(0, 2), path, compression="zstd", **options)
    assert read_all(path) == (2, [])


def test_a_page_that_takes_too_much_memory_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "a.parquet", id=list("abcdefgh"), text=["short"] * 4 + [f"{n}" * 3000 for n in range(4)])
    assert read_all(tmp_path / "a.parquet") == (8, [])
    monkeypatch.setattr(parquet_documents, "MAX_PAGE_BYTES", 1000)
    assert read_all(tmp_path / "a.parquet") == (4, [(4, "too_large")])


def test_a_parquet_bomb_takes_little_memory(tmp_path: Path) -> None:
    """Where no more than 256 MiB can be allocated; without the check of its pages that is not enough."""
    table = pa.table({"id": ["a", "b"], "text": ["x" * (160 << 20), "y" * (160 << 20)]})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    code = (
        "import resource, sys; from dataplane import documents, parquet_documents as p; from pathlib import Path; import pyarrow.parquet\n"
        "if sys.argv[2] == 'unchecked': p._check_pages = lambda *_: None\n"
        "path = Path(sys.argv[1]); shard = documents.DocumentShard(path.name, str(path), 1)\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)\n"
        "print([q.reason for batch in documents.read(shard) for q in batch.quarantined])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.parquet")]
    done = subprocess.run([*command, "checked"], capture_output=True, text=True, timeout=60)
    assert done.stdout == "['decompression_bomb']\n", done.stderr
    control = subprocess.run([*command, "unchecked"], capture_output=True, text=True, timeout=60)
    assert control.returncode != 0 or "decompression_bomb" not in control.stdout


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "snappy", "zstd", "gzip"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_pages_are_as_large_as_they_say(tmp_path: Path, version: str, codec: str, dictionary: bool) -> None:
    """All pages of a chunk, headers included, are its bytes; decoded they are what the footer adds up."""
    texts = [f"text {n % 700} " * (n % 50) for n in range(3000)]
    options = {"data_page_version": version, "use_dictionary": dictionary, "data_page_size": 4096, "write_statistics": True}  # fmt: skip
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", compression=codec, **options)
    with pq.ParquetFile(tmp_path / "a.parquet") as file, (tmp_path / "a.parquet").open("rb") as data:
        chunk = file.metadata.row_group(0).column(0)
        found = list(parquet_pages.pages(data, chunk))
    headers = chunk.total_compressed_size - sum(page.stored for page in found)
    assert len(found) >= 2 and 8 * len(found) < headers < 2000 * len(found)
    assert sum(page.decoded for page in found) + headers == chunk.total_uncompressed_size


@given(st.binary(max_size=200))
def test_any_bytes_end_as_pages_or_as_a_bad_page(data: bytes) -> None:
    chunk = SimpleNamespace(data_page_offset=0, dictionary_page_offset=None, total_compressed_size=len(data))
    with contextlib.suppress(parquet_pages.BadPage):
        for page in parquet_pages.pages(io.BytesIO(data), chunk):
            assert page.stored >= 0 and page.decoded >= 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytes([0x18]) + b"\xff" * 9 + b"\x01", "a page header holds a string of 18446744073709551615 bytes"),
        (bytes([0x19]) * 40, "a page header holds a list of 1"),
        (b"\x15" + b"\xff" * 10, "a number in a page header is too long"),
        (b"\x1d", "a page header has a field of unknown type 13"),
        (b"\x15\x02\x00", "there is no page header"),
    ],
)
def test_what_is_no_page_header_is_a_bad_page(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(data)
    chunk = SimpleNamespace(data_page_offset=0, dictionary_page_offset=None, total_compressed_size=len(data))
    with (tmp_path / "page").open("rb") as file, pytest.raises(parquet_pages.BadPage, match=message):
        list(parquet_pages.pages(file, chunk))
    chunk = SimpleNamespace(data_page_offset=-5, dictionary_page_offset=None, total_compressed_size=len(data))
    with pytest.raises(parquet_pages.BadPage, match="a column chunk begins at byte -5"):
        list(parquet_pages.pages(io.BytesIO(data), chunk))


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
