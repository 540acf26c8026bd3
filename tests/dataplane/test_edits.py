"""Edits: spans in any order are cut once; tags, planned tokens, tokens and held-out text are those of what is left."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from dataplane import build, documents, edits, recipe, text_columns
from dataplane.recipe import BuildRecipe
from dataplane.taggers.table import TAGGERS
from tests.dataplane.conftest import write_shard
from tests.dataplane.test_label_masks import expected_mask, masks_of
from tests.dataplane.test_tokenization import Stage, read_back
from triplane import artifact, storage, tokens
from triplane.errors import Refused, UsageError
from triplane.progress import Progress
from triplane.tokenizer import Tokenizer

Make = Callable[..., BuildRecipe]
EDITED = (
    "sources.1.taggers=[lengths, {name: edited, params: {edits: [c4_lines], taggers: [text_hash, ngram_repetition]}}]"
)
NO_RULES = "sources.1.rules=[]"


def strings(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def slow_cut(text: str, spans: list[int]) -> str:
    data = text.encode()
    gone = {i for start, end in zip(spans[::2], spans[1::2], strict=True) for i in range(start, end)}
    return bytes(byte for i, byte in enumerate(data) if i not in gone).decode()


@st.composite
def texts_with_spans(draw: st.DrawFn) -> tuple[list[str], list[list[int]]]:
    texts = draw(st.lists(st.text("aé中🙂\n", max_size=12), max_size=5))
    spans = []
    for text in texts:
        edges = [len(text[:i].encode()) for i in range(len(text) + 1)]
        pairs = draw(st.lists(st.tuples(st.sampled_from(edges), st.sampled_from(edges)), max_size=4))
        spans.append([edge for pair in pairs for edge in sorted(pair)])
    return texts, spans


@given(texts_with_spans())
def test_spans_in_any_order_are_cut_once(case: tuple[list[str], list[list[int]]]) -> None:
    texts, spans = case
    found = edits.applied(strings(texts), pa.array(spans, edits.SPANS))
    assert found.to_pylist() == [slow_cut(*pair) for pair in zip(texts, spans, strict=True)]
    found.validate(full=True)


def test_edits_are_applied_in_order_to_slices_and_beside_nulls() -> None:
    first = pa.array([[0, 9], [0, 2], None, [4, 6, 0, 1]], edits.SPANS)
    second = pa.array([[0, 1], [0, 1], None, []], edits.SPANS)
    texts = strings(["not seen at all", "abcdef", "as it was", "0123456789"])
    found = edits.applied_all(texts.slice(1), [first.slice(1), second.slice(1)])
    assert found.to_pylist() == ["def", "as it was", "1236789"]


@pytest.mark.parametrize("spans", [[0, 99], [-1, 2], [3, 2], [1, 2], [0, 1, 2]])
def test_spans_that_are_not_of_the_text_are_refused(spans: list[int]) -> None:
    with pytest.raises(Refused, match="document 1 of a batch has spans"):
        edits.applied(strings(["x", "éab"]), pa.array([[0, 1], spans], edits.SPANS))


@pytest.fixture
def web(sources: Path) -> dict[str, tuple[str, str]]:
    """`notes` as pages with lines that C4 cuts: id -> (text, what is left)."""
    pages = {}
    for number in range(44):
        body = [f"The old bridge over river {number} was found.", "They sailed on until morning came!"]
        text = f"HOME | MAP\n  {body[0]}[{number}]\nwe use javascript here.\n\n{body[1]} \r\nmenu"
        pages[f"n{number}"] = (text, "\n".join(body))
    pages["n7"] = ("menu\nhome", "")
    for shard in range(2):
        records = [{"id": name, "text": text} for name, (text, _) in list(pages.items())[shard * 22 : shard * 22 + 22]]
        write_shard(sources / "notes" / f"part-{shard:05d}.jsonl", records)
    return pages


def test_tokens_and_held_out_text_are_those_of_the_edited_text(
    web: dict[str, tuple[str, str]], in_process: Any, make_recipe: Make, tmp_path: Path
) -> None:
    stage = Stage(tmp_path / "root", recipe.checked(make_recipe(EDITED, NO_RULES)), in_process)
    made = stage.tokenize()["notes"]
    kept = {entry.id: text for entry, text, _ in read_back(stage, made.tokens)}
    assert kept == {name: web[name][1] for name in kept} and "n7" in kept
    assert made.heldout is not None
    url = artifact.artifact_url(stage.root, made.heldout.reference)
    held = {}
    for entry in made.heldout.files:
        data = io.BytesIO(storage.read(storage.join(url, entry.name)))
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(data), "utf-8")
        held |= {record["id"]: record["text"] for record in map(json.loads, lines)}
    assert held == {name: web[name][1] for name in held} and len(kept) + len(held) == len(web) == 44
    planned = sum(row.tokens for row in stage.selected.rows if row.source == "notes" and row.fate == "kept")
    counts = stage.tokenizer.encode(list(kept.values()))[1]
    assert planned == counts[-1], "planned tokens are those of the edited text"
    assert made.tokens.metadata["num_tokens"] == counts[-1] + len(kept)


def test_taggers_inside_read_the_edited_text_and_those_outside_the_whole(web: dict[str, tuple[str, str]]) -> None:
    texts, left = zip(*web.values(), strict=True)
    inside = TAGGERS["edited"].params.model_validate(
        {"tokenizer": "", "edits": ["c4_lines"], "taggers": ["ngram_repetition"]}
    )
    inside = inside.model_copy(update={"taggers": ["lengths", "text_hash"]})
    batches = [documents.make_batch(range(44), list(web), list(some)) for some in (texts, left)]
    found = TAGGERS["edited"].tag(batches[0], inside)
    for name in ("lengths", "text_hash"):
        expected = TAGGERS[name].tag(batches[1], TAGGERS[name].params())
        assert found.select(expected.schema.names).to_pylist() == expected.to_pylist()
        assert TAGGERS[name].tag(batches[0], TAGGERS[name].params()).to_pylist() != expected.to_pylist()


def test_a_tagger_inside_that_changes_tags_anew_and_other_sources_stay(
    web: dict[str, tuple[str, str]], in_process: Any, make_recipe: Make, tmp_path: Path
) -> None:
    plain = Stage(tmp_path / "a", make_recipe(NO_RULES), in_process)
    edited = Stage(tmp_path / "b", make_recipe(EDITED, NO_RULES), in_process)
    other = make_recipe(
        EDITED.replace("[c4_lines]", "[{name: c4_lines, params: {filter_javascript: false}}]"), NO_RULES
    )
    lenient = Stage(tmp_path / "c", other, in_process)
    assert plain.attributes["prose"].reference == edited.attributes["prose"].reference
    assert len({stage.attributes["notes"].reference for stage in (plain, edited, lenient)}) == 3
    made = {stage: stage.tokenize() for stage in (plain, edited, lenient)}
    assert len({one["prose"].tokens.reference for one in made.values()}) == 1
    assert len({one["notes"].tokens.reference for one in made.values()}) == 3
    assert len({one["notes"].heldout.reference for one in made.values() if one["notes"].heldout}) == 3


def test_versions_of_the_taggers_inside_are_part_of_what_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"edits": ["c4_lines"], "taggers": ["ngram_repetition"]}
    before = recipe.tagger_params("edited", values, "t").model_dump(mode="json")
    assert before["versions"] == {"c4_lines": 1, "ngram_repetition": 1}
    assert recipe.tagger_params("edited", before, "t").model_dump(mode="json") == before
    monkeypatch.setitem(TAGGERS, "c4_lines", dataclasses.replace(TAGGERS["c4_lines"], version=2))
    assert recipe.tagger_params("edited", values, "t").model_dump(mode="json") != before


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            "{edits: [lengths], taggers: [ngram_repetition]}",
            "lengths edits nothing: name one that writes lengths_spans",
        ),
        ("{edits: [c4_lines], taggers: [text_hash]}", "tokens are counted after the edits: add ngram_repetition"),
        ("{edits: [c4_lins], taggers: [ngram_repetition]}", "tagger c4_lins is unknown here: known: c4, c4_lines"),
        ("{edits: [c4_lines, c4_lines], taggers: [ngram_repetition]}", "two of them write the same column"),
        ("{edits: [c4_lines], taggers: [edited, ngram_repetition]}", "tagger edited is unknown here"),
        (
            "{edits: [c4_lines], taggers: [ngram_repetition, {name: code_rules, params: {words: identifier}}]}",
            "code_rules reads no text: name it outside",
        ),
    ],
)
def test_an_edit_that_makes_no_sense_is_refused_before_anything_starts(
    make_recipe: Make, params: str, message: str
) -> None:
    one = make_recipe(f"sources.1.taggers=[text_hash, {{name: edited, params: {params}}}]", NO_RULES)
    with pytest.raises(UsageError, match=message):
        recipe.checked(one)


def test_a_tagger_inside_and_outside_is_refused_before_anything_starts(make_recipe: Make) -> None:
    twice = EDITED.replace("[lengths, ", "[lengths, text_hash, ")
    with pytest.raises(UsageError, match="source notes: column text_hash_high is named 2 times"):
        recipe.checked(make_recipe(twice, NO_RULES))


def test_rules_of_a_tagger_inside_may_be_named_and_near_duplicates_are_of_whole_texts(make_recipe: Make) -> None:
    minhash = "{name: minhash, params: {bands: 14, rows: 8, shingle_words: 5, seed: 1}}"
    near = "sources.1.near_dedup={within: all}"
    outside = EDITED.replace("[lengths, ", f"[{minhash}, lengths, ")
    recipe.checked(make_recipe(outside, "sources.1.rules=[ngram_repetition]", near))
    inside = EDITED.replace("[text_hash, ", f"[{minhash}, text_hash, ")
    with pytest.raises(UsageError, match=r"source notes: near duplicates .*: name minhash outside edited"):
        recipe.checked(make_recipe(inside, NO_RULES, near))
    with pytest.raises(UsageError, match="source notes: rules of tagger minhash is unknown"):
        recipe.checked(make_recipe(EDITED, "sources.1.rules=[minhash]"))


def test_spans_of_another_text_are_found(
    web: dict[str, tuple[str, str]], in_process: Any, make_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path / "root", make_recipe(EDITED, NO_RULES), in_process)
    whole = text_columns.TextColumns.read

    def without_spans(self: text_columns.TextColumns, index: int, num_records: int) -> text_columns.ShardColumns:
        [spans] = whole(self, index, num_records).spans
        return text_columns.ShardColumns((pa.nulls(len(spans), edits.SPANS),))

    monkeypatch.setattr(text_columns.TextColumns, "read", without_spans)
    with pytest.raises(Refused, match=r"part-00000.jsonl of notes: \d+ tokens, \d+ were planned"):
        stage.tokenize()


def test_label_masks_are_of_the_tokens_of_the_edited_text(
    web: dict[str, tuple[str, str]], sources: Path, in_process: Any, make_recipe: Make, tmp_path: Path
) -> None:
    loop = "on " * 60 + "and on."
    records = [{"id": name, "text": f"menu\nmenu\n{loop}\n{text}\n{text}"} for name, (text, _) in web.items()]
    write_shard(sources / "notes" / "part-00000.jsonl", records[:22])
    masked = EDITED.replace("[text_hash, ", "[ngram_regions, text_hash, ")
    one = make_recipe(masked, NO_RULES, "sources.1.label_mask=ngram_regions")
    stage = Stage(tmp_path / "root", recipe.checked(one), in_process)
    found = masks_of(stage, stage.tokenize()["notes"].tokens)
    for ids, mask in found.values():
        np.testing.assert_array_equal(mask, expected_mask(ids))
    assert sum(not mask.all() for _, mask in found.values()) > 10
    outside = EDITED.replace("[lengths, ", "[lengths, ngram_regions, ")
    with pytest.raises(UsageError, match="source notes: label_mask: column ngram_regions is unknown"):
        recipe.checked(make_recipe(outside, NO_RULES, "sources.1.label_mask=ngram_regions"))


def test_a_build_adds_up_over_what_is_left(
    session: Any, web: dict[str, tuple[str, str]], make_recipe: Make, tmp_path: Path
) -> None:
    masked = EDITED.replace("[text_hash, ", "[ngram_regions, text_hash, ")
    one = make_recipe(masked, NO_RULES, "sources.1.label_mask=ngram_regions", "sources.1.exact_dedup=false")
    result = build.run(one, str(tmp_path / "root"), Progress())
    notes = {row.reason or row.fate: row for row in result.funnel if row.source == "notes"}
    assert notes["in"].documents == 44 and notes["empty"].documents == 1
    assert notes["in"].tokens == Tokenizer.load(one.tokenizer).encode([left for _, left in web.values()])[1][-1]
    assert notes["in"].bytes == sum(len(text.encode()) for text, _ in web.values())
    manifest = artifact.load(str(tmp_path / "root"), result.tokens["notes"])
    assert manifest.metadata["num_tokens"] == notes["kept"].tokens + notes["kept"].documents
    assert tokens.shards(str(tmp_path / "root"), manifest)[0].url_mask is not None
