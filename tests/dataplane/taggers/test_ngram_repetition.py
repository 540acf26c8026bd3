"""The repeated n-gram rule as OLMo 2 states it, with its tokenizer, on documents made to be just above and just below it."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dataplane import documents, tagger
from dataplane.taggers.table import TAGGERS
from triplane.errors import TriplaneError

ONE = TAGGERS["ngram_repetition"]


@pytest.fixture(scope="module")
def params(shared: Path) -> Any:
    return ONE.params(tokenizer=str(shared / "data/tokenizer/allenai_dolma2.json"))


def test_planted_repeats_are_found_and_31_are_not(shared: Path, params: Any) -> None:
    """Of the shared defects file: all 39 repeats of 32 and more, the 4 of symbols, none of the 13 with 31, none of the 60 controls."""
    flagged: dict[str, list[bool]] = defaultdict(list)
    for batch in documents.read(
        documents.shards(str(shared / "data/corpus/defects/part-00000.jsonl.zst"))[0], metadata=True
    ):
        assert batch.metadata is not None
        rows = ONE.tag(batch, params).to_pylist()
        for row, metadata in zip(rows, batch.metadata.to_pylist(), strict=True):
            flagged[json.loads(metadata)["defect"]].append(tagger.first_match(ONE.rules, row) == "ngram_repeat")
    counts = {defect: (sum(values), len(values)) for defect, values in flagged.items()}
    assert counts["ngram_repeat"] == (39, 39)
    assert counts["ngram_repeat_symbols"] == (4, 4)
    assert counts["ngram_repeat_below_32"] == (0, 13)
    assert counts["none"] == (0, 60)


def test_columns_of_small_texts(params: Any) -> None:
    texts = ["", "word", "and the" + " and the" * 31, "and the" + " and the" * 30, "a b c"]
    columns = ONE.tag(documents.make_batch(range(5), ["x"] * 5, texts), params)
    assert columns.schema == pa.schema([(name, pa.int64()) for name in columns.schema.names])
    rows = columns.to_pylist()
    assert [row["ngram_repeat_times"] for row in rows] == [
        0,
        1,
        31,
        30,
        1,
    ]  # the first "and" is another token than " and"
    assert rows[2]["ngram_repeat_period"] == 2
    assert [row["token_count"] for row in rows] == [0, 1, 64, 62, 3]
    assert ONE.rules[0].sql() == "ngram_repeat_times >= 32"
    assert ONE.tag(documents.make_batch([], [], []), params).num_rows == 0


def test_a_missing_tokenizer_is_an_error_not_a_zero(tmp_path: Path) -> None:
    with pytest.raises(TriplaneError):
        ONE.tag(documents.make_batch([0], ["x"], ["y"]), ONE.params(tokenizer=str(tmp_path / "none.json")))
