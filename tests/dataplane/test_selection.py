"""`select` gives each document one decision: the first reason that holds, one survivor of equal texts, held out by key."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataplane import duplicates, funnel, ingestion, judgement, recipe, selection, spark_worker, tagging
from dataplane.recipe import BuildRecipe
from dataplane.tagger import Rule
from triplane import artifact, hashing, storage
from triplane.errors import Refused, UsageError
from triplane.progress import Progress
from triplane.tokenizer import Tokenizer

Make = Callable[..., BuildRecipe]
Decisions = dict[tuple[str, int, int], tuple[str, str | None]]


@pytest.fixture
def attributes(
    in_process: Any, make_recipe: Make, tokenizer_json: Path, tmp_path: Path
) -> dict[str, artifact.Manifest]:
    ingested = ingestion.ingest(in_process, str(tmp_path), make_recipe(), Progress())
    tokenizer = (str(tokenizer_json), Tokenizer.load(tokenizer_json).sha256)
    return tagging.tag(in_process, str(tmp_path), make_recipe(), ingested, tokenizer, Progress())


def decide(
    session: Any, root: Path, build: BuildRecipe, attributes: dict[str, artifact.Manifest]
) -> tuple[selection.Selected, Decisions]:
    selected = selection.select(lambda: session, str(root), build, attributes, Progress())
    found: Decisions = {}
    for source, manifest in attributes.items():
        for index in range(len(manifest.records)):
            url = storage.join(
                artifact.artifact_url(str(root), selected.manifest.reference),
                selected.record(source, index).files[0].name,
            )
            rows = pq.read_table(storage.local_path(url)).to_pylist()
            assert [row["row"] for row in rows] == list(range(manifest.records[index].counts["records"]))
            found |= {(source, index, row["row"]): (row["decision"], row["reason"]) for row in rows}
    return selected, found


def test_one_decision_a_record_and_the_first_reason_that_holds(
    session: Any, make_recipe: Make, attributes: dict[str, artifact.Manifest], tmp_path: Path
) -> None:
    selected, found = decide(session, tmp_path, make_recipe("held_out_fraction=0.0"), attributes)
    assert len(found) == 120 + 43
    expected = {
        ("notes", 0, 3): ("quarantined", "malformed_json"),
        ("notes", 0, 20): ("quarantined", "missing_text"),
        ("notes", 0, 21): ("quarantined", "blank_line"),
        ("notes", 1, 15): ("drop", "empty"),
        ("notes", 1, 16): ("drop", "ngram_repeat"),
        ("notes", 1, 17): ("drop", "exact_duplicate"),  # of prose, which is declared first
        ("notes", 1, 18): ("drop", "exact_duplicate"),
        ("notes", 1, 19): ("drop", "too_short"),  # the rule comes before duplicates
        ("notes", 1, 20): ("drop", "too_short"),
    }
    short = {
        ("notes", n // 22, n % 22): ("drop", "too_short")
        for n in range(37)
        if n not in (3, 20, 21) and 2 + 8 + n % 5 < 11
    }
    keep = dict.fromkeys(found, ("keep", None))
    assert found == keep | short | expected
    kept = [row for row in selected.rows if row.fate == "kept"]
    assert [(row.source, row.documents) for row in kept] == [("prose", 120), ("notes", 43 - len(expected) - len(short))]


def test_equal_texts_leave_the_first_by_source_shard_and_row(
    session: Any, make_recipe: Make, attributes: dict[str, artifact.Manifest], tmp_path: Path
) -> None:
    no_rules = make_recipe("held_out_fraction=0.0", "sources.1.rules=[]")
    swapped = no_rules.model_copy(update={"sources": no_rules.sources[::-1]})
    _, found = decide(session, tmp_path, swapped, dict(reversed(attributes.items())))
    assert found["notes", 1, 19] == ("keep", None) and found["notes", 1, 20] == ("drop", "exact_duplicate")
    assert found["notes", 1, 17] == ("keep", None) and found["prose", 0, 5] == ("drop", "exact_duplicate")
    _, found = decide(
        session, tmp_path, make_recipe("held_out_fraction=0.0", "sources.0.exact_dedup=false"), attributes
    )
    assert found["notes", 1, 17] == ("keep", None) and found["prose", 0, 5] == ("keep", None)


def test_held_out_documents_are_those_with_a_draw_below_the_fraction(
    session: Any, make_recipe: Make, attributes: dict[str, artifact.Manifest], tmp_path: Path
) -> None:
    _, found = decide(session, tmp_path, make_recipe("held_out_fraction=0.3"), attributes)
    held = {where for where, decision in found.items() if decision == ("drop", "held_out")}
    assert 32 <= len(held) < 65
    keys = [hashing.document_key("prose", f"part-{n // 40:05d}.jsonl", n % 40) % 2**64 for n in range(120)]
    draws = hashing.units(11 ^ selection.HELD_OUT_SALT, np.array(keys, np.uint64))
    assert {where for where in held if where[0] == "prose"} == {
        ("prose", n // 40, n % 40) for n in range(120) if draws[n] < 0.3
    }


def test_a_value_that_is_missing_drops_the_document_unjudged(
    session: Any, make_recipe: Make, attributes: dict[str, artifact.Manifest], tmp_path: Path
) -> None:
    """As a pass over some documents only would leave it."""
    url = storage.join(
        artifact.artifact_url(str(tmp_path), attributes["notes"].reference), attributes["notes"].files[0].name
    )
    table = pq.read_table(storage.local_path(url))
    position = table.schema.get_field_index("words")
    values = [None if row == 5 else value for row, value in enumerate(table.column("words").to_pylist())]
    spark_worker.write_parquet(
        table.set_column(position, table.schema.field(position), pa.array(values, pa.int64())), storage.local_path(url)
    )
    _, found = decide(session, tmp_path, make_recipe("held_out_fraction=0.0"), attributes)
    assert found["notes", 0, 5] == ("drop", "unscored_words")


def test_decisions_that_lose_a_row_are_refused(
    in_process: Any,
    make_recipe: Make,
    attributes: dict[str, artifact.Manifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_dedup = [f"sources.{n}.exact_dedup=false" for n in (0, 1)]
    whole = selection.decided

    def without(task: dict[str, Any], table: pa.Table, shard: int, rows: int) -> pa.Table:
        return table.slice(0, rows) if task["number"] == shard else table

    def lose_one(deciding: selection.Deciding, task: dict[str, Any]) -> pa.Table:
        return without(task, whole(deciding, task), 1, 39)

    monkeypatch.setattr(selection, "decided", lose_one)
    with pytest.raises(Refused, match="selection of prose-part-00001: 40 rows were tagged, 39 were decided"):
        decide(in_process, tmp_path, make_recipe(*no_dedup), attributes)
    monkeypatch.setattr(selection, "check_rows", lambda *_: None)
    with pytest.raises(
        Refused, match=r"the funnel does not add up \(source prose: 120 documents came in, 119 are accounted for"
    ):
        decide(in_process, tmp_path, make_recipe("seed=12", *no_dedup), attributes)
    assert artifact.references(str(tmp_path), "selection") == []


MINHASH = "{name: minhash, params: {bands: 14, rows: 4, shingle_words: 2, seed: 1}}"


def test_a_share_is_kept_by_tokens_of_what_passed_the_rules_before(
    session: Any, make_recipe: Make, attributes: dict[str, artifact.Manifest], tmp_path: Path
) -> None:
    rules = '{reason: too_long, column: words, op: ">", value: 40}, {reason: low, column: words, keep_top: 0.3, weight: tokens}'
    build = make_recipe("held_out_fraction=0.0", f"sources.0.rules=[{rules}]")
    selected, found = decide(session, tmp_path, build, attributes)
    url = artifact.artifact_url(str(tmp_path), attributes["prose"].reference)
    tables = [pq.read_table(storage.local_path(storage.join(url, file.name))) for file in attributes["prose"].files]
    rows = [
        ((("prose", index, row["row"])), row["words"], row["token_count"])
        for index, table in enumerate(tables)
        for row in table.to_pylist()
    ]
    passed = [row for row in rows if row[1] <= 40]
    total = sum(tokens for _, _, tokens in passed)
    best = max(w for w in range(50) if 10 * sum(t for _, words, t in passed if words >= w) >= 3 * total)
    expected = {
        where: ("drop", "too_long") if words > 40 else ("drop", "low") if words < best else ("keep", None)
        for where, words, _ in rows
    }
    assert {where: decision for where, decision in found.items() if where[0] == "prose"} == expected
    assert set(expected.values()) == {("drop", "too_long"), ("drop", "low"), ("keep", None)}
    kept = sum(tokens for where, _, tokens in rows if expected[where][0] == "keep")
    described = {
        "source": "prose",
        "reason": "low",
        "column": "words",
        "keep_top": 0.3,
        "weight": "tokens",
        "ties": "kept",
    }
    assert selected.manifest.metadata["thresholds"] == [
        {**described, "value": best, "kept_weight": kept, "total_weight": total}
    ]
    assert 0.3 * total <= kept < 0.36 * total
    # of documents another threshold: the weight matters
    other, _ = decide(
        session,
        tmp_path,
        make_recipe("held_out_fraction=0.0", f"sources.0.rules=[{rules.replace('tokens', 'documents')}]"),
        attributes,
    )
    assert (
        other.manifest.metadata["thresholds"][0]["total_weight"] == len(passed) and other.manifest != selected.manifest
    )


def test_a_value_that_is_not_a_number_is_not_kept_either() -> None:
    """`nan < 0.5` is false, and would be kept."""
    rules = [Rule("low", "score", "<", 0.5)]
    assert judgement.first_reason(rules, {"score": float("nan")}, 9) == "unscored_score"
    assert judgement.first_reason(rules, {"score": None}, 9) == "unscored_score"
    assert judgement.first_reason(rules, {"score": 0.25}, 9) == "low"
    assert judgement.first_reason(rules, {"score": 0.5}, 9) is None
    assert judgement.first_reason(rules, {"score": 0.75}, 0) == "empty"


def test_near_duplicates_leave_one_by_order_or_by_preference(
    session: Any, in_process: Any, make_recipe: Make, sources: Path, tokenizer_json: Path, tmp_path: Path
) -> None:
    # two near copies, one of them longer, the other in notes; neither shares a text hash
    text = " ".join(f"word{number}" for number in range(60))
    new = {"prose/part-00003": [text, text + " and more"], "notes/part-00002": [text.replace("word9 ", "other ")]}
    for name, texts in new.items():
        lines = [json.dumps({"id": f"{name}-{number}", "text": one}) for number, one in enumerate(texts)]
        (sources / f"{name}.jsonl").write_text("\n".join(lines))
    near = [f"sources.{n}.taggers=[lengths, text_hash, ngram_repetition, {MINHASH}]" for n in (0, 1)]
    near = [*near, "held_out_fraction=0.0", "sources.1.rules=[]"]

    def reasons(*overrides: str) -> tuple[selection.Selected, Decisions]:
        build = make_recipe(*near, *overrides)
        ingested = ingestion.ingest(in_process, str(tmp_path), build, Progress())
        tokenizer = (str(tokenizer_json), Tokenizer.load(tokenizer_json).sha256)
        tagged = tagging.tag(in_process, str(tmp_path), build, ingested, tokenizer, Progress())
        return decide(session, tmp_path, build, tagged)

    trio = [("prose", 3, 0), ("prose", 3, 1), ("notes", 2, 0)]
    within = "sources.{}.near_dedup={{within: all{}}}"
    _, plain = reasons()
    assert [plain[where] for where in trio] == [("keep", None)] * 3
    selected, found = reasons(within.format(0, ""), within.format(1, ""))
    assert [found[where] for where in trio] == [("keep", None), ("drop", "near_duplicate"), ("drop", "near_duplicate")]
    dropped = [where for where in found if found[where] == ("drop", "near_duplicate")]
    facts = selected.manifest.metadata["near_dedup"]
    assert facts["documents"] - facts["clusters"] == len(dropped) and facts["rounds"] == 0
    names = storage.list_names(artifact.artifact_url(str(tmp_path), selected.manifest.reference))
    assert not [name for name in names if name.startswith("near-")]  # nothing of the rounds is left
    # the longest in its set; sets of their own do not meet
    _, found = reasons(
        "sources.0.near_dedup={within: a, prefer: words}", "sources.1.near_dedup={within: b, prefer: words}"
    )
    assert [found[where] for where in trio] == [("drop", "near_duplicate"), ("keep", None), ("keep", None)]


def test_decisions_do_not_depend_on_parts_and_buckets(
    session: Any,
    in_process: Any,
    make_recipe: Make,
    tokenizer_json: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few_bands = MINHASH.replace(
        "bands: 14, rows: 4", "bands: 4, rows: 2"
    )  # a bucket is a task, and takes as long as it takes to start
    taggers = [f"sources.{n}.taggers=[lengths, text_hash, ngram_repetition, {few_bands}]" for n in (0, 1)]
    sets = [f"sources.{n}.near_dedup={{within: all}}" for n in (0, 1)]
    build = make_recipe("held_out_fraction=0.1", "sources.1.rules=[]", *taggers, *sets)
    ingested = ingestion.ingest(in_process, str(tmp_path), build, Progress())
    tokenizer = (str(tokenizer_json), Tokenizer.load(tokenizer_json).sha256)
    tagged = tagging.tag(in_process, str(tmp_path), build, ingested, tokenizer, Progress())
    monkeypatch.undo()  # the map over shards goes through Spark again
    whole, expected = decide(session, tmp_path, build, tagged)
    reasons = {reason for _, reason in expected.values()}
    assert {"exact_duplicate", "near_duplicate", "held_out"} <= reasons
    runs = duplicates.parts
    monkeypatch.setattr(duplicates, "parts", lambda shards: runs(shards, 50))
    monkeypatch.setattr(duplicates, "BUCKET_KEYS", 150)
    for file in Path(storage.local_path(artifact.artifact_url(str(tmp_path), whole.manifest.reference))).rglob("*"):
        file.unlink() if file.is_file() else None
    parted, found = decide(session, tmp_path, build, tagged)
    assert found == expected and parted.manifest.files == whole.manifest.files
    assert len(runs(selection._shards(str(tmp_path), tagged), 50).firsts) > 3


def test_fates_count_documents_bytes_and_tokens() -> None:
    rows = [
        (0, "keep", None, 10, 3),
        (1, "drop", "short", 4, 1),
        (2, "quarantined", "blank_line", 0, 0),
        (3, "keep", None, 5, 2),
    ]
    table = pa.Table.from_pylist(
        [dict(zip(selection.SCHEMA.names, row, strict=True)) for row in rows], schema=selection.SCHEMA
    )
    assert [dataclasses.astuple(row)[1:] for row in selection.fates("s", table)] == [
        ("kept", "", 2, 15, 5),
        ("dropped", "short", 1, 4, 1),
        ("quarantined", "blank_line", 1, 0, 0),
    ]
    assert funnel.total(selection.fates("s", selection.SCHEMA.empty_table())) == []


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "sources.0.taggers=[lengths, text_hsh, ngram_repetition]",
            "tagger text_hsh is unknown: did you mean text_hash",
        ),
        ("sources.0.taggers=[lengths, text_hash]", "nothing writes token_count: add ngram_repetition to its taggers"),
        (
            "sources.0.taggers=[lengths, ngram_repetition]",
            "nothing writes text_hash_high: add text_hash to its taggers",
        ),
        ("sources.0.rules=[gopher_quality]", "rules of tagger gopher_quality is unknown"),
        (
            'sources.0.rules=[{reason: x, column: wrds, op: "<", value: 3}]',
            "column wrds is unknown: did you mean words",
        ),
        (
            'sources.0.rules=[{reason: held_out, column: words, op: "<", value: 3}]',
            "the reason held_out is the build's own",
        ),
        ("sources.0.near_dedup={within: all}", "nothing writes minhash_bands: add minhash to its taggers"),
        ("sources.0.near_dedup={within: all, prefer: wrds}", "prefer: column wrds is unknown: did you mean words"),
        (
            "sources.0.rules=[{reason: near_duplicate, column: words, keep_top: 0.5, weight: tokens}]",
            "the reason near_duplicate is the build's own",
        ),
        ("sources.0.name=notes", "source notes is named 2 times"),
        ("mixes.0.shares={prose: 0.5, nots: 0.5}", "share of source nots is unknown: did you mean notes"),
        ("mixes.0.shares={prose: 0.5, notes: 0.4}", "shares sum to 0.9: make them sum to 1"),
        (
            "sources.0.taggers=[lengths, text_hash, {name: ngram_repetition, params: {max_peroid: 3}}]",
            "tagger ngram_repetition: max_peroid",
        ),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_in_one_sentence(make_recipe: Make, override: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as raised:
        recipe.checked(make_recipe(override))
    assert "\n" not in str(raised.value)


def test_one_set_of_near_duplicates_needs_one_way_to_compare(make_recipe: Make) -> None:
    """Bands of other parameters never meet; that would look like a source without duplicates."""
    two = [f"sources.{n}.taggers=[lengths, text_hash, ngram_repetition, {MINHASH}]" for n in (0, 1)]
    sets = [f"sources.{n}.near_dedup={{within: all}}" for n in (0, 1)]
    recipe.checked(make_recipe(*two, *sets))
    for broken in (
        [two[0], two[1].replace("seed: 1", "seed: 2"), *sets],
        [*two, sets[0], sets[1].replace("all", "all, prefer: words")],
    ):
        with pytest.raises(UsageError, match="near_dedup within all differs from source prose"):
            recipe.checked(make_recipe(*broken))
    recipe.checked(make_recipe(two[0], two[1].replace("seed: 1", "seed: 2"), sets[0], sets[1].replace("all", "own")))
