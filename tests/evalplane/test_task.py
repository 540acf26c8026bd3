"""Task files and suites load, parametrise, and say what is wrong."""

import pytest

from evalplane.readers import READERS
from evalplane.rows import ROWS
from evalplane.task import SUITES, Score, Suites, load_suite, load_task, task_names
from triplane import recipe
from triplane.errors import UsageError
from triplane.lm.verifiers.grading import GRADERS


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


def test_olmes_settings() -> None:
    """reference/eval.md, A1."""
    arc, swag = load_task("arc_easy"), load_task("hellaswag")
    for task in (arc, swag):
        assert task.sample is not None and (task.sample.count, task.sample.seed) == (1000, 1234)
        assert task.shots is not None and task.shots.count == 5
        assert {name: format.metric for name, format in task.formats.items()} == {
            "mc": "acc_raw",
            "cloze": "acc_per_char",
        }


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
    assert (shown["num_items"], shown["num_overlong"], shown["num_shots_used"], shown["reason"]) == (10, 2, 0, "why")
