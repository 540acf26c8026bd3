"""Stars from metadata, and the share of a file that its two commonest words are."""

import json
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane import documents, tagger
from dataplane.taggers.table import TAGGERS

ONE = TAGGERS["code_rules"]
PIECES = st.sampled_from(
    ["a", "ab", "a_b", "é", "if", "(", ");", "9", " ", " ", "\n", "\xa0", "\x00", "averyverylongname"]
)


def batch(texts: list[str], metadata: list[object] | None = None) -> documents.Batch:
    made = documents.make_batch(range(len(texts)), ["x"] * len(texts), texts)
    values = (
        None
        if metadata is None
        else pa.array([None if m is None else json.dumps(m) for m in metadata], pa.large_string())
    )
    return documents.Batch(made.rows, made.id, made.text, made.source, values, ())


def shares(words: list[str]) -> tuple[float, float]:
    top = [times for _, times in Counter(words).most_common(2)]
    return (top[0] / len(words), sum(top) / len(words)) if words else (0.0, 0.0)


@given(texts=st.lists(st.lists(PIECES, max_size=60).map("".join), max_size=4))
def test_equal_to_counter(texts: list[str]) -> None:
    for mode, split in (
        ("whitespace", str.split),
        ("identifier", lambda text: re.findall(r"[0-9A-Za-z_\x80-\U0010ffff]+", text)),
    ):
        rows = ONE.tag(batch(texts), ONE.params(words=mode)).to_pylist()
        assert [(row["code_top_word"], row["code_top_two_words"]) for row in rows] == [shares(split(t)) for t in texts]


@pytest.mark.parametrize(
    ("metadata", "stars"),
    [
        ({"max_stars_count": 7, "stars": 1}, 7),
        ({"stars": 12.0}, 12),
        ({"max_stars_count": None, "stars": 0}, 0),
        ({"max_stars_count": True}, -1),
        ({"stars": "9"}, -1),
        ({"stars": 1e300}, 2**62),
        ({}, -1),
        ([3], -1),
        (None, -1),
    ],
)
def test_stars(metadata: object, stars: int) -> None:
    [row] = ONE.tag(batch(["x"], [metadata]), ONE.params(words="whitespace")).to_pylist()
    assert row["code_stars"] == stars


def test_rules_in_order() -> None:
    def reason(text: str, stars: int) -> str | None:
        [row] = ONE.tag(batch([text], [{"stars": stars}]), ONE.params(words="whitespace")).to_pylist()
        return tagger.first_match(ONE.rules, row)

    assert reason("a b c d e f", 1) == "few_stars"
    assert reason("a a a a b c d e f g", 2) == "top_word"
    assert reason("a a a b b b c d e f", 2) == "top_two_words"  # 30 % is not more than 30 %, 60 % is more than half
    assert reason("a a a b b c d e f g", 2) is None


def test_tag_reads_metadata_of_the_corpus(shared: Path) -> None:
    assert ONE.needs_metadata
    shard = documents.shards(str(shared / "data/corpus/code/part-00000.jsonl.zst"))[0]
    [read] = documents.read(shard, metadata=True)
    rows = ONE.tag(read, ONE.params(words="whitespace")).to_pylist()
    assert read.metadata is not None
    assert [row["code_stars"] for row in rows] == [json.loads(fields)["stars"] for fields in read.metadata.to_pylist()]
    for text, row in zip(read.text.to_pylist(), rows, strict=True):
        assert (row["code_top_word"], row["code_top_two_words"]) == shares(text.split())
