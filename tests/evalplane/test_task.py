"""Task files and suites load, parametrise, and say what is wrong."""

import pytest

from evalplane.readers import READERS
from evalplane.rows import ROWS
from evalplane.task import SUITES, Score, Suites, load_suite, load_task, task_names
from triplane import recipe
from triplane.errors import UsageError
from triplane.lm.verifiers.grading import GRADERS
from triplane.lm.verifiers.patterns import CHOICE


@pytest.mark.parametrize("name", task_names())
def test_every_task_file_is_a_task(name: str) -> None:
    task = load_task(name)
    assert task.name == name
    assert {one.rows for one in task.data.sources} <= set(ROWS)
    assert {one.format for one in task.data.sources} <= set(READERS)
    assert task.shots is None or {task.shots.rows, *(one.rows for one in task.shots.also)} <= set(ROWS)
    assert {format.grader for format in task.formats.values()} <= set(GRADERS)


@pytest.mark.parametrize("name", sorted(recipe.load(SUITES, Suites).suites))
def test_every_suite_names_tasks(name: str) -> None:
    suite = load_suite(name)
    assert suite.tasks
    assert suite.aggregation in {"mean", "none"}


CLOZE_METRIC = {
    **dict.fromkeys(("arc_challenge", "csqa", "openbookqa"), "acc_uncond"),
    **dict.fromkeys(("arc_easy", "hellaswag", "piqa", "socialiqa", "mmlu"), "acc_per_char"),
    **dict.fromkeys(("boolq", "winogrande"), "acc_raw"),
}
SAMPLED = {"arc_easy", "boolq", "hellaswag", "piqa", "socialiqa", "natural_questions", "drop", "squad"}


@pytest.mark.parametrize("name", CLOZE_METRIC)
def test_olmes_multiple_choice(name: str) -> None:
    """reference/eval.md, A1: letters by the sum, cloze by the task's own normalisation, five shots, unconditioned only where it counts."""
    task = load_task(name)
    assert {key: format.metric for key, format in task.formats.items()} == {
        "mc": "acc_raw",
        "cloze": CLOZE_METRIC[name],
    }
    assert task.shots is not None and task.shots.count == 5
    alone = task.formats["cloze"].unconditioned
    assert alone == ("Answer:" if CLOZE_METRIC[name] == "acc_uncond" else None)
    assert task.formats["mc"].unconditioned is None
    assert (task.formats["cloze"].description != "") == (name == "mmlu")


@pytest.mark.parametrize("name", sorted(set(task_names()) - {"gsm8k_star"}))
def test_what_is_sampled(name: str) -> None:
    sample = load_task(name).sample
    assert (sample and (sample.count, sample.seed)) == ((1000, 1234) if name in SAMPLED else None)


@pytest.mark.parametrize(
    ("name", "shots", "metric", "grader", "max_new_tokens", "stop"),
    [
        ("natural_questions", 5, "f1", "drop", 50, ["Question:", "Q:", "\n\n"]),
        ("drop", 5, "f1", "drop", 100, ["Passage:", "Question:", "\n\n"]),
        ("squad", 5, "f1", "squad", 50, ["Title:", "\n\n"]),
        ("coqa", 0, "f1", "squad", 50, ["\n\n"]),
        ("jeopardy", 5, "f1", "squad", 50, ["\n\n", "Question:", "Category:"]),
        ("triviaqa", 5, "f1", "squad", 50, ["\n\n"]),
        ("gsm8k", 8, "exact_match", "last_number", 512, ["Question:", "</s>", "<|im_end|>", "\n\n"]),
        ("bbh", 3, "exact_match", "pattern", 512, ["\n\n"]),
    ],
)
def test_olmes_generated(name: str, shots: int, metric: str, grader: str, max_new_tokens: int, stop: list[str]) -> None:
    """reference/eval.md, A2."""
    task = load_task(name)
    format = task.formats["generate"]
    assert (task.shots.count if task.shots else 0) == shots
    assert (format.metric, format.grader, format.max_new_tokens, list(format.stop)) == (
        metric,
        grader,
        max_new_tokens,
        stop,
    )


def test_only_dyck_words_keep_their_punctuation() -> None:
    fields = load_task("bbh").data.part_fields
    assert [part for part, of in fields.items() if "keep_punctuation" in of] == ["dyck_languages"]
    assert sum(of["pattern"] == CHOICE for of in fields.values()) == 17


def test_overrides_reach_their_task() -> None:
    suite = load_suite(
        "demo", ["arithmetic.data.path=[s3://b/items.jsonl]", "arithmetic.formats.generate.max_new_tokens=8"]
    )
    assert suite.tasks[0].data.path == ("s3://b/items.jsonl",)
    assert suite.tasks[0].formats["generate"].max_new_tokens == 8
    assert suite.tasks[1] == load_task("held_out_bits_per_byte")


def test_a_task_is_a_suite_of_one() -> None:
    assert [task.name for task in load_suite("arc_easy").tasks] == ["arc_easy"]


def test_wrong_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'hellaswag'"):
        load_suite("helaswag")
    with pytest.raises(UsageError, match="did you mean 'arc_easy'"):
        load_task("arc_esay")
    with pytest.raises(UsageError, match=r"not TASK.KEY=VALUE"):
        load_suite("demo", ["data.path=[x]"])


def test_score_json_has_the_counting_metric_on_top() -> None:
    metrics = {"acc_raw": {"value": 0.5, "stderr": 0.1}, "acc_per_char": {"value": 0.7, "stderr": 0.2}}
    shown = Score("acc_per_char", metrics, 10, 2, 0, "why").to_json()
    assert (shown["value"], shown["stderr"], shown["metric"]) == (0.7, 0.2, "acc_per_char")
    assert "by_part" not in shown
    assert (shown["num_items"], shown["num_overlong"], shown["num_shots_used"], shown["reason"]) == (10, 2, 0, "why")
