"""Scores of answers chosen by hand, so that each metric prefers what it should."""

import math

import pytest

from evalplane import formats, scorers
from evalplane.task import Format, Item, Loglikelihood, load_task
from triplane.errors import Refused

# Continuations: " aa" (3 characters, 3 bytes), " éééé" (5 characters, 9 bytes), " bbbbbbbbb" (10 and 10).
ITEM = Item("x", {"question": "?"}, ("aa", "éééé", "bbbbbbbbb"), gold=1)


@pytest.fixture
def cloze() -> Format:
    return load_task("arc_easy").formats["cloze"].model_copy(update={"unconditioned": "Answer:"})


def rows(format: Format, items: list[Item], results: list[Loglikelihood | None]) -> dict[str, list[object]]:
    return scorers.choice_rows(format, items, formats.requests(format, items, []), results).to_pydict()


def test_each_metric_divides_by_its_own_length(cloze: Format) -> None:
    sums, tokens, alone = (-6.0, -9.0, -15.0), (1, 3, 9), (-1.0, -20.0, -1.0)
    results = [Loglikelihood(s, False, n) for s, n in zip(sums, tokens, strict=True)]
    results += [Loglikelihood(s, False, n) for s, n in zip(alone, tokens, strict=True)]
    found = rows(cloze, [ITEM], [*results])
    assert found["chosen_acc_raw"] == [0]  # -6
    assert found["chosen_acc_per_char"] == [2]  # -2, -1.8, -1.5
    assert found["chosen_acc_per_token"] == [2]  # -6, -3, -1.67
    assert found["chosen_acc_per_byte"] == [1]  # -2, -1, -1.5
    assert found["chosen_acc_uncond"] == [1]  # -5, 11, -14
    assert found["gold_bits_per_byte"] == [pytest.approx(9 / math.log(2) / 9)]


def test_accuracy_is_over_items_and_equals_go_to_the_first(cloze: Format) -> None:
    plain = cloze.model_copy(update={"unconditioned": None})
    items = [ITEM, Item("y", {"question": "?"}, ("aa", "bb"), gold=0)]
    results = [Loglikelihood(s, False, 1) for s in (-6.0, -9.0, -15.0, -1.0, -1.0)]
    table = scorers.choice_rows(plain, items, formats.requests(plain, items, []), results)
    score = scorers.score(plain, table, 5, None)
    assert score.metrics["acc_raw"] == {"value": 0.5, "stderr": pytest.approx(0.5)}
    assert "acc_uncond" not in score.metrics
    assert (score.metric, score.num_items, score.num_shots_used) == ("acc_per_char", 2, 5)


def test_items_that_do_not_fit_are_counted_and_not_scored(cloze: Format) -> None:
    plain = cloze.model_copy(update={"unconditioned": None})
    items = [ITEM, Item("y", {"question": "?"}, ("aa", "bb"), gold=0)]
    table = scorers.choice_rows(
        plain,
        items,
        formats.requests(plain, items, []),
        [
            Loglikelihood(-1.0, False, 1),
            None,
            Loglikelihood(-1.0, False, 1),
            Loglikelihood(-1.0, False, 1),
            Loglikelihood(-2.0, False, 1),
        ],
    )
    score = scorers.score(plain, table, 0, None)
    assert (score.num_items, score.num_overlong, score.value) == (1, 1, 1.0)
    assert table.to_pylist()[0]["loglikelihoods"] is None


def test_nothing_scored_is_an_error_and_not_zero(cloze: Format) -> None:
    plain = cloze.model_copy(update={"unconditioned": None})
    table = scorers.choice_rows(plain, [ITEM], formats.requests(plain, [ITEM], []), [None, None, None])
    with pytest.raises(Refused, match="none of 1 items fits"):
        scorers.score(plain, table, 0, None)


def test_acc_uncond_without_its_requests_is_refused(cloze: Format) -> None:
    plain = cloze.model_copy(update={"unconditioned": None, "metric": "acc_uncond"})
    results = [Loglikelihood(-1.0, False, 1)] * 3
    table = scorers.choice_rows(plain, [ITEM], formats.requests(plain, [ITEM], []), results)
    with pytest.raises(Refused, match="acc_uncond needs `unconditioned`"):
        scorers.score(plain, table, 0, None)


def test_answers_match_after_strip_and_are_kept_as_they_came() -> None:
    items = [Item(str(i), {"question": "7+5=\n"}, answers=("7+5=12",)) for i in range(4)]
    table = scorers.answer_rows(load_task("arithmetic").formats["generate"], items, [" 7+5=12 ", "7+5=13", "", None])
    assert table["answer"].to_pylist() == [" 7+5=12 ", "7+5=13", "", None]
    assert table["correct"].to_pylist() == [True, False, False, None]
    score = scorers.score(load_task("arithmetic").formats["generate"], table, 0, None)
    assert (score.value, score.num_items, score.num_overlong) == (pytest.approx(1 / 3), 3, 1)


@pytest.mark.parametrize("answer", ["__import__('os')", "6*2", "1e309"])
def test_an_answer_is_text_and_never_run(answer: str) -> None:
    format = load_task("arithmetic").formats["generate"]
    table = scorers.answer_rows(format, [Item("1", {"question": "?"}, answers=("12",))], [answer])
    assert table["correct"].to_pylist() == [False]


def test_bits_per_byte_by_source() -> None:
    texts = [("web", "abcd"), ("code", "é"), ("web", "ab")]
    items = [Item(str(i), {"source": source, "text": text}) for i, (source, text) in enumerate(texts)]
    table = scorers.document_rows(
        items, [Loglikelihood(-math.log(2) * bits, False, n) for bits, n in ((8, 4), (3, 1), (1, 2))]
    )
    assert table["bytes"].to_pylist() == [4, 2, 2]
    assert table["bits"].to_pylist() == pytest.approx([8, 3, 1])
    score = scorers.score(load_task("held_out_bits_per_byte").formats["bits_per_byte"], table, 0, None)
    assert score.value == pytest.approx(12 / 8)
    assert score.groups["web"]["value"] == pytest.approx(9 / 6)
    assert (score.groups["code"]["value"], score.groups["code"]["stderr"]) == (pytest.approx(3 / 2), None)
    assert list(score.groups) == ["web", "code"]
