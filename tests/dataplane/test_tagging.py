"""`ingest` fixes bytes, `tag` accounts for every record: rows align, quarantined ones included, and a changed shard is refused."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataplane import documents, ingestion, spark, spark_worker, tagging
from dataplane.recipe import BuildRecipe
from dataplane.taggers.table import TAGGERS
from triplane import artifact, hashing, storage
from triplane.errors import Refused, UsageError
from triplane.progress import Progress
from triplane.tokenizer import Tokenizer

Make = Callable[..., BuildRecipe]


def tagged(start: Any, root: str, build: BuildRecipe, tokenizer_json: Path) -> dict[str, artifact.Manifest]:
    ingested = ingestion.ingest(start, root, build, Progress())
    sha256 = Tokenizer.load(tokenizer_json).sha256
    return tagging.tag(start, root, build, ingested, (str(tokenizer_json), sha256), Progress())


def read(root: str, manifest: artifact.Manifest, number: int) -> pa.Table:
    name = manifest.records[number].files[0].name
    return pq.read_table(storage.local_path(storage.join(artifact.artifact_url(root, manifest.reference), name)))


def test_every_record_has_a_row_and_quarantined_ones_a_reason(
    in_process: Any, make_recipe: Make, sources: Path, tokenizer_json: Path, tmp_path: Path
) -> None:
    root = str(tmp_path / "root")
    notes = tagged(in_process, root, make_recipe(), tokenizer_json)["notes"]
    first = read(root, notes, 0)
    assert first.column("row").to_pylist() == list(range(22))
    reasons = {row["row"]: row["quarantine"] for row in first.to_pylist() if row["quarantine"]}
    assert reasons == {3: "malformed_json", 20: "missing_text", 21: "blank_line"}
    assert first.column("words").is_null().to_pylist() == [row in reasons for row in range(22)]
    assert first.column("id").to_pylist()[:5] == ["n0", "n1", "n2", None, "n4"]
    assert first.column("key")[4].as_py() == hashing.document_key("notes", "part-00000.jsonl", 4) % 2**64
    counts = notes.records[0].counts
    assert (counts["records"], counts["documents"]) == (22, 19)
    assert counts["quarantined"] == {"blank_line": 1, "malformed_json": 1, "missing_text": 1}
    assert counts["sha256"] == hashing.sha256_file(sources / "notes" / "part-00000.jsonl")
    assert counts["bytes"] == sum(first.column("text_bytes").drop_null().to_pylist())


def test_token_counts_are_the_tokenizers(
    in_process: Any, make_recipe: Make, sources: Path, tokenizer_json: Path, tmp_path: Path
) -> None:
    root = str(tmp_path / "root")
    prose = tagged(in_process, root, make_recipe(), tokenizer_json)["prose"]
    (batch,) = documents.read(documents.shards(str(sources / "prose"))[1])
    _, offsets = Tokenizer.load(tokenizer_json).encode(batch.text)
    assert read(root, prose, 1).column("token_count").to_pylist() == np.diff(offsets).tolist()
    assert prose.metadata["ingested"].startswith("documents/prose@") and prose.metadata["records"] == 120


def test_batches_of_any_size_give_the_same_file(sources: Path, tmp_path: Path) -> None:
    taggers = [(TAGGERS[name], TAGGERS[name].params()) for name in ("lengths", "text_hash")]
    schema = tagging.attributes_schema(taggers)
    (shard, _) = documents.shards(str(sources / "notes"))

    def write(path: Path, batch_bytes: int) -> bytes:
        tables = [
            tagging.batch_table(batch, taggers, schema, "notes", shard.name)
            for batch in documents.read(shard, batch_bytes)
        ]
        with spark_worker.parquet_writer(path, schema) as writer:
            for table in tagging.row_groups(iter(tables)):
                writer.write_table(table, row_group_size=spark_worker.ROW_GROUP_ROWS)
        return path.read_bytes()

    assert write(tmp_path / "small", 200) == write(tmp_path / "large", 1 << 20)


def test_row_groups_are_whole_whatever_came_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spark_worker, "ROW_GROUP_ROWS", 4)
    pieces = [
        pa.table({"row": pa.array(range(start, end), pa.int64())}) for start, end in ((0, 3), (3, 3), (3, 10), (10, 11))
    ]
    groups = list(tagging.row_groups(iter(pieces)))
    assert [table.num_rows for table in groups] == [8, 3]
    assert pa.concat_tables(groups).column("row").to_pylist() == list(range(11))
    assert list(tagging.row_groups(iter([pieces[1]]))) == []


def test_a_shard_that_changed_after_it_was_ingested_is_refused(
    in_process: Any, make_recipe: Make, sources: Path, tokenizer_json: Path, tmp_path: Path
) -> None:
    root, shard = str(tmp_path / "root"), sources / "prose" / "part-00001.jsonl"
    ingestion.ingest(in_process, root, make_recipe(), Progress())
    shard.write_bytes(shard.read_bytes().replace(b"p41", b"p00"))  # the same size
    with pytest.raises(
        Refused, match=r"part-00001.jsonl changed after it was ingested: restore it, or build from a new location"
    ):
        tagged(in_process, root, make_recipe(), tokenizer_json)
    assert artifact.references(root, "attributes") == []


def test_a_tagger_of_metadata_refuses_documents_without(
    in_process: Any, make_recipe: Make, sources: Path, tokenizer_json: Path, tmp_path: Path
) -> None:
    """Else every document would have no stars, and be dropped for it."""
    pq.write_table(pa.table({"id": ["a"], "text": ["x = 1"]}), sources / "notes" / "part-00002.parquet")
    rated = "sources.1.taggers=[ngram_repetition, text_hash, lengths, {name: code_rules, params: {words: whitespace}}]"
    with pytest.raises(
        UsageError, match=r"part-00002.parquet is Parquet, read without metadata: leave out tagger code_rules"
    ):
        tagged(in_process, str(tmp_path / "root"), make_recipe(rated), tokenizer_json)
    tagged(in_process, str(tmp_path / "root"), make_recipe(), tokenizer_json)


def test_a_shard_that_vanished_is_refused(in_process: Any, make_recipe: Make, sources: Path, tmp_path: Path) -> None:
    (task, *_) = ingestion.ingest(in_process, str(tmp_path / "root"), make_recipe(), Progress())["prose"].tasks()
    (sources / "prose" / "part-00000.jsonl").unlink()
    with pytest.raises(Refused, match=r"part-00000.jsonl vanished after it was listed"), ingestion.fetched(task):
        pass


def test_the_same_bytes_elsewhere_are_the_same_documents(
    in_process: Any, make_recipe: Make, sources: Path, tokenizer_json: Path, tmp_path: Path
) -> None:
    root = str(tmp_path / "root")
    before = tagged(in_process, root, make_recipe(), tokenizer_json)
    (sources / "notes").rename(sources / "moved")
    after = tagged(in_process, root, make_recipe(f"sources.1.documents={sources}/moved"), tokenizer_json)
    assert after["notes"].reference == before["notes"].reference
    assert len(artifact.references(root, "documents", "notes")) == 2


def test_a_task_that_runs_twice_at_once_is_recorded_once(
    in_process: Any, make_recipe: Make, tokenizer_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Spark's speculation and retries do. Both attempts end well and write the same bytes, so that nothing is left over."""
    once = tagged(in_process, str(tmp_path / "once"), make_recipe(), tokenizer_json)
    attempts: list[dict[str, Any]] = []

    def map_twice(_: Any, function: Any, tasks: Any, weights: Any, bar: Any = None) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(2) as pool:
            for task in tasks:
                attempts.extend(pool.map(function, [task, task]))
        return attempts

    monkeypatch.setattr(spark, "map_shards", map_twice)
    twice = tagged(in_process, str(tmp_path / "twice"), make_recipe(), tokenizer_json)
    assert len(attempts) == 2 * (5 + 5)  # ingested and tagged
    assert twice == once
    for name, manifest in twice.items():
        url = artifact.artifact_url(str(tmp_path / "twice"), manifest.reference)
        assert storage.list_names(url) == storage.list_names(url.replace("/twice/", "/once/"))
        assert (
            sum(len(read(str(tmp_path / "twice"), manifest, n)) for n in range(len(manifest.records)))
            == {
                "prose": 120,
                "notes": 43,
            }[name]
        )


def test_a_late_attempt_with_other_bytes_changes_nothing(
    in_process: Any, make_recipe: Make, tokenizer_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine may compress otherwise: what was recorded first stands, and the other object is nobody's."""
    root, lates = str(tmp_path / "root"), []
    once = tagged(in_process, str(tmp_path / "once"), make_recipe(), tokenizer_json)

    def map_late(_: Any, function: Any, tasks: Any, weights: Any, bar: Any = None) -> list[dict[str, Any]]:
        results = [function(task) for task in tasks]
        with monkeypatch.context() as other:
            other.setattr(spark_worker, "parquet_writer", lambda path, schema: pq.ParquetWriter(path, schema))
            lates.extend(function(task) for task in tasks)
        return results

    monkeypatch.setattr(spark, "map_shards", map_late)
    assert tagged(in_process, root, make_recipe(), tokenizer_json) == once
    urls = [artifact.artifact_url(root, manifest.reference) for manifest in once.values()]
    stored = [name for url in urls for name in storage.list_names(url) if name.endswith(".parquet")]
    assert len(lates) == 10 and len(stored) == 2 * 5  # of 5 shards, each twice
    assert [artifact.verify(url) for url in urls] == [[], []]
    assert len(artifact.collect_garbage(root, False, -60.0)) == 5
    assert [artifact.verify(url) for url in urls] == [[], []]


def test_a_reader_that_loses_a_row_is_refused(
    in_process: Any, make_recipe: Make, tokenizer_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lossy(shard: documents.DocumentShard, **options: bool) -> Any:
        for batch in real(shard):
            keep = pa.array([row != 7 for row in batch.rows])
            yield documents.make_batch(
                batch.rows[batch.rows != 7], batch.id.filter(keep).to_pylist(), batch.text.filter(keep).to_pylist()
            )

    real = documents.read
    monkeypatch.setattr(documents, "read", lossy)
    with pytest.raises(
        Refused, match=r"document shard part-00000.jsonl: records 0 to 39 were not read once each, in order"
    ):
        tagged(in_process, str(tmp_path / "root"), make_recipe(), tokenizer_json)


def test_a_model_is_named_by_its_content_and_read_from_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file elsewhere gives the same attributes, and a worker elsewhere finds it; a Hub id and its revision stay as they are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hq.bin").write_bytes(b"a model")
    one_file = {"model": "hq.bin", "sha256": "a" * 64, "label": "hq"}
    taggers = {"edited": {"taggers": [{"name": "fasttext_quality", "params": one_file}]}, "fasttext_math": one_file}
    named, located = (tagging._each(taggers, change) for change in (tagging._by_content, tagging._located))
    assert named["fasttext_math"] == {"sha256": "a" * 64, "label": "hq"}
    assert named["edited"]["taggers"][0]["params"] == named["fasttext_math"]
    assert located["fasttext_math"]["model"] == str(tmp_path / "hq.bin")
    assert located["edited"]["taggers"][0]["params"]["model"] == str(tmp_path / "hq.bin")
    on_the_hub = {"model": "HuggingFaceFW/fineweb-edu-classifier", "sha256": "b" * 64, "revision": "main"}
    assert tagging._by_content(on_the_hub) == on_the_hub == tagging._located(on_the_hub)
