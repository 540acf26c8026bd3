"""A folder of text files becomes document shards that the reader reads: a file a record, the same bytes each time."""

from pathlib import Path

import pytest

from dataplane import documents
from dataplane.ingest import text_tree
from triplane import storage
from triplane.errors import UsageError

FILES = {
    "a/one.txt": "eins\r\n\x00 \u2028",
    "a/two.md": "",
    "b/three.txt": "drei " * 100,
    "ü.txt": "vier",
    "code.py": "x = '\\n'",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode())
    return root


def read(folder: Path) -> tuple[dict[str, str], list[tuple[int, str]]]:
    texts: dict[str, str] = {}
    refused = []
    for shard in documents.shards(str(folder)):
        for batch in documents.read(shard):
            texts |= dict(zip(batch.id.to_pylist(), batch.text.to_pylist(), strict=True))
            refused += [(record.row, record.reason) for record in batch.quarantined]
            assert set(batch.source.to_pylist()) <= {"notes"}
    return texts, refused


def test_a_file_is_a_document(tree: Path, tmp_path: Path) -> None:
    [path] = text_tree.convert(str(tree), [".txt", ".md"], "notes", tmp_path / "out", shard_bytes=1 << 20)
    assert path.name == "part-00000.jsonl.zst"
    assert read(tmp_path / "out") == ({name: text for name, text in FILES.items() if name != "code.py"}, [])


def test_all_files_without_suffixes(tree: Path, tmp_path: Path) -> None:
    text_tree.convert(str(tree), [], "notes", tmp_path / "out", shard_bytes=1 << 20)
    assert read(tmp_path / "out") == (FILES, [])


@pytest.mark.parametrize(("shard_bytes", "shards"), [(1, 4), (100, 3), (1 << 20, 1)])
def test_shards_are_bounded_and_equal_each_time(tree: Path, tmp_path: Path, shard_bytes: int, shards: int) -> None:
    runs = [
        text_tree.convert(str(tree), [".txt", ".md"], "notes", tmp_path / run, shard_bytes)
        for run in ("first", "second")
    ]
    assert [len(run) for run in runs] == [shards, shards]
    assert [path.read_bytes() for path in runs[0]] == [path.read_bytes() for path in runs[1]]
    assert len(read(tmp_path / "first")[0]) == 4


def test_a_file_that_is_not_utf8_is_quarantined_by_the_reader(tree: Path, tmp_path: Path) -> None:
    (tree / "a/latin.txt").write_bytes("é".encode("latin-1"))
    text_tree.convert(str(tree), [".txt"], "notes", tmp_path / "out", shard_bytes=1 << 20)
    texts, refused = read(tmp_path / "out")
    assert refused == [(0, "invalid_utf8")]
    assert len(texts) + len(refused) == len(text_tree.names(str(tree), [".txt"]))


def test_no_match_is_an_error(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no files ending in \.rst"):
        text_tree.convert(str(tree), [".rst"], "notes", tmp_path / "out", shard_bytes=1)


def test_a_tree_on_s3(s3_root: str, tmp_path: Path) -> None:
    storage.put(storage.join(s3_root, "tree/a.txt"), b"eins")
    text_tree.convert(storage.join(s3_root, "tree"), [".txt"], "notes", tmp_path / "out", shard_bytes=1)
    assert read(tmp_path / "out") == ({"a.txt": "eins"}, [])
