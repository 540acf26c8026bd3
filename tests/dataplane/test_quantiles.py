"""Thresholds of a share kept: equal to sorting everything, whatever the order and the parts, with ties kept."""

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane import quantiles
from dataplane.quantiles import Cut

FINITE = st.floats(allow_nan=False, allow_infinity=True)


def slow(scores: list[Any], weights: list[int], keep_top: tuple[int, int]) -> Cut:
    """The definition, for a share as a fraction of integers."""
    total = sum(weights)
    for value in sorted({score for score, weight in zip(scores, weights, strict=True) if weight}, reverse=True):
        kept = sum(weight for score, weight in zip(scores, weights, strict=True) if score >= value)
        if kept * keep_top[1] >= total * keep_top[0]:
            return Cut(value, kept, total)
    return Cut(None, 0, 0)


@given(
    st.lists(st.tuples(st.sampled_from([0.5, 0.25, -1.0, 0.0, -0.0, 1e-300, 7.0]) | FINITE, st.integers(0, 9))),
    st.integers(1, 100),
)
def test_in_memory_equals_the_definition(rows: list[tuple[float, int]], percent: int) -> None:
    scores, weights = [row[0] for row in rows], [row[1] for row in rows]
    found = quantiles.exact(np.array(scores, np.float64), np.array(weights, np.int64), percent / 100)
    assert found == slow(scores, weights, (percent, 100))


@given(st.lists(FINITE, min_size=2))
def test_bits_are_in_the_order_of_the_values_and_lead_back(values: list[float]) -> None:
    array = np.array(values)
    bits = quantiles.ordered_bits(array)
    assert ((bits[:, None] < bits) == (array[:, None] < array)).all() and (
        (bits[:, None] == bits) == (array[:, None] == array)
    ).all()
    assert [quantiles.value_of(int(one), True) for one in bits] == values
    assert quantiles.ordered_bits(np.array([-3, 5])).tolist() == [-3, 5] and quantiles.value_of(-3, False) == -3


def test_the_share_is_what_is_written() -> None:
    """0.07 of 100 is 7; in binary it is 7.000000000000001, which rounds up to 8."""
    assert 0.07 * 100 > 7
    assert [quantiles.needed(0.07, total) for total in (100, 99, 101, 10**18)] == [7, 7, 8, 7 * 10**16]
    assert quantiles.exact(np.arange(100.0), np.ones(100, np.int64), 0.07) == Cut(93.0, 7, 100)


def test_ties_at_the_threshold_are_kept() -> None:
    scores, ones = np.array([0.9, 0.5, 0.5, 0.5, 0.1]), np.ones(5, np.int64)
    assert quantiles.exact(scores, ones, 0.2) == Cut(0.9, 1, 5)
    assert quantiles.exact(scores, ones, 0.3) == Cut(0.5, 4, 5)
    assert quantiles.exact(scores, ones, 1.0) == Cut(0.1, 5, 5)
    assert quantiles.exact(scores, np.array([1, 1, 1, 1, 96]), 0.07) == Cut(
        0.1, 100, 100
    )  # by weight, not by documents


def spark_cut(
    session: Any, scores: list[Any], weights: list[int], keep_top: float, parts: int, kind: pa.DataType
) -> Cut:
    table = quantiles.with_bits(
        "score", pa.table({"score": pa.array(scores, kind), "weight": pa.array(weights, pa.int64())})
    )
    frame = session.createDataFrame(table.select(["bits", "weight"])).repartition(parts)
    return quantiles.cut(session, frame, keep_top, kind == pa.float64())


def test_spark_equals_sorting_in_any_order_and_parts(session: Any) -> None:
    draws = np.random.default_rng(5)
    # Two clouds of scores that differ only in their last bits, so that every pass is needed, and many ties.
    scores = [
        *(0.75 + draws.integers(0, 4000, 3000) * 2.0**-53).tolist(),
        *draws.normal(size=500).tolist(),
        *[0.5] * 300,
    ]
    weights = draws.integers(0, 5000, len(scores)).tolist()
    expected = slow(scores, weights, (7, 100))
    assert expected.value is not None and expected.value > 0.75
    assert spark_cut(session, scores, weights, 0.07, 1, pa.float64()) == expected
    rows = list(zip(scores, weights, strict=True))
    random.Random(1).shuffle(rows)
    assert spark_cut(session, *map(list, zip(*rows, strict=True)), 0.07, 5, pa.float64()) == expected  # type: ignore[arg-type]
    assert quantiles.exact(np.array(scores), np.array(weights), 0.07) == expected


def test_spark_takes_integers_and_leaves_out_what_is_no_number(session: Any) -> None:
    lengths = [5, 900, -(2**62), 2**62, 17]
    assert spark_cut(session, lengths, [1] * 5, 0.6, 2, pa.int64()) == Cut(17, 3, 5)
    broken = [0.9, None, float("nan"), 0.1]
    assert spark_cut(session, broken, [1, 5, 5, 1], 0.5, 2, pa.float64()) == Cut(0.9, 1, 2)
    assert spark_cut(session, [None, 0.5], [5, 0], 0.5, 1, pa.float64()) == Cut(None, 0, 0)


@pytest.mark.parametrize("value", [0.0, -2.5, 1e308, -5e-324])
def test_missing_scores_have_no_bits(value: float) -> None:
    table = quantiles.with_bits("s", pa.table({"s": pa.array([value, None, float("nan")])}))
    assert table.column("bits").to_pylist() == [quantiles.ordered_bits(np.array([value])).item(), None, None]
