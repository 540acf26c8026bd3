"""Later passes of `tag`: only what their rules let through is read, what was tagged before stays, and decisions are those of one pass."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataplane import documents, ingestion, later_pass, recipe, selection, spark_worker, tagging
from dataplane.attributes import attributes_schema, batch_table, lanes
from dataplane.recipe import BuildRecipe
from dataplane.taggers.table import TAGGERS
from triplane import artifact, storage
from triplane.errors import Corrupt, Refused, UsageError
from triplane.progress import Progress
from triplane.tokenizer import Tokenizer

Make = Callable[..., BuildRecipe]
FIRST = "lengths, ngram_repetition, text_hash"
MINHASH = "{name: minhash, params: {bands: 4, rows: 2, shingle_words: 3, seed: 1}%s}"
RULES = 'sources.1.rules=[ngram_repetition, {reason: too_short, column: words, op: "<", value: 11}]'
LATER = f"sources.1.taggers=[{FIRST}, {MINHASH % ', where: [ngram_repetition, too_short]'}]"


def tagged(start: Any, root: str, build: BuildRecipe, tokenizer_json: Path) -> dict[str, artifact.Manifest]:
    ingested = ingestion.ingest(start, root, build, Progress())
    sha256 = Tokenizer.load(tokenizer_json).sha256
    return tagging.tag(start, root, recipe.checked(build), ingested, (str(tokenizer_json), sha256), Progress())


def read(root: str, manifest: artifact.Manifest) -> pa.Table:
    url = artifact.artifact_url(root, manifest.reference)
    names = [record.files[0].name for record in manifest.records]
    return pa.concat_tables(pq.read_table(storage.local_path(storage.join(url, name))) for name in names)


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The taggers of every shard that is tagged, as it happens."""
    seen: list[tuple[str, ...]] = []
    real = tagging._tag_shard

    def note(params: Any, task: Any) -> Any:
        seen.append(tuple(name for name, _ in params[task["source"]].taggers))
        return real(params, task)

    monkeypatch.setattr(tagging, "_tag_shard", note)
    return seen


def test_a_later_pass_tags_what_passes_and_nothing_of_before_again(
    in_process: Any, make_recipe: Make, tokenizer_json: Path, tmp_path: Path, tasks: list[tuple[str, ...]]
) -> None:
    root = str(tmp_path / "root")
    first = f"sources.1.taggers=[{FIRST}]"
    before = tagged(in_process, root, make_recipe(first, RULES), tokenizer_json)
    assert len(tasks) == 5
    tasks.clear()
    after = tagged(in_process, root, make_recipe(LATER, RULES), tokenizer_json)
    assert tasks == [("minhash",), ("minhash",)]  # the two shards of notes, and nothing of the first pass
    assert after["prose"].reference == before["prose"].reference != after["notes"].reference
    assert after["notes"].parents == (before["notes"].reference,)
    tasks.clear()
    changed = tagged(in_process, root, make_recipe(LATER.replace("seed: 1", "seed: 2"), RULES), tokenizer_json)
    assert tasks == [("minhash",)] * 2 and changed["notes"].reference != after["notes"].reference

    rows = read(root, after["notes"])
    assert rows.select(read(root, before["notes"]).column_names).equals(read(root, before["notes"]))
    one_pass = make_recipe(f"sources.1.taggers=[{FIRST}, {MINHASH % ''}]")
    everything = read(root, tagged(in_process, root, one_pass, tokenizer_json)["notes"])
    passed = [
        row["quarantine"] is None and row["words"] >= 11 and row["ngram_repeat_times"] < 32 for row in rows.to_pylist()
    ]
    assert 0 < sum(passed) < sum(rows.column("quarantine").is_null().to_pylist())
    for name in ("minhash_bands", "minhash_shingles"):
        assert rows.column(name).to_pylist() == [
            value if yes else None for value, yes in zip(everything.column(name).to_pylist(), passed, strict=True)
        ]
    assert after["notes"].metadata == before["notes"].metadata


def test_only_the_texts_that_pass_reach_the_tagger(
    in_process: Any, make_recipe: Make, tokenizer_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    real = TAGGERS["minhash"]

    def spy(batch: documents.Batch, params: Any) -> pa.RecordBatch:
        texts.extend(batch.text.to_pylist())
        return real.tag(batch, params)

    monkeypatch.setitem(TAGGERS, "minhash", dataclasses.replace(real, tag=spy))
    tagged(in_process, str(tmp_path / "root"), make_recipe(LATER, RULES), tokenizer_json)
    assert texts and all(len(text.split()) >= 11 for text in texts) and "again " * 400 not in texts


def test_decisions_are_those_of_one_pass(
    session: Any, in_process: Any, make_recipe: Make, tokenizer_json: Path, tmp_path: Path
) -> None:
    """Rules, a share over a later pass's column, equal texts: nobody is judged, or kept, by a null."""
    share = RULES.replace("]", ", {reason: low, column: minhash_shingles, keep_top: 0.7, weight: documents}]")
    where = ", where: [ngram_repetition, too_short]"
    hashes = f"{{name: text_hash, params: {{}}{where}}}"
    decided, root = [], str(tmp_path / "root")
    for taggers in (f"{FIRST}, {MINHASH % ''}", f"lengths, ngram_repetition, {hashes}, {MINHASH % where}"):
        made = make_recipe(f"sources.1.taggers=[{taggers}]", share, "held_out_fraction=0.0")
        attributes = tagged(in_process, root, made, tokenizer_json)
        selected = selection.select(lambda: session, root, made, attributes, Progress())
        decided.append((read(root, selected.manifest), selected.rows))
    assert decided[0] == decided[1]
    reasons = set(decided[0][0].column("reason").to_pylist())
    assert {"too_short", "low", "ngram_repeat", "malformed_json", "exact_duplicate"} <= reasons
    rows = read(root, attributes["notes"])
    kept = pa.array([one == "keep" for one in decided[1][0].column("decision").to_pylist()[:43]])
    for name in ("minhash_bands", "text_hash_high"):
        column = rows.column(name).combine_chunks()
        assert column.filter(kept).null_count == 0 < column.null_count and kept.true_count > 0


@pytest.mark.parametrize("damage", ["short", "long", "moved", "other"])
def test_rows_that_do_not_match_are_refused(sources: Path, damage: str) -> None:
    """Never kept by default: a table that is not of these documents ends the pass."""
    taggers = [(TAGGERS["lengths"], TAGGERS["lengths"].params())]
    schema = attributes_schema([])
    shard, other = documents.shards(str(sources / "notes"))
    tables = [batch_table(batch, [], schema, "notes", shard.name) for batch in documents.read(shard)]
    table = pa.concat_tables(tables)
    table = {
        "short": table.slice(0, 20),
        "long": pa.concat_tables([table, table.slice(0, 1)]),
        "moved": pa.concat_tables([table.slice(1, 1), table.slice(0, 1), table.slice(2)]),
        "other": pa.concat_tables(
            [batch_table(next(iter(documents.read(other))), [], schema, "notes", other.name)] * 2
        ),
    }[damage]
    message = {"short": "it ends before record 20", "long": "it has more rows than its documents"}
    with pytest.raises(Refused, match=message.get(damage, "its rows from record 0 are of other documents")):
        list(later(table, documents.read(shard), taggers, shard.name))


def later(table: pa.Table, batches: Any, taggers: Any, shard: str) -> Any:
    table = table.append_column("token_count", pa.array([1] * table.num_rows, pa.int64()))
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, table.schema) as writer:
        writer.write_table(table, row_group_size=7)
    before = pq.ParquetFile(pa.BufferReader(buffer.getvalue()))
    schema = attributes_schema(taggers, table.schema)
    return later_pass.later_tables(before, batches, taggers, schema, (), ("notes", shard))


def test_batches_of_any_size_give_the_same_rows(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spark_worker, "ROW_GROUP_ROWS", 5)
    taggers = [(TAGGERS["lengths"], TAGGERS["lengths"].params())]
    (shard, _) = documents.shards(str(sources / "notes"))
    first = pa.concat_tables(
        batch_table(b, [], attributes_schema([]), "notes", shard.name) for b in documents.read(shard)
    )
    expected = pa.concat_tables(batch_table(b, taggers, attributes_schema(taggers), "notes", shard.name) for b in documents.read(shard))  # fmt: skip
    for size in (100, 700, 1 << 20):
        found = pa.concat_tables(later(first, documents.read(shard, size), taggers, shard.name))
        assert found.drop_columns("token_count").equals(expected)


def test_an_earlier_table_that_changed_is_refused(
    in_process: Any, make_recipe: Make, tokenizer_json: Path, tmp_path: Path
) -> None:
    root = str(tmp_path / "root")
    before = tagged(in_process, root, make_recipe(f"sources.1.taggers=[{FIRST}]", RULES), tokenizer_json)["notes"]
    url = artifact.artifact_url(root, before.reference)
    path = Path(storage.local_path(storage.join(url, before.records[0].files[0].name)))
    table = pq.read_table(path)
    path.chmod(0o644)
    pq.write_table(table.slice(0, table.num_rows - 1), path)
    with pytest.raises(Corrupt, match="part-00000"):
        tagged(in_process, root, make_recipe(LATER, RULES), tokenizer_json)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([LATER.replace("too_short]", "to_short]"), RULES], "where: rule to_short is unknown: did you mean too_short"),
        (
            ['sources.1.taggers=[lengths, text_hash, {name: ngram_repetition, params: {}, where: [too_short]}]', RULES],
            "ngram_repetition counts the tokens of every document: leave its where out",
        ),
        (
            [
                f"sources.1.taggers=[ngram_repetition, text_hash, {MINHASH % ', where: [too_short]'}, "
                "{name: lengths, params: {}, where: []}]",
                RULES,
            ],
            "minhash: where: too_short reads words, not written before: declare its tagger earlier",
        ),
        (
            [LATER, RULES.replace("[ngram", "[{reason: few, column: minhash_shingles, op: '<', value: 3}, ngram")],
            "rule few reads minhash, which only sees what passes ngram_repeat: put it behind ngram_repeat",
        ),
        (
            [
                LATER.replace("too_short]", "low]"),
                "sources.1.rules=[ngram_repetition, {reason: low, column: words, keep_top: 0.5, weight: documents}]",
            ],
            "where: low is a share, known when all is tagged: name a rule with a value",
        ),
    ],
)  # fmt: skip
def test_recipes_that_would_judge_by_a_null(make_recipe: Make, changes: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe.checked(make_recipe(*changes))
    recipe.checked(make_recipe(LATER, RULES))


def test_a_large_document_has_a_batch_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("dataplane.attributes.LARGE_DOCUMENT_BYTES", 50)
    texts = ["x" * 60, "a", "b", None, "y" * 51, "z" * 70, "c" * 50, None]
    lines = ["" if text is None else f'{{"id": "{n}", "text": "{text}"}}' for n, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("".join(line + "\n" for line in lines))
    (shard,) = documents.shards(str(tmp_path))
    parts = list(lanes(documents.read(shard)))
    assert [batch.rows.tolist() for batch in parts] == [[0], [1, 2], [4], [5], [6]]
    assert [[one.row for one in batch.quarantined] for batch in parts] == [[], [3], [], [], [7]]
    whole = pa.concat_tables(batch_table(b, TAGGED, SCHEMA, "s", "a.jsonl") for b in documents.read(shard))
    assert pa.concat_tables(batch_table(b, TAGGED, SCHEMA, "s", "a.jsonl") for b in parts).equals(whole)
    assert np.array_equal(whole.column("row").to_numpy(), np.arange(8))


TAGGED = [(TAGGERS[name], TAGGERS[name].params()) for name in ("lengths", "gopher_quality", "text_hash")]
SCHEMA = attributes_schema(TAGGED)
