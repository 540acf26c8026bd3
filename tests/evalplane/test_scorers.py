"""Scores of answers chosen by hand, so that each metric prefers what it should."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalplane import formats, metrics, scorers
from evalplane import rows as rows_of
from evalplane.task import Format, Item, Loglikelihood, gold_format, load_task
from triplane.errors import Refused, TriplaneError
from triplane.lm.verifiers import worker

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


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1, max_size=8)


@st.composite
def answered(draw: st.DrawFn) -> tuple[list[Item], list[Loglikelihood], list[Loglikelihood]]:
    """Items with two to five choices, an answer for each with its context and for each after `Answer:` alone."""
    items = []
    for i in range(draw(st.integers(1, 5))):
        choices = tuple(draw(st.lists(TEXT, min_size=2, max_size=5)))
        items.append(Item(str(i), {"question": "?"}, choices, draw(st.integers(0, len(choices) - 1))))
    sums = st.sampled_from([-0.5, -1.0, -2.0, -3.5, -8.0, -20.0])
    n = sum(len(one.choices) for one in items)
    one = st.builds(Loglikelihood, sums, st.just(False), st.integers(1, 6))
    return items, draw(st.lists(one, min_size=n, max_size=n)), draw(st.lists(one, min_size=n, max_size=n))


def slow_reference(item: Item, asked: list[Loglikelihood], alone: list[Loglikelihood]) -> dict[str, float]:
    """olmes' MCAccuracy, one choice after the other: a later one wins only when it is better."""
    keys = {
        "acc_raw": lambda text, one, other: one.total,
        "acc_per_char": lambda text, one, other: one.total / len(text),
        "acc_per_token": lambda text, one, other: one.total / one.num_tokens,
        "acc_per_byte": lambda text, one, other: one.total / len(text.encode("utf-8")),
        "acc_uncond": lambda text, one, other: one.total - other.total,
    }
    texts = [" " + choice for choice in item.choices]
    found = {}
    for name, key in keys.items():
        best = 0
        for i in range(len(texts)):
            if key(texts[i], asked[i], alone[i]) > key(texts[best], asked[best], alone[best]):
                best = i
        found[name] = float(best == item.gold)
    gold = item.gold or 0
    found["gold_bits_per_byte"] = -1.44269504089 * asked[gold].total / len(texts[gold].encode("utf-8"))
    return found


@given(answered())
def test_every_choice_metric_is_the_slow_reference(
    case: tuple[list[Item], list[Loglikelihood], list[Loglikelihood]],
) -> None:
    items, asked, alone = case
    cloze = load_task("arc_easy").formats["cloze"].model_copy(update={"unconditioned": "Answer:"})
    table = scorers.choice_rows(cloze, items, formats.requests(cloze, items, []), [*asked, *alone])
    values = scorers.item_values(cloze, table)
    at = 0
    for i, item in enumerate(items):
        n = len(item.choices)
        expected = slow_reference(item, asked[at : at + n], alone[at : at + n])
        assert {name: of[i] for name, of in values.items()} == pytest.approx(expected, rel=1e-9)
        at += n


def test_unconditioned_sums_are_subtracted_not_divided() -> None:
    """The in-loop evaluator divides: -6/-2 = 3 would beat -3/-2 = 1.5, and lose to it the right way round."""
    cloze = load_task("arc_challenge").formats["cloze"]
    item = Item("x", {"question": "?"}, ("a", "b"), 1)
    results = [Loglikelihood(total, False, 1) for total in (-6.0, -3.0, -2.0, -2.0)]
    table = scorers.choice_rows(cloze, [item], formats.requests(cloze, [item], []), results)
    assert table["chosen_acc_uncond"].to_pylist() == [1]


def test_partial_scoring_compares_the_same_text_after_two_contexts() -> None:
    row = {"index": 0, "sentence": "A fell as _ was wet.", "option1": "it", "option2": "the cup", "answer": "2"}
    format, item = load_task("winogrande").formats["cloze"], rows_of.winogrande(row)
    results = [Loglikelihood(-4.0, False, 3), Loglikelihood(-3.0, False, 3)]
    table = scorers.choice_rows(format, [item], formats.requests(format, [item], []), results)
    assert scorers.score(format, table, 0, None).value == 1.0
    assert table["gold_bits_per_byte"].to_pylist() == [pytest.approx(3 / math.log(2) / len(" was wet."))]


def of_parts(*rights: tuple[str, int, int]) -> tuple[list[Item], list[Loglikelihood]]:
    """Items of parts with the first `right` of `n` answered rightly."""
    items = [
        Item(f"{part}{i}", {"question": "?", "subject": part}, ("a", "b"), 0, part=part)
        for part, n, _ in rights
        for i in range(n)
    ]
    sums = [(-1.0, -2.0) if i < right else (-2.0, -1.0) for _, n, right in rights for i in range(n)]
    return items, [Loglikelihood(total, False, 1) for pair in sums for total in pair]


def test_mmlu_is_the_mean_of_subjects_and_mmlu_pro_of_questions() -> None:
    items, results = of_parts(("x", 10, 10), ("y", 2, 0), ("z", 4, 1))
    for name, value in (("mmlu", (1.0 + 0.0 + 0.25) / 3), ("mmlu_pro", 11 / 16)):
        format = load_task(name).formats["mc"]
        table = scorers.choice_rows(format, items, formats.requests(format, items, []), results)
        found = scorers.score(format, table, 0, None)
        assert found.value == pytest.approx(value)
        shown = found.to_json()["by_part"]
        assert isinstance(shown, dict) and {part: one["value"] for part, one in shown.items()} == {
            "x": 1.0,
            "y": 0.0,
            "z": 0.25,
        }
        assert [one["num_items"] for one in shown.values()] == [10, 2, 4]
    z = math.sqrt(0.25 * 0.75 / 3)
    mmlu = load_task("mmlu").formats["mc"]
    table = scorers.choice_rows(mmlu, items, formats.requests(mmlu, items, []), results)
    assert scorers.score(mmlu, table, 0, None).metrics["acc_raw"]["stderr"] == pytest.approx(z / 3)


def test_gold_bits_per_byte_are_averaged_over_items() -> None:
    format = gold_format(load_task("natural_questions"))
    items = [
        Item(str(i), {"question": "?", "joined": "x"}, answers=(text,)) for i, text in enumerate(("é", "abc", "d"))
    ]
    results = [Loglikelihood(-3 * math.log(2), False, 1), Loglikelihood(-8 * math.log(2), False, 2), None]
    table = scorers.loglikelihood_rows(format, items, formats.requests(format, items, []), results)
    assert table["bytes"].to_pylist() == [3, 4, None]  # the joining space counts
    found = scorers.score(format, table, 0, None)
    assert (found.value, found.num_items, found.num_overlong) == (pytest.approx((1 + 2) / 2), 2, 1)
    assert not scorers.is_larger_better(format)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["arc_easy:mc", "arc_easy:bpb", "held_out_bits_per_byte"])
def test_a_log_likelihood_that_is_not_a_number_has_no_score(name: str, value: float) -> None:
    task = load_task(name)
    (format,) = task.formats.values()
    item = Item("odd", {"question": "?", "text": "t", "source": "s"}, ("a", "b"), 0)
    asked = formats.requests(format, [item], [])
    with pytest.raises(TriplaneError, match=r"item odd came back with a log-likelihood of .* no score"):
        scorers.loglikelihood_rows(format, [item], asked, [Loglikelihood(value, False, 1)] * len(asked))


def test_a_generated_answer_is_judged_by_its_task() -> None:
    def values(name: str, item: Item, answer: str) -> dict[str, object]:
        format = load_task(name).formats["generate"]
        table = scorers.answer_rows(format, [item], [answer])
        found = scorers.score(format, table, 0, None)
        return {key: of["value"] for key, of in found.metrics.items()} | {"extracted": table["extracted"][0].as_py()}

    sum_of = Item("1", {"question": "?", "solution": "s"}, answers=("1,234",))
    assert values("gsm8k", sum_of, " So it is $1,234.") == {"exact_match": 1.0, "extracted": "1234"}
    spans = Item("1", {"question": "?", "passage": "p"}, answers=("red, blue",), spans=(("red", "blue"), ("red",)))
    assert values("drop", spans, " red") == {"f1": 1.0, "exact_match": 1.0, "extracted": "red"}
    alias = Item("1", {"question": "?", "value": "v"}, answers=("Sunset Boulevard", "Sunset Blvd"))
    assert values("triviaqa", alias, " The sunset blvd.")["f1"] == 1.0
    part = load_task("bbh").data.part_fields["snarks"]
    snark = Item("1", {"question": "?", **part}, answers=("(B)",), part="snarks")
    assert values("bbh", snark, "Thus (A)... So the answer is (B).") == {"exact_match": 1.0, "extracted": "(B)"}


def test_a_text_that_cannot_be_judged_is_wrong_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.grade, "__defaults__", (worker.Limits(0.5),))
    format = load_task("bbh").formats["generate"]
    endless = Item("1", {"question": "?", "pattern": "(?:a+)+b"}, answers=("ab",), part="x")
    table = scorers.answer_rows(format, [endless, endless], ["a" * 60 + "!", "so the answer is ab."])
    assert table["failure"].to_pylist() == ["time", None]
    found = scorers.score(format, table, 3, "said before")
    assert found.value == 0.5
    assert (
        found.reason
        == "said before; 1 answers could not be judged within the limits of time and memory and count as wrong"
    )


def test_the_better_format_counts_with_an_interval_from_paired_items() -> None:
    task = load_task("arc_easy")
    items, right = of_parts(*[("", 40, 30)])
    _, other = of_parts(*[("", 40, 29)])
    tables, scores = {}, {}
    for key, results in (("mc", right), ("cloze", other)):
        format = task.formats[key]
        tables[key] = scorers.choice_rows(format, items, formats.requests(format, items, []), results)
        scores[key] = scorers.score(format, tables[key], 5, None)
    best = scorers.best_of(task, tables, scores)
    differences = np.array([0.0] * 29 + [1.0] + [0.0] * 10)  # the formats differ on one item
    excess = differences.std(ddof=1) / math.sqrt(40) / math.sqrt(2 * math.pi)
    error = scores["mc"].metrics["acc_raw"]["stderr"]
    assert best.name == "mc" and best.interval is not None and error is not None
    assert best.excess == pytest.approx(excess)
    low, high = metrics.interval(0.75, error, 0.0, 40)
    assert best.interval == pytest.approx((low - excess, high), abs=1e-9)
