"""The repeated n-gram rule: its edges by hand, and the kernel against OLMo's algorithm and a slow reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triplane.repetition import instance_is_repetitive, longest_repeats


def one(ids: list[int] | np.ndarray) -> tuple[int, int]:
    times, period = longest_repeats(np.asarray(ids, np.uint32), np.array([0, len(ids)]))
    return int(times[0]), int(period[0])


def slow_times(ids: list[int], max_period: int = 13) -> int:
    """For every period, start and end: how many whole n-grams the stretch holds, if it is periodic."""
    best = 1 if ids else 0
    for period in range(1, max_period + 1):
        for start in range(len(ids)):
            end = start + period
            while end < len(ids) and ids[end] == ids[end - period]:
                end += 1
            if end <= len(ids):
                best = max(best, (end - start) // period)
    return best


def distinct(n: int, first: int = 1000) -> list[int]:
    return list(range(first, first + n))


@pytest.mark.parametrize("count", [31, 32, 33])
@pytest.mark.parametrize("period", [1, 2, 5, 13])
def test_counts_exactly_at_the_threshold(count: int, period: int) -> None:
    ids = distinct(7) + list(range(period)) * count + distinct(9, 5000)
    assert one(ids) == (count, period)
    assert instance_is_repetitive(np.array([ids], np.uint32)).tolist() == [count >= 32]


def test_an_n_gram_of_fourteen_tokens_is_not_looked_for() -> None:
    assert one(list(range(14)) * 40) == (1, 0)
    assert instance_is_repetitive(np.array([list(range(14)) * 40], np.uint32)).tolist() == [False]
    assert longest_repeats(np.array(list(range(14)) * 40, np.uint32), np.array([0, 560]), max_period=14)[0][0] == 40


def test_offset_and_tail_need_not_align_with_the_period() -> None:
    for shift in range(6):
        ids = distinct(shift) + [7, 8, 9, 10, 11] * 31 + [7, 8, 9, 10]
        assert one(ids) == (31, 5)
        assert one([*ids, 11]) == (32, 5)


def test_a_run_of_one_token_counts_as_period_one() -> None:
    assert one([4] * 64) == (64, 1)
    assert instance_is_repetitive(np.full((2, 31), 4, np.uint32)).tolist() == [False, False]
    assert instance_is_repetitive(np.full((2, 32), 4, np.uint32)).tolist() == [True, True]


def test_empty_single_and_unrepeated_documents() -> None:
    ids = np.array([5, 1, 2, 3, 9, 9], np.uint32)
    times, periods = longest_repeats(ids, np.array([0, 0, 1, 4, 6]))
    assert times.tolist() == [0, 1, 1, 2]
    assert periods.tolist() == [0, 0, 0, 1]
    assert longest_repeats(ids[:0], np.array([0]))[0].tolist() == []


def test_documents_do_not_leak_into_each_other() -> None:
    ids = np.full(60, 3, np.uint32)
    assert longest_repeats(ids, np.array([0, 31, 60]))[0].tolist() == [31, 29]


small = st.lists(st.integers(0, 2), max_size=60)
planted = st.builds(
    lambda head, unit, count, rest, tail: head + unit * count + unit[:rest] + tail,
    st.lists(st.integers(0, 9), max_size=20),
    st.lists(st.integers(0, 5), min_size=1, max_size=14),
    st.integers(1, 36),
    st.integers(0, 13),
    st.lists(st.integers(0, 9), max_size=20),
)


@given(st.one_of(small, planted))
def test_equals_the_slow_reference(ids: list[int]) -> None:
    times, period = one(ids)
    assert times == slow_times(ids)
    assert bool(instance_is_repetitive(np.array([ids], np.uint32))[0]) == (times >= 32)
    if period:
        assert slow_times(ids, period) == times and (period == 1 or slow_times(ids, period - 1) < times)


@given(st.lists(st.one_of(small, planted), max_size=5))
def test_equals_olmo_wherever_olmo_reports(documents: list[list[int]]) -> None:
    utils = pytest.importorskip("olmo_core.data.utils")
    ids = np.array([token for document in documents for token in document], np.uint32)
    offsets = np.cumsum([0, *(len(document) for document in documents)])
    times, _ = longest_repeats(ids, offsets)
    for document, ours in zip(documents, times.tolist(), strict=True):
        array = np.array(document, np.int64)
        theirs = max((found.times for found in utils.find_periodic_sequences(array, 13)), default=0)
        assert theirs == (ours if ours > 2 else 0)
