"""The generated problems: right answers, words and pairs split as the score claims."""

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.demo_arithmetic import (
    HELD_OUT_WORDS,
    NAMES,
    NOUNS,
    Problem,
    evaluation_items,
    number_lines,
    split_words,
    training_problems,
)


def test_a_problem_is_spelt_as_the_tokenizer_and_the_task_expect() -> None:
    problem = Problem("Tom", "apples", 7, 5)
    assert problem.question == "Tom has 7 apples and gets 5 more. How many now?\n"
    assert problem.answer == "7+5=12"


@given(seed=st.integers(0, 2**31))
def test_evaluation_shares_no_name_and_no_noun_with_training(seed: int) -> None:
    trained_names, held_names = split_words(NAMES, seed)
    trained_nouns, held_nouns = split_words(NOUNS, seed)
    assert len(held_names) == len(held_nouns) == HELD_OUT_WORDS
    assert {problem.name for problem in training_problems(300, seed)} <= set(trained_names)
    for item in evaluation_items(256, seed):
        words = item["question"].split()
        assert words[0] in held_names and words[3] in held_nouns
        assert words[0] not in trained_names and words[3] not in trained_nouns


def test_evaluation_items_are_distinct_right_and_cover_every_pair() -> None:
    items = evaluation_items(256, seed=3)
    assert len({item["id"] for item in items}) == len({item["question"] for item in items}) == 256
    pairs = collections.Counter()
    for item in items:
        words = item["question"].split()
        first, second = int(words[2]), int(words[6])
        assert item["answer"] == f"{first}+{second}={first + second}"
        pairs[first, second] += 1
    assert len(pairs) == 144 and set(pairs.values()) <= {1, 2}


def test_the_same_seed_gives_the_same_problems_and_another_seed_others() -> None:
    assert list(training_problems(50, 1)) == list(training_problems(50, 1)) != list(training_problems(50, 2))
    assert evaluation_items(200, 1) == evaluation_items(200, 1) != evaluation_items(200, 2)


def test_names_and_nouns_are_distinct_words() -> None:
    assert len(set(NAMES)) == len(NAMES) == 123 and len(set(NOUNS)) == len(NOUNS) == 123
    assert all(word.isalpha() for word in NAMES + NOUNS)


def test_more_items_than_combinations_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than population"):
        evaluation_items(HELD_OUT_WORDS**2 + 1, seed=0)


def test_number_lines_hold_every_number() -> None:
    assert number_lines(2) == [" ".join(map(str, range(41)))] * 2
