"""Columns at a time decide what one document at a time decides: the first reason that holds, and nothing unjudged."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane import judgement
from dataplane.tagger import Rule

FLOATS = st.sampled_from([None, float("nan"), float("inf"), -1.0, 0.0, 0.25, 0.5, 0.1 + 0.2, 1e300])
INTEGERS = st.sampled_from([None, -1, 0, 3, 2**62])
ROWS = st.lists(st.tuples(st.sampled_from([None, "blank_line"]), st.integers(0, 2), FLOATS, INTEGERS), max_size=12)
RULES = st.lists(
    st.builds(
        lambda op, pair: Rule(f"{pair[0]}{op}{pair[1]}", pair[0], op, pair[1]),
        st.sampled_from(["<", "<=", ">", ">=", "="]),
        st.sampled_from([("score", 0.5), ("score", 0.3), ("words", 3), ("words", 2.5)]),
    ),
    max_size=4,
)


def table(rows: list[tuple[str | None, int, float | None, int | None]]) -> pa.Table:
    quarantine, sizes, scores, words = ([row[k] for row in rows] for k in range(4))
    columns = {
        "row": pa.array(range(len(rows)), pa.int64()),
        "quarantine": pa.array(quarantine, pa.string()),
        "text_bytes": pa.array(sizes, pa.int64()),
        "token_count": pa.array([1] * len(rows), pa.int64()),
        "score": pa.array(scores, pa.float64()),
        "words": pa.array(words, pa.int64()),
    }
    return pa.table(columns)


@given(ROWS, RULES)
def test_columns_decide_as_documents_do(
    rows: list[tuple[str | None, int, float | None, int | None]], rules: list[Rule]
) -> None:
    held = table(rows)
    found = judgement.judge(held, rules)
    expected = [row[0] or judgement.first_reason(rules, {"score": row[2], "words": row[3]}, row[1]) for row in rows]
    assert found.reasons(held.column("quarantine")).to_pylist() == expected
    decisions = [
        "quarantined" if row[0] else "drop" if reason else "keep" for row, reason in zip(rows, expected, strict=True)
    ]
    assert found.decisions().to_pylist() == decisions
    assert found.kept.tolist() == [decision == "keep" for decision in decisions]


def test_what_edits_left_nothing_of_is_empty() -> None:
    """Its bytes are those that were read; kept, it would be an end-of-text token alone."""
    held = table([(None, 9, 0.9, 1), (None, 9, 0.9, 1), (None, 0, 0.9, 1), ("blank_line", 0, None, None)])
    tokens = pa.array([1, 0, 0, None], pa.int64())
    held = held.set_column(held.schema.get_field_index("token_count"), "token_count", tokens)
    found = judgement.judge(held, [Rule("low", "score", "<", 0.5)])
    assert found.reasons(held.column("quarantine")).to_pylist() == [None, "empty", "empty", "blank_line"]


def test_a_later_reason_takes_only_what_is_kept() -> None:
    held = table([(None, 1, 0.1, 1), (None, 1, 0.9, 1), ("blank_line", 1, None, None)])
    found = judgement.judge(held, [Rule("low", "score", "<", 0.5)]).drop("late", held.column("row").to_numpy() >= 0)
    assert found.reasons(held.column("quarantine")).to_pylist() == ["low", "late", "blank_line"]


def test_single_precision_is_compared_in_double() -> None:
    """In 32 bits 0.1 is not below 0.1; as the number that is stored it is above."""
    held = table([(None, 1, 0.0, 1)]).drop_columns("score").append_column("score", pa.array([0.1], pa.float32()))
    assert judgement.judge(held, [Rule("high", "score", ">", 0.1)]).kept.tolist() == [False]


@pytest.mark.parametrize("op", ["<", "<=", ">", ">=", "="])
def test_no_comparison_keeps_what_is_no_number(op: str) -> None:
    held = table([(None, 1, float("nan"), 1), (None, 1, None, 1)])
    found = judgement.judge(held, [Rule("rule", "score", op, 0.5)])  # type: ignore[arg-type]
    assert found.reasons(held.column("quarantine")).to_pylist() == ["unscored_score"] * 2
