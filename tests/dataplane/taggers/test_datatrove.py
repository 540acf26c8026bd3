"""Any filter of datatrove from a recipe: its own verdicts, and nothing but filters of datatrove."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import GopherQualityFilter, RegexFilter, gopher_quality_filter

from dataplane import documents, tagger
from dataplane.taggers.table import TAGGERS
from triplane.errors import TriplaneError, UsageError

ONE = TAGGERS["datatrove"]
FILTERS = "datatrove.pipeline.filters."
SHORT = {"filter": FILTERS + "C4ParagraphFilter", "params": {}}
REGEX = {"filter": FILTERS + "RegexFilter", "params": {"regex_exp": "spam"}}


def params(**filters: dict[str, object]) -> object:
    return ONE.params.model_validate_json(json.dumps({"filters": filters}))


def tag(texts: list[str], metadata: list[str] | None = None, **filters: dict[str, object]) -> list[dict[str, object]]:
    made = documents.make_batch(range(len(texts)), [f"d{n}" for n in range(len(texts))], texts)
    values = None if metadata is None else pa.array(metadata, pa.large_string())
    columns = ONE.tag(documents.Batch(made.rows, made.id, made.text, made.source, values, ()), params(**filters))
    assert columns.schema == ONE.columns(params(**filters))
    return columns.to_pylist()


def test_two_filters_have_columns_of_their_own() -> None:
    long = "\n".join(["word " * 50] * 3)
    rows = tag([long, "short", long + "spam"], paragraphs=SHORT, spam=REGEX)
    assert [row["datatrove_paragraphs_keep"] for row in rows] == [1, 0, 1]
    assert [row["datatrove_paragraphs_reason"] for row in rows] == ["", "< 3 paragraphs", ""]
    assert [row["datatrove_spam_keep"] for row in rows] == [1, 1, 0]
    assert rows[2]["datatrove_spam_reason"] == "dropped"  # this filter gives no reason
    rule = tagger.Rule("spam", "datatrove_spam_keep", "=", 0)
    assert [tagger.first_match((rule,), row) for row in rows] == [None, None, "spam"]  # type: ignore[arg-type]


def test_verdicts_are_the_filters_own(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gopher_quality_filter, "split_into_words", lambda text, language: text.split())
    [batch] = documents.read(documents.shards(str(shared / "data/corpus/web_noisy/part-00002.jsonl.zst"))[0])
    texts = batch.text.slice(0, 60).to_pylist()
    rows = tag(texts, gopher={"filter": FILTERS + "GopherQualityFilter", "params": {"min_doc_words": 200}})
    peer, expected = GopherQualityFilter(min_doc_words=200), []
    for text in texts:
        verdict = peer.filter(Document(text=text, id="x"))
        expected.append((1, "") if verdict is True else (0, verdict[1]))
    assert [(row["datatrove_gopher_keep"], row["datatrove_gopher_reason"]) for row in rows] == expected
    assert len(set(expected)) >= 3


def test_filters_see_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RegexFilter, "filter", lambda self, document: document.metadata.get("language") == "en")
    assert ONE.needs_metadata
    rows = tag(["x", "y", "z"], ['{"language": "en"}', '{"language": "de"}', "[1]"], language=REGEX)
    assert [row["datatrove_language_keep"] for row in rows] == [1, 0, 0]


@pytest.mark.parametrize(
    ("filter_", "values", "words"),
    [
        ("os.system", {}, "is not in datatrove.pipeline.filters"),
        (FILTERS + "base_filter.loguru", {}, "is not a filter"),
        (FILTERS + "BaseFilter", {}, "is not a filter"),
        (FILTERS + "gopher_quality_filter.np", {}, "is not a filter"),
        (FILTERS + "nothing.Here", {}, "cannot be imported"),
        (FILTERS + "RegexFilter", {"regexp": "x"}, "does not take these params"),
        (FILTERS + "RegexFilter", {"regex_exp": "x", "exclusion_writer": "/tmp"}, "exclusion_writer"),
        (FILTERS + "SamplerFilter", {"rate": 0.5}, "draws at random"),
        (FILTERS + "C4BadWordsFilter", {"keep_fraction": 0.1}, "draws at random"),
    ],
)
def test_what_is_refused(filter_: str, values: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        tag(["x"], one={"filter": filter_, "params": values})


def test_a_failing_filter_names_the_document() -> None:
    lambda_ = {"filter": FILTERS + "LambdaFilter", "params": {"filter_function": "not a function"}}
    with pytest.raises(TriplaneError, match="failed on document d0"):
        tag(["x"], one=lambda_)


def test_names_become_column_names() -> None:
    with pytest.raises(UsageError, match="part of a column's name"):
        ONE.columns(params(**{"no spaces": SHORT}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        params()
