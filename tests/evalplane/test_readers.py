"""Whole files of every format give numbered rows; damaged ones one sentence."""

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evalplane import readers
from evalplane.readers import Input
from triplane import artifact
from triplane.errors import Corrupt

ROWS = [{"question": f"q{i}", "choices": {"text": ["a", "é"], "label": ["A", "B"]}} for i in range(250)]


def opened(path: Path, form: str) -> Input:
    return Input(str(path.parent), artifact.describe(str(path.parent), path.name), form, "arc")


def written(path: Path, form: str) -> bytes:
    if form == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(ROWS), sink, row_group_size=100)
        return sink.getvalue()
    if form == "json_examples":
        return json.dumps({"canary": "c", "examples": ROWS}).encode()
    if form == "requests":
        pairs = [(i, idx) for i in (0, 1, 1_000_000) for idx in (0, 1)]
        request = {"context": "c", "continuation": " a"}
        lines = [{"doc_id": i, "idx": idx, "doc": {"n": i, "index": 7}, "request": request} for i, idx in pairs]
        return gzip.compress("".join(json.dumps(one) + "\n" for one in lines).encode())
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.mark.parametrize(
    ("form", "name"), [("parquet", "a.parquet"), ("jsonl", "a.jsonl"), ("json_examples", "a.json")]
)
def test_the_same_rows_numbered(form: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(written(path, form))
    assert list(readers.rows(opened(path, form))) == [{"index": i, **row} for i, row in enumerate(ROWS)]


def test_a_dump_gives_each_document_once_with_its_own_number(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl.gz"
    path.write_bytes(written(path, "requests"))
    found = list(readers.rows(opened(path, "requests")))
    assert [(one["n"], one["index"]) for one in found] == [(0, 7), (1, 7)]
    assert found[0]["request"]["continuation"] == " a"


@pytest.mark.parametrize(
    ("form", "content", "words"),
    [
        ("parquet", b"PAR1 not really", r"row group 0 of .*a is no whole Parquet"),
        ("parquet", b"", r"row group 0 of .*a is no whole Parquet"),
        ("json_examples", b"{}", r"a is no JSON object with a list of examples: KeyError"),
        ("json_examples", b'{"examples": [3]}', r"a is no JSON object with a list of examples: TypeError"),
        ("json_examples", b"[" * 100_000, r"a is no JSON object with a list of examples: RecursionError"),
        ("requests", b'{"idx": 0}\n', r"line 1 of .*a is not a request of a dump: KeyError"),
        ("requests", b"[1]\n", r"line 1 of .*a is not a request of a dump: TypeError"),
        (
            "requests",
            b'{"idx": 0, "doc_id": 0, "doc": 3, "request": {}}\n',
            r"line 1 of .*a is not a request of a dump",
        ),
    ],
)
def test_a_damaged_file_is_one_sentence(form: str, content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(Corrupt, match=words):
        list(readers.rows(opened(path, form)))


def test_a_cut_parquet_file_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    whole = written(path, "parquet")
    for cut in (len(whole) - 1, len(whole) // 2, 10):
        path.write_bytes(whole[:cut])
        with pytest.raises(Corrupt, match="no whole Parquet"):
            list(readers.rows(opened(path, "parquet")))
