"""Lengths, Gopher quality and Gopher repetition equal slow Python, on real text and on text made to be awkward."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane import documents, tagger
from dataplane.taggers.table import TAGGERS


def _load_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tagger_reference", Path(__file__).with_name("reference.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


reference = _load_reference()
REFERENCES = {
    "lengths": reference.lengths,
    "gopher_quality": reference.quality,
    "gopher_repetition": reference.repetition,
}
# Few words, so that n-grams repeat; every kind of white space and line end; marks that the rules look for.
MARKS = [
    "the",
    "be",
    "ab",
    "c",
    "abc",
    "a",
    "-",
    "•",
    "#",
    "...",
    "…",
    ".",
    "é",
    "中文",
    "😀",
    "１",
    "“",
    "12",
    "\u0301",
]
PIECES = st.sampled_from([*MARKS, *(" " * 4), *"\n\r\t\v\f\x1c\x1f\x85\xa0\u2003\u2028\u3000\u1680", "\n\n", "\r\n"])
TEXTS = st.lists(PIECES, max_size=120).map("".join) | st.text(max_size=60)


def tagged(name: str, texts: list[str]) -> list[dict[str, float]]:
    one = TAGGERS[name]
    batch = documents.make_batch(range(len(texts)), ["x"] * len(texts), texts)
    params = one.params()
    columns = one.tag(batch, params)
    assert columns.schema == one.columns(params) and columns.num_rows == len(texts)
    assert all(column.null_count == 0 for column in columns.columns)
    return columns.to_pylist()


@pytest.mark.parametrize("name", REFERENCES)
@given(texts=st.lists(TEXTS, max_size=5))
def test_equal_to_the_reference_on_awkward_text(name: str, texts: list[str]) -> None:
    assert tagged(name, texts) == [REFERENCES[name](text) for text in texts]


@pytest.mark.parametrize("name", REFERENCES)
def test_equal_to_the_reference_on_the_corpus(name: str, shared: Path) -> None:
    for source in ("books", "code", "web_noisy", "qa", "arxiv_latex"):
        [batch] = documents.read(documents.shards(str(shared / "data/corpus" / source / "part-00001.jsonl.zst"))[0])
        one = TAGGERS[name]
        part = 15 if source == "books" else 80
        got = one.tag(batch, one.params()).slice(0, part).to_pylist()
        assert got == [REFERENCES[name](text) for text in batch.text.slice(0, part).to_pylist()]


def test_the_statistics_of_a_small_text() -> None:
    text = "- one two two #\n\n• and the ...\n\n• and the ..."
    assert tagged("lengths", [text]) == [{"bytes": 49, "characters": 45, "words": 13, "lines": 5}]
    [quality] = tagged("gopher_quality", [text])
    assert (
        quality["gopher_words"] == 9
    )  # all but "-", "#" and "...", which are punctuation; "•" is not in datatrove's list
    assert quality["gopher_mean_word_length"] == len("onetwotwo•andthe•andthe") / 9
    assert quality["gopher_alphabetic_words"] == 7 / 13
    assert quality["gopher_hash_ratio"] == 1 / 13
    assert quality["gopher_ellipsis_ratio"] == 2 / 13
    assert quality["gopher_bullet_lines"] == 3 / 5
    assert quality["gopher_ellipsis_lines"] == 2 / 5
    assert quality["gopher_stop_words"] == 2
    [repetition] = tagged("gopher_repetition", [text])
    assert repetition["gopher_duplicate_lines"] == repetition["gopher_duplicate_paragraphs"] == 1 / 3
    assert repetition["gopher_duplicate_line_characters"] == 13 / 45
    assert repetition["gopher_top_2gram"] == 2 * len("• and") / 45
    assert repetition["gopher_top_4gram"] == 2 * len("• and the ...") / 45
    assert repetition["gopher_duplicate_5grams"] == 0


def test_words_are_compared_one_by_one() -> None:
    """datatrove joins the words of an n-gram without a space, so that these two 5-grams are the same to it; here they are not."""
    [values] = tagged("gopher_repetition", ["ab c d e f | a bc d e f"])
    assert values["gopher_duplicate_5grams"] == 0
    [values] = tagged("gopher_repetition", ["ab c d e f | ab c d e f"])
    assert values["gopher_duplicate_5grams"] == len("abcdef") / len("ab c d e f | ab c d e f")


@pytest.mark.parametrize("name", REFERENCES)
def test_a_document_does_not_see_its_neighbours(name: str) -> None:
    texts = ["a b", "", "c d e", " ", "a b\n", "the -", "...\n"]
    assert tagged(name, texts) == [tagged(name, [text])[0] for text in texts]
    batch = documents.make_batch(range(7), ["x"] * 7, texts)
    middle = documents.Batch(batch.rows[2:5], batch.id[2:5], batch.text[2:5], batch.source[2:5], None, ())
    assert TAGGERS[name].tag(middle, tagger.NoParams()).to_pylist() == tagged(name, texts[2:5])


def test_an_empty_batch() -> None:
    assert tagged("lengths", []) == tagged("gopher_quality", []) == tagged("gopher_repetition", []) == []


def test_decisions_are_those_of_datatrove(shared: Path) -> None:
    """Keep or drop and the reason, with whitespace words in both; the first rule that matches is the reason."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        GopherQualityFilter,
        GopherRepetitionFilter,
        gopher_quality_filter,
        gopher_repetition_filter,
    )

    for module in (gopher_quality_filter, gopher_repetition_filter):
        module.split_into_words = lambda text, language: text.split()
    peers = {"gopher_quality": GopherQualityFilter(), "gopher_repetition": GopherRepetitionFilter()}
    reasons = set()
    for source in ("code", "web_noisy", "qa", "instruction", "math_proofs"):
        [batch] = documents.read(documents.shards(str(shared / "data/corpus" / source / "part-00002.jsonl.zst"))[0])
        texts = batch.text.slice(0, 80).to_pylist()
        for name, peer in peers.items():
            for text, values in zip(texts, tagged(name, texts), strict=True):
                verdict = peer.filter(Document(text=text, id="x"))
                expected = None if verdict is True else verdict[1]
                assert tagger.first_match(TAGGERS[name].rules, values) == expected
                reasons.add(expected)
    assert len(reasons) >= 12  # the sample exercises most rules


def test_a_changed_threshold_changes_the_decision() -> None:
    rule = tagger.Rule("short", "gopher_words", "<", 50)
    assert tagger.first_match((rule,), {"gopher_words": 49}) == "short"
    assert tagger.first_match((rule,), {"gopher_words": 50}) is None
    assert rule.sql() == "gopher_words < 50"
    assert tagger.Rule("x", "gopher_hash_ratio", ">", 0.1).sql() == "gopher_hash_ratio > 0.1D"
    assert {op: tagger.Rule("x", "c", op, 1).matches(1) for op in ("<", "<=", ">", ">=", "=")} == {
        "<": False,
        "<=": True,
        ">": False,
        ">=": True,
        "=": True,
    }


def test_rules_name_columns_that_exist() -> None:
    """The columns of `edited` are those of other taggers, and no rules come with it."""
    assert TAGGERS["edited"].rules == ()
    fixed = [one for name, one in TAGGERS.items() if name != "edited"]
    for one in fixed:
        assert {rule.column for rule in one.rules} <= set(one.columns(None).names)
    every = [name for one in fixed for name in one.columns(None).names]
    assert len(every) == len(set(every))


def test_a_stop_word_is_a_whole_word() -> None:
    texts = ["the and", "the\0 \0and the\0and", "The AND", "then band", "the the"]
    assert [row["gopher_stop_words"] for row in tagged("gopher_quality", texts)] == [2, 0, 0, 0, 1]
