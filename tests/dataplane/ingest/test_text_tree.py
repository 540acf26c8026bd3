"""A folder of text files becomes document shards that the reader reads: a file a record, the same bytes each time."""

from pathlib import Path

import pytest

from dataplane import documents
from dataplane.ingest import text_tree
from triplane import storage
from triplane.errors import Refused, UsageError

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


def converted(tree: str, suffixes: list[str], folder: Path) -> list[Path]:
    """The shards of a tree, as a build makes them."""
    folder.mkdir()
    paths = []
    for number, files in enumerate(text_tree.groups(text_tree.listing(tree, suffixes))):
        paths.append(folder / f"part-{number:05d}.jsonl.zst")
        text_tree.write_shard(paths[-1], tree, [(entry.name, entry.bytes) for entry in files], "notes")
    return paths


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
    [_] = converted(str(tree), [".txt", ".md"], tmp_path / "out")
    assert read(tmp_path / "out") == ({name: text for name, text in FILES.items() if name != "code.py"}, [])


def test_all_files_without_suffixes(tree: Path, tmp_path: Path) -> None:
    converted(str(tree), [], tmp_path / "out")
    assert read(tmp_path / "out") == (FILES, [])


def test_a_character_cut_by_a_piece_is_whole(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "a/wide.txt").write_text(text := 'äöü€𝄞"\\\n' * 3)
    (tree / "a/cut.txt").write_bytes("ü".encode()[:1])
    for size in (1, 2, 3, 5):
        monkeypatch.setattr(text_tree, "READ_BYTES", size)
        converted(str(tree), [".txt"], tmp_path / str(size))
        texts, refused = read(tmp_path / str(size))
        assert texts["a/wide.txt"] == text and refused == [(0, "invalid_utf8")]


@pytest.mark.parametrize(("limit", "most", "shards"), [("BYTES", 1, 3), ("BYTES", 100, 2), ("FILES", 3, 2)])
def test_shards_are_bounded_and_equal_each_time(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, most: int, shards: int
) -> None:
    monkeypatch.setattr(text_tree, f"SHARD_{limit}", most)
    runs = [converted(str(tree), [".txt", ".md"], tmp_path / run) for run in ("first", "second")]
    assert [len(run) for run in runs] == [shards, shards]
    assert [path.read_bytes() for path in runs[0]] == [path.read_bytes() for path in runs[1]]
    assert len(read(tmp_path / "first")[0]) == 4


def test_a_file_that_is_not_utf8_is_quarantined_by_the_reader(tree: Path, tmp_path: Path) -> None:
    (tree / "a/latin.txt").write_bytes("é".encode("latin-1"))
    converted(str(tree), [".txt"], tmp_path / "out")
    texts, refused = read(tmp_path / "out")
    assert refused == [(0, "invalid_utf8")]
    assert len(texts) + len(refused) == len(text_tree.listing(str(tree), [".txt"]))


def test_a_file_that_changes_or_vanishes_after_it_was_listed_is_refused(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"a/two.md has 0 bytes, 3 when it was listed: build again"):
        text_tree.write_shard(tmp_path / "shard", str(tree), [("a/two.md", 3)], "notes")
    with pytest.raises(Refused, match=r"a/gone.md vanished after it was listed: build again"):
        text_tree.write_shard(tmp_path / "shard", str(tree), [("a/gone.md", 3)], "notes")


def test_no_match_is_an_error(tree: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no files ending in \.rst"):
        text_tree.listing(str(tree), [".rst"])


def test_a_tree_on_s3(s3_root: str, tmp_path: Path) -> None:
    storage.put(storage.join(s3_root, "tree/a.txt"), b"eins")
    converted(storage.join(s3_root, "tree"), [".txt"], tmp_path / "out")
    assert read(tmp_path / "out") == ({"a.txt": "eins"}, [])
