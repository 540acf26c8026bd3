"""`ingest` of a tree of text files: one record a file, shards inside the artifact, again when a file changes and only then."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataplane import build, documents, ingestion, recipe
from dataplane.ingest import text_tree
from dataplane.recipe import BuildRecipe
from triplane import artifact, storage
from triplane.errors import Refused, UsageError
from triplane.progress import Progress

Make = Callable[..., BuildRecipe]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_tree, "SHARD_FILES", 4)


def test_files_in_are_records_out_and_the_artifact_verifies(in_process: Any, over_tree: Make, tmp_path: Path) -> None:
    found = ingestion.ingest(in_process, str(tmp_path / "root"), over_tree(), Progress())["prose"]
    assert artifact.verify(found.url) == []
    assert [record.counts["records"] for record in found.manifest.records] == [4, 4, 2]
    assert found.manifest.metadata["files"] == 10
    read = []
    for task in found.tasks():
        with ingestion.fetched(task) as shard:
            read.append(sum(batch.num_records for batch in documents.read(shard)))
    assert read == [4, 4, 2]


def test_what_is_converted_already_is_not_converted_again(
    in_process: Any, over_tree: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, written = text_tree.write_shard, []

    def watched(path: Path, *arguments: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        whole(path, *arguments)

    monkeypatch.setattr(text_tree, "write_shard", watched)
    with pytest.raises(KeyboardInterrupt):
        ingestion.ingest(in_process, str(tmp_path / "root"), over_tree(), Progress())
    assert artifact.references(str(tmp_path / "root"), "documents") == []
    monkeypatch.setattr(text_tree, "write_shard", lambda path, *rest: (written.append(path.name), whole(path, *rest)))
    again = ingestion.ingest(in_process, str(tmp_path / "root"), over_tree(), Progress())["prose"]
    assert written == [f"part-0000{number}.jsonl.zst" for number in range(3)]
    monkeypatch.setattr(text_tree, "write_shard", whole)
    undisturbed = ingestion.ingest(in_process, str(tmp_path / "whole"), over_tree(), Progress())["prose"]
    assert again.manifest == undisturbed.manifest


def test_a_file_of_the_same_size_that_changed_is_seen(
    in_process: Any, over_tree: Make, tree: Path, tmp_path: Path
) -> None:
    def ingest() -> ingestion.Documents:
        return ingestion.ingest(in_process, str(tmp_path / "root"), over_tree(), Progress())["prose"]

    path = tree / "1" / "4.txt"
    first, text = ingest(), path.read_text()
    path.write_text(text.replace("old", "new"))
    changed = ingest()
    assert changed.manifest.version != first.manifest.version and changed.identity != first.identity
    path.write_text(text)
    os.utime(path, (1, 1))
    assert ingest().identity == first.identity  # touched, not changed: what is made of it stands


def test_a_shard_that_was_spoiled_in_the_artifact_is_refused(in_process: Any, over_tree: Make, tmp_path: Path) -> None:
    (task, *_) = ingestion.ingest(in_process, str(tmp_path / "root"), over_tree(), Progress())["prose"].tasks()
    path = storage.local_path(task["url"])
    path.write_bytes(path.read_bytes()[:-1])
    with (
        pytest.raises(Refused, match=r"part-00000-\w+.jsonl.zst changed after it was ingested"),
        ingestion.fetched(task),
    ):
        pass


def test_local_names_need_not_be_unicode(in_process: Any, over_tree: Make, tree: Path, tmp_path: Path) -> None:
    (tree / os.fsdecode(b"caf\xe9.txt")).write_text("its id is not UTF-8")
    found = ingestion.ingest(in_process, str(tmp_path / "root"), over_tree(), Progress())["prose"]
    reasons = []
    for task in found.tasks():
        with ingestion.fetched(task) as shard:
            reasons += [record.reason for batch in documents.read(shard) for record in batch.quarantined]
    assert reasons == ["invalid_utf8", "invalid_utf8"]


def test_suffixes_are_for_trees(make_recipe: Make) -> None:
    with pytest.raises(UsageError, match=r"source prose: suffixes are for a text_tree: leave them out"):
        recipe.checked(make_recipe("sources.0.suffixes=[.txt]"))


def test_a_plan_counts_the_files(over_tree: Make, tree: Path, tmp_path: Path) -> None:
    stored = sum(path.stat().st_size for path in tree.rglob("*") if path.suffix in (".txt", ".md"))
    assert build.plan(over_tree(), str(tmp_path / "root"))["sources"]["prose"] == {
        "files": 10,
        "shards": 3,
        "stored_bytes": stored,
        "estimated_tokens": round(stored / 4.2),
    }
    with pytest.raises(UsageError, match=r"holds no files ending in \.rst"):
        build.plan(over_tree("sources.0.suffixes=[.rst]"), str(tmp_path / "root"))
