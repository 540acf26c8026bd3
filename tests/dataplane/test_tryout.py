"""`try` shows what a rule does on a sample that is the same every time, and agrees with what the build decides."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataplane import recipe, tryout
from dataplane.recipe import BuildRecipe, SourceRecipe
from triplane.errors import UsageError


@pytest.fixture
def source(make_recipe: Callable[..., BuildRecipe]) -> SourceRecipe:
    return make_recipe().sources[1]


def tried(
    source: SourceRecipe, rule: str, tokenizer: Path | str = "", sample: int = 1000, seed: int = 3
) -> dict[str, Any]:
    return tryout.trial(source, rule, seed, sample, str(tokenizer)).to_json(1000)


def test_an_expression_splits_the_documents_and_shows_values_and_text(source: SourceRecipe, sources: Path) -> None:
    found = tried(source, "words < 11")
    texts = {}
    for path in (sources / "notes").iterdir():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line.startswith('{"id"') and '"text"' in line:
                texts[path.name, number] = json.loads(line)["text"]
    assert found["sampled"] == found["documents_seen"] == len(texts) == 40
    for one in found["dropped_documents"] + found["kept_documents"]:
        text = texts.pop((one["shard"], one["line"]))
        assert one["values"] == {"words": len(text.split())} and one["excerpt"][:190] == text[:190]
        expected = "empty" if not text else "dropped" if len(text.split()) < 11 else None
        assert one["reason"] == expected
    assert texts == {} and found["kept"] == len(found["kept_documents"]) > 20
    assert found["dropped"] == {"dropped": len(found["dropped_documents"]) - 1, "empty": 1}


def test_a_reason_of_the_recipe_and_a_taggers_name(source: SourceRecipe, tokenizer_json: Path) -> None:
    by_reason, by_text = tried(source, "too_short"), tried(source, "words < 11")
    assert by_reason["rules"] == by_text["rules"] == ["words < 11"]
    assert {one["id"] for one in by_reason["kept_documents"]} == {one["id"] for one in by_text["kept_documents"]}
    assert tried(source, "ngram_repeat", tokenizer_json)["dropped"] == {"empty": 1, "ngram_repeat": 1}
    repeated = tried(source, "ngram_repetition", tokenizer_json)["dropped_documents"]
    assert [one["id"] for one in repeated if one["reason"] == "ngram_repeat"] == ["loop"]


def test_a_share_is_of_the_sample_with_ties(source: SourceRecipe, tokenizer_json: Path) -> None:
    found = tried(source, "words keep_top 0.25")
    words = sorted(
        (one["values"]["words"] for one in found["kept_documents"] + found["dropped_documents"]), reverse=True
    )
    assert found["rules"] == [f"words < {words[9]}"] and found["kept"] == sum(w >= words[9] for w in words) >= 10
    by_tokens = tried(source, "words keep_top 0.25 tokens", tokenizer_json)
    assert by_tokens["kept"] == 1 and by_tokens["kept_documents"][0]["id"] == "loop"  # 400 of all the words


def test_the_sample_is_the_same_every_time_nested_and_another_with_another_seed(source: SourceRecipe) -> None:
    def ids(sample: int, seed: int) -> list[str]:
        return [one.id for one in tryout.trial(source, "words < 0", seed, sample, "").documents]

    assert ids(10, 3) == ids(10, 3) == ids(30, 3)[:10] and len(set(ids(30, 3))) == 30
    assert set(ids(10, 3)) != set(ids(10, 4))


def test_a_large_source_is_seen_by_the_beginnings_of_its_shards(tmp_path: Path, source: SourceRecipe) -> None:
    (tmp_path / "many").mkdir()
    for shard in range(4):
        lines = (json.dumps({"id": f"{shard}-{n}", "text": f"text {n} " * 1000}) for n in range(400))  # 4 MB
        (tmp_path / "many" / f"part-{shard}.jsonl").write_text("\n".join(lines))
    large = source.model_copy(update={"documents": str(tmp_path / "many")})
    trial = tryout.trial(large, "words < 3", 1, 90, "")
    assert len(trial.documents) == 90 and 360 <= trial.documents_seen < 600
    assert len({one.shard for one in trial.documents}) >= 3 and max(one.line for one in trial.documents) < 200


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("wrds < 5", "column wrds is unknown: did you mean words"),
        ("too_shrt", "rule too_shrt is unknown: did you mean too_short"),
        ("words < 1e", "1e is no number"),
        ("words keep_top 1.5", "keep_top"),
        (
            "words ~ 5",
            "rule words ~ 5 reads as nothing: write `words < 50`, `words keep_top 0.07 tokens` or a rule's name",
        ),
        ("near_duplicate", "rule near_duplicate is decided over whole builds, not samples"),
        (
            "quality_score < 0.5",
            "quality_score is written by tagger fasttext_quality, which needs params: add it to the",
        ),
    ],
)
def test_a_rule_that_says_nothing_is_refused_in_one_sentence(source: SourceRecipe, rule: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        tried(source, rule)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("sources.1.taggers=[lengths, txt_hash]", "source notes: tagger txt_hash is unknown: did you mean text_hash"),
        ("sources.1.rules=[lenghts]", "source notes: rules of tagger lenghts is unknown: did you mean lengths"),
    ],
)
def test_a_recipe_that_names_no_tagger_is_refused_as_a_build_refuses_it(
    make_recipe: Callable[..., BuildRecipe], change: str, sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        tried(make_recipe(change).sources[1], "words < 11")
    with pytest.raises(UsageError, match=sentence):
        recipe.checked(make_recipe(change))


def test_excerpts_stay_on_one_line() -> None:
    assert tryout.excerpt("a\n\n b\x00\u200b" + "x" * 500) == "a b\\x00\\u200b" + "x" * 195 + "…"
