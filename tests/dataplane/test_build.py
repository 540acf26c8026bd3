"""A build from end to end in real Spark: same bytes wherever and however it runs, finished after an interruption, every document accounted for."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from dataplane import build, funnel, ingestion, selection, spark, tagging, tokenization
from dataplane.ingest import text_tree
from dataplane.recipe import BuildRecipe
from triplane import artifact, hashing, mixture, storage, tokens
from triplane.errors import NotFound, Refused, UsageError
from triplane.progress import Progress
from triplane.recipe import parse
from triplane.tokenizer import Tokenizer

Make = Callable[..., BuildRecipe]


def contents(root: str) -> dict[str, bytes]:
    """Every object below a root."""
    return {name: storage.read(storage.join(root, name)) for name in storage.list_names(root)}


def test_same_bytes_on_s3_with_other_tasks(
    session: Any, standing: Any, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(str(standing.root))
    kinds = {"attributes", "documents", "heldout", "mix", "selection", "tokenizer", "tokens"}
    assert {name.split("/")[0] for name in expected} == kinds
    monkeypatch.setattr(spark, "parallelism", lambda _: 1)
    session.conf.set("spark.sql.shuffle.partitions", "1")
    try:
        assert build.run(standing.make(), s3_root, Progress()) == standing.result
    finally:
        session.conf.unset("spark.sql.shuffle.partitions")
    assert contents(s3_root) == expected


def test_a_tree_of_text_files_is_built_beside_documents(
    session: Any, over_tree: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_tree, "SHARD_FILES", 4)
    root, one_task = str(tmp_path / "root"), str(tmp_path / "one-task")
    result = build.run(over_tree(), root, Progress())
    prose = {(row.fate, row.reason): row.documents for row in result.funnel if row.source == "prose"}
    assert prose["in", ""] == 10 and prose["quarantined", "invalid_utf8"] == 1
    assert prose["kept", ""] + prose.get(("dropped", "held_out"), 0) == 9 and funnel.gaps(result.funnel) == []
    origins = {
        entry.id: (entry.src, entry.loc)
        for shard in tokens.shards(root, artifact.load(root, result.tokens["prose"]))
        for entry in tokens.provenance(shard)
    }
    names = [f"{n % 3}/{n}.txt" for n in (0, 3, 6, 1, 4, 7, 2, 5, 8)]
    assert len(origins) == prose["kept", ""]
    for name, origin in origins.items():
        where = names.index(name)
        assert origin == (f"part-{where // 4:05d}.jsonl.zst", where % 4 + 1)
    monkeypatch.setattr(spark, "parallelism", lambda _: 1)
    ingestion.ingest(
        lambda: session, one_task, over_tree(), Progress()
    )  # all that follows depends on these bytes alone
    assert contents(one_task) == {name: data for name, data in contents(root).items() if name.startswith("documents/")}


def test_a_build_that_stands_starts_no_spark_and_changes_nothing(
    standing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("Spark was asked for")

    root = shutil.copytree(standing.root, tmp_path / "root")
    monkeypatch.setattr(spark, "session", refuse)
    assert build.run(standing.make(), str(root), Progress()) == standing.result
    assert contents(str(root)) == contents(str(standing.root))
    more = build.run(standing.make("mixes.0.tokens=800"), str(root), Progress())  # another mix is arithmetic
    assert more.tokens == standing.result.tokens and more.mixes != standing.result.mixes
    with pytest.raises(AssertionError, match="Spark was asked for"):
        build.run(standing.make("seed=12"), str(root), Progress())


def test_a_build_interrupted_in_every_stage_leaves_nothing_readable_and_ends_with_the_same_bytes(
    standing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other task of a stage is lost before it starts, as with a driver that dies half-way; the next run gets one stage further."""
    whole, interrupted = spark.map_shards, []

    def half(session: Any, function: Any, tasks: Any, weights: Any, bar: Any = None) -> Any:
        if bar is None or bar.name != stage:
            return whole(session, function, tasks, weights, bar)
        whole(session, function, tasks[::2], weights[::2], bar)
        interrupted.append(stage)
        raise KeyboardInterrupt

    for stage in STAGES:
        with monkeypatch.context() as patch:
            patch.setattr(spark, "map_shards", half)
            with pytest.raises(KeyboardInterrupt):
                build.run(standing.make(), str(tmp_path), Progress())
        assert [kind for kind in COMMITTED_AFTER if artifact.references(str(tmp_path), kind)] == [
            kind for kind, after in COMMITTED_AFTER.items() if STAGES.index(stage) > STAGES.index(after)
        ]
    assert interrupted == STAGES
    build.run(standing.make(), str(tmp_path), Progress())
    assert contents(str(tmp_path)) == contents(str(standing.root))


STAGES = ["ingest", "tag", "select", "tokenize", "shuffle"]
COMMITTED_AFTER = {
    "documents": "ingest",
    "attributes": "tag",
    "selection": "select",
    "heldout": "tokenize",
    "tokens": "shuffle",
    "mix": "shuffle",
}


def test_changing_a_threshold_reads_text_only_where_decisions_change(
    standing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, ran = str(shutil.copytree(standing.root, tmp_path / "root")), []
    whole = ingestion.run_missing

    def watched(start: Any, drafts: Any, function: Any, tasks: Any, title: str, progress: Any) -> None:
        ran.extend((title, task["source"]) for task in tasks)
        whole(start, drafts, function, tasks, title, progress)

    monkeypatch.setattr(ingestion, "run_missing", watched)
    first, second = standing.result, build.run(standing.make("sources.1.rules.1.value=12"), root, Progress())
    assert set(ran) == {("tokenize", "notes"), ("shuffle", "notes")}
    assert second.attributes == first.attributes and second.tokens["prose"] == first.tokens["prose"]
    assert second.tokens["notes"] != first.tokens["notes"] and second.selection != first.selection


def test_the_funnel_of_the_build_is_what_a_plain_count_gives(standing: Any) -> None:
    root, result = str(standing.root), standing.result
    assert funnel.gaps(result.funnel) == []
    notes = {(row.fate, row.reason): row.documents for row in result.funnel if row.source == "notes"}
    assert (
        notes["in", ""]
        == sum(len(path.read_text().splitlines()) for path in (standing.sources / "notes").iterdir())
        == 43
    )
    assert sum(count for (fate, _), count in notes.items() if fate == "quarantined") == 3
    assert notes["dropped", "ngram_repeat"] == notes["dropped", "empty"] == 1
    kept_text_tokens = 0
    for shard in tokens.shards(root, artifact.load(root, result.tokens["notes"])):
        kept_text_tokens += sum(entry.end - entry.start - 1 for entry in tokens.provenance(shard))
    assert next(row.tokens for row in result.funnel if (row.source, row.fate) == ("notes", "kept")) == kept_text_tokens
    texts = [
        json.loads(line)["text"]
        for path in (standing.sources / "prose").iterdir()
        for line in path.read_text().splitlines()
    ]
    came_in = next(row for row in result.funnel if (row.source, row.fate) == ("prose", "in"))
    assert (came_in.documents, came_in.bytes) == (120, sum(len(text.encode()) for text in texts))
    assert came_in.tokens == len(Tokenizer.load(standing.make().tokenizer).encode(texts)[0])
    assert build.newest_funnel(root, None).rows == result.funnel
    assert build.newest_funnel(root, "tiny").selection == result.selection


def test_mixes_take_what_was_planned(standing: Any) -> None:
    lock = mixture.load(artifact.artifact_url(str(standing.root), standing.result.mixes["tiny-mix"]))
    assert standing.result.mix_tokens == {"tiny-mix": {"notes": 400, "prose": 1200}} and lock.num_tokens == 1600
    assert {storage.exists(storage.join(str(standing.root), shard.tokens)) for shard in lock.shards} == {True}


GOLDEN = {
    ("tag", 1): "265a0fd355a1e348",
    ("select", 2): "8581dc29e9928c02",
    ("tokenize", 1): "9de30e926549261b",
}


def test_outputs_change_only_with_a_stage_version(standing: Any) -> None:
    """Golden digests, of values and not of files, so that a new pyarrow changes none. When one changes on purpose, raise the stage's VERSION."""
    root, result = str(standing.root), standing.result
    columns = ["row", "id", "key", "text_bytes", "quarantine", "words", "text_hash_high", "text_hash_low"]
    attributes = [
        table.select(columns).to_pydict() for name in result.attributes.values() for table in parquets(root, name)
    ]
    decisions = [table.select(["row", "decision", "reason"]).to_pydict() for table in parquets(root, result.selection)]
    order = [
        (entry.id, entry.src, entry.loc)
        for name in result.tokens.values()
        for shard in tokens.shards(root, artifact.load(root, name))
        for entry in tokens.provenance(shard)
    ]
    made = [(tagging.VERSION, attributes), (selection.VERSION, decisions), (tokenization.VERSION, order)]
    found = {
        (stage, version): hashing.identity(value)[:16]
        for stage, (version, value) in zip(("tag", "select", "tokenize"), made, strict=True)
    }
    assert found == GOLDEN


def parquets(root: str, reference: str) -> list[pa.Table]:
    folder = artifact.artifact_url(root, reference)
    return [
        pq.read_table(storage.local_path(storage.join(folder, file.name)))
        for file in artifact.load(root, reference).files
    ]


DEFECTS = """
name: defects
seed: 1
tokenizer: {tokenizer}
sequence_length_tokens: 64
shard_tokens: 1B
held_out_fraction: 0.0
sources:
  - name: defects
    documents: {corpus}/defects/*.jsonl.zst
    format: dolma
    licence: mixed
    taggers: [lengths, gopher_quality, text_hash, ngram_repetition]
    rules: [ngram_repetition]
    exact_dedup: true
mixes: []
"""


def test_the_planted_defects_are_all_accounted_for(session: Any, shared: Path, tmp_path: Path) -> None:
    tokenizer = shared / "data" / "tokenizer" / "allenai_dolma2.json"
    made = parse(DEFECTS.format(tokenizer=tokenizer, corpus=shared / "data" / "corpus"), BuildRecipe, "defects.yaml")
    result = build.run(made, str(tmp_path), Progress())
    counts = Counter({(row.fate, row.reason): row.documents for row in result.funnel})
    assert counts["quarantined", "lone_surrogate"] >= 6 and counts["quarantined", "truncated_stream"] == 1
    assert sum(counts.values()) == 2 * counts["in", ""]
    manifest = artifact.load(str(tmp_path), result.tokens["defects"])
    kept = {entry.id for shard in tokens.shards(str(tmp_path), manifest) for entry in tokens.provenance(shard)}
    planted = planted_defects(shared / "data" / "corpus" / "defects" / "part-00000.jsonl.zst")
    repeats = {name for name, (defect, _) in planted.items() if defect == "ngram_repeat"}
    assert len(repeats) == 39 and not repeats & kept and counts["dropped", "ngram_repeat"] >= 39
    assert {name for name, (defect, _) in planted.items() if defect == "ngram_repeat_below_32"} <= kept
    copies: dict[str, list[str]] = {}
    for name, (_, text) in planted.items():
        copies.setdefault(text, []).append(name)
    groups = [names for names in copies.values() if len(names) > 1 and not repeats & {*names}]
    assert len(groups) == 25
    assert [[name in kept for name in names] for names in groups] == [
        [True] + [False] * (len(names) - 1) for names in groups
    ]


def planted_defects(path: Path) -> dict[str, tuple[str, str]]:
    """Document id -> (defect, text), in the order of the file."""
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream:
        records = [json.loads(line) for line in stream.read().splitlines()]
    return {record["id"]: (record["metadata"]["defect"], record["text"]) for record in records}


def test_what_cannot_work_is_refused_before_anything_is_written(make_recipe: Make, tmp_path: Path) -> None:
    root = tmp_path / "root"
    with pytest.raises(UsageError, match="no tokenizer at "):
        build.run(make_recipe("tokenizer=/absent/tokenizer.json"), str(root), Progress())
    with pytest.raises(UsageError, match="holds no document files"):
        build.run(make_recipe("sources.0.documents=/absent"), str(root), Progress())
    with pytest.raises(UsageError, match=r"shares sum to 0\.75"):
        build.run(make_recipe("mixes.0.shares={prose: 0.75}"), str(root), Progress())
    assert not root.exists()


def test_plan_estimates_without_starting_anything(make_recipe: Make, sources: Path, tmp_path: Path) -> None:
    plan = build.plan(make_recipe(), str(tmp_path / "root"))
    assert plan["sources"]["prose"]["shards"] == 3
    assert plan["sources"]["prose"]["stored_bytes"] == sum(
        path.stat().st_size for path in (sources / "prose").iterdir()
    )
    assert plan["recipe"]["seed"] == 11 and not (tmp_path / "root").exists()


def test_a_wrong_model_is_refused_before_anything_starts(make_recipe: Make, tmp_path: Path) -> None:
    model, root = tmp_path / "model.bin", str(tmp_path / "root")
    model.write_bytes(b"a model")

    def with_model(path: Path, sha256: str) -> BuildRecipe:
        quality = f"{{name: fasttext_quality, params: {{model: {path}, sha256: {sha256}, label: hq}}, where: []}}"
        return make_recipe(f"sources.1.taggers=[lengths, text_hash, ngram_repetition, {quality}]")

    build.plan(with_model(model, hashing.sha256_file(model)), root)
    for run in (build.plan, lambda one, where: build.run(one, where, Progress())):
        with pytest.raises(Refused, match=r"model.bin has sha256 \w+, the recipe says aaaa"):
            run(with_model(model, "a" * 64), root)
        with pytest.raises(NotFound, match=r"gone.bin does not exist"):
            run(with_model(tmp_path / "gone.bin", "a" * 64), root)
    index = f"{{name: contamination, params: {{index: {model}, sha256: {'a' * 64}, presets: [strict]}}}}"
    with pytest.raises(Refused, match=r"model.bin has sha256 \w+, the recipe says aaaa"):
        build.plan(make_recipe(f"sources.1.taggers=[lengths, text_hash, ngram_repetition, {index}]"), root)
    assert not Path(root).exists()


def test_a_funnel_that_was_tampered_with_is_refused(standing: Any, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="holds no build: run `triplane data build RECIPE"):
        build.newest_funnel(str(tmp_path), None)
    root = shutil.copytree(standing.root, tmp_path / "root")
    path = root / standing.result.selection / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["metadata"]["funnel"][0]["documents"] += 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(Refused, match="the funnel does not add up"):
        build.newest_funnel(str(root), None)


def test_versions_name_the_stages_whose_bytes_they_stand_for(standing: Any) -> None:
    root, result = str(standing.root), standing.result
    versions = {"lengths": 1, "ngram_repetition": 1, "tag": tagging.VERSION, "text_hash": 1}
    assert artifact.load(root, result.attributes["prose"]).stage_versions == versions
    assert artifact.load(root, result.selection).stage_versions == {"select": selection.VERSION}
    assert artifact.load(root, result.tokens["prose"]).stage_versions == {"tokenize": tokenization.VERSION}
