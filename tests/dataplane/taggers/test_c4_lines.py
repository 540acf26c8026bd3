"""What is left of a text is what datatrove's `C4QualityFilter` leaves, on awkward and on real text."""

from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter, c4_filters
from hypothesis import given
from hypothesis import strategies as st

from dataplane import documents, edits
from dataplane.taggers.table import TAGGERS

ONE = TAGGERS["c4_lines"]
PIECES = [
    "a",
    "Long words here.",
    "javascript",
    "Cookie Policy",
    "[1]",
    "[edit]",
    "[x]",
    "[1]\u00a0Long words here.",
    "[2]\u3000Long words here.",
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\n\n",
]
PIECES += ['"Quoted text here"', "and more...", "Really now?", "é", "中 文 字.", "\u00a0", "w" * 1001 + " b c."]
OTHER_BREAKS = ["\x0b", "\x0c", "\r", "\x1c", "\x85", "\u2028", "\u2029"]


@pytest.fixture(autouse=True)
def one_sentence_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """datatrove counts sentences with spaCy, which changes no text."""
    monkeypatch.setattr(c4_filters, "split_into_sentences", lambda text, language: [text])


def theirs(text: str, **options: Any) -> str:
    document = Document(text=text, id="x")
    peer = C4QualityFilter(min_num_sentences=-1, filter_lorem_ipsum=False, filter_curly_bracket=False, **options)
    assert peer.filter(document) is True
    return str(document.text)


def ours(texts: list[str], **params: Any) -> list[str]:
    batch = documents.make_batch(range(len(texts)), ["x"] * len(texts), texts)
    tagged = ONE.tag(batch, ONE.params(**params))
    left = edits.applied(batch.text, tagged.column("c4_lines_spans")).to_pylist()
    assert tagged.column("c4_lines_left_bytes").to_pylist() == [len(text.encode()) for text in left]
    return list(left)


@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), max_size=4))
def test_equal_to_datatrove_on_awkward_text(texts: list[str]) -> None:
    assert ours(texts) == [theirs(text) for text in texts]


@given(st.lists(st.sampled_from([*PIECES, *OTHER_BREAKS]), max_size=12).map("".join))
def test_a_break_other_than_a_newline_stays_where_there_is_no_newline(text: str) -> None:
    [left] = ours([text])
    assert left.splitlines() == theirs(text).split("\n") or left == theirs(text) == ""


def test_equal_to_datatrove_on_the_shared_corpus(shared: Path) -> None:
    changed = 0
    for source in ("web", "web_noisy", "encyclopedia", "qa", "code", "math_web"):
        path = next(iter(sorted((shared / "data/corpus" / source).glob("*.zst"))))
        for batch in documents.read(documents.shards(str(path))[0]):
            texts = batch.text.slice(0, 300).to_pylist()
            for text, left in zip(texts, ours(texts), strict=True):
                assert "\n".join(left.splitlines()) == theirs(text)
                changed += left != text
    assert changed > 500


def test_options_are_those_of_datatrove() -> None:
    text = "no mark at the end here\nOne two.\nUses javascript a lot.\nRead the terms of use.\nA b c[1]."
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"filter_no_terminal_punct": False}, {"filter_no_terminal_punct": False}),
        ({"min_words_per_line": 2}, {"min_words_per_line": 2}),
        ({"filter_javascript": False}, {"filter_javascript": False}),
        ({"filter_policy": False}, {"filter_policy": False}),
        ({"remove_citations": False}, {"remove_citations": False}),
        ({"max_word_characters": 9}, {"max_word_length": 9}),
    ]
    assert len({theirs(text, **theirs_take) for _, theirs_take in cases}) >= 5
    for ours_take, theirs_take in cases:
        assert ours([text], **ours_take) == [theirs(text, **theirs_take)]
