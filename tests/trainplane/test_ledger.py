"""Rows are JSON lines that come back as they went, and NaN is never recorded."""

import math

import pytest

from trainplane.ledger import Ledger, from_jsonl, to_jsonl

ROWS = [
    {"step": 1, "loss": 0.1 + 0.2, "tokens_by_source": {"web": 3}, "update_norm": None},
    {"step": 2, "loss": 1e-300},
]


def test_rows_survive_bit_for_bit() -> None:
    assert from_jsonl(to_jsonl(ROWS)) == ROWS
    assert to_jsonl([]) == b"" and from_jsonl(b"") == []


def test_equal_rows_give_equal_bytes_whatever_the_order_of_keys() -> None:
    assert to_jsonl([{"a": 1, "b": 2}]) == to_jsonl([{"b": 2, "a": 1}])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_not_recorded(value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        to_jsonl([{"step": 1, "loss": value}])


def test_pending_rows_are_taken_once() -> None:
    ledger = Ledger()
    for row in ROWS:
        ledger.add(row)
    assert ledger.take() == ROWS
    assert ledger.take() == []
