"""What a suite would have a model read, on real requests: the plan is near the fewest tokens possible, and far below one forward a request."""

from pathlib import Path

import pytest

from evalplane import planner
from evalplane.task import Suite, load_suite
from triplane.lm import prefix_tree
from triplane.tokenizer import Tokenizer

ITEMS = 40


@pytest.fixture(scope="module")
def tasks(shared: Path) -> tuple[Suite, Tokenizer, list[str]]:
    tokenizer = Tokenizer.load(str(shared / "data/tokenizer/allenai_dolma2.json"))
    return load_suite("olmes_core9"), tokenizer, [str(shared / "data/eval")]


def test_every_task_is_planned_near_the_fewest_tokens(tasks: tuple[Suite, Tokenizer, list[str]]) -> None:
    found = planner.tokens(*tasks, limit=ITEMS)
    assert len(found) == 18  # nine tasks in letters and in cloze form
    for name, one in found.items():
        assert one.fewest <= one.planned <= 1.1 * one.fewest, name
        assert one.planned < one.one_by_one / 4, name
    whole = sum(found.values(), planner.Tokens(0, 0, 0, 0))
    assert whole.over_fewest < 1.05 and whole.requests == sum(one.requests for one in found.values())


def test_the_bound_sees_a_prefix_that_is_not_shared(
    tasks: tuple[Suite, Tokenizer, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: no trunks."""
    monkeypatch.setattr(prefix_tree, "MIN_SAVED_TOKENS", 10**9)
    suite, *rest = tasks
    found = planner.tokens(Suite("one", suite.tasks[:1], "none"), *rest, limit=ITEMS)
    assert all(one.over_fewest > 2 for one in found.values())


def test_a_request_that_does_not_fit_is_not_counted(tasks: tuple[Suite, Tokenizer, list[str]]) -> None:
    suite, *rest = tasks
    found = planner.tokens(Suite("one", suite.tasks[:1], "none"), *rest, limit=2, max_length=100)
    assert [one.one_by_one for one in found.values()] == [0, 0] and found["arc_easy:mc"].requests == 8
