"""The state of a run is read from what it committed, finished or not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainplane.test_run import Killed, interrupted, kill_at
from trainplane import plan as plans
from trainplane import run as runs
from trainplane import status
from trainplane.recipe import RunRecipe
from triplane.errors import NotFound, UsageError

MakeRecipe = Callable[..., RunRecipe]
BATCH = 8 * 48


def test_a_finished_run(root: str, make_recipe: MakeRecipe) -> None:
    made = runs.train(make_recipe(), root)
    found = status.status(root, "run/tiny")
    assert (found["run"], found["finished"], found["step"], found["percent"]) == (made.reference, True, 12, 100.0)
    assert found["loss"] == made.ledger[-1]["loss"] and found["missing_steps"] == [] and found["world_sizes"] == [1]
    assert sum(found["tokens_by_source"].values()) == 12 * BATCH
    assert set(found["spike_scores"]) == {
        "loss_paper_7s_1000", "grad_norm_paper_7s_1000", "loss_core_6s_128", "grad_norm_core_6s_128",
    }  # fmt: skip


def test_a_run_on_its_way_is_found_by_name(root: str, make_recipe: MakeRecipe) -> None:
    plan = interrupted(make_recipe(), root, 6)
    found = status.status(root, "run/tiny")
    assert (found["run"], found["finished"], found["step"], found["percent"]) == (plan.draft.reference, False, 4, 33.3)


def test_names_that_do_not_say_which(root: str, make_recipe: MakeRecipe) -> None:
    interrupted(make_recipe(), root, 6)
    with pytest.raises(Killed):
        runs.execute(plans.plan(make_recipe(z_loss=2e-4), root, "fresh"), kill_at(6))
    with pytest.raises(UsageError, match=r"begun more than once: name one of run/tiny@.*, run/tiny@"):
        status.status(root, "run/tiny")
    with pytest.raises(NotFound, match="tinny"):
        status.status(root, "run/tinny")
    with pytest.raises(UsageError, match="is no run"):
        status.status(root, "mix/tiny")


def test_before_the_first_checkpoint_there_is_nothing_to_tell(root: str, make_recipe: MakeRecipe) -> None:
    interrupted(make_recipe(), root, 2)
    with pytest.raises(NotFound, match=r"no committed step: .*wait for its first checkpoint"):
        status.status(root, "run/tiny")


def test_a_step_that_is_missing_or_there_twice_is_named() -> None:
    rows = [{"step": step} for step in (3, 4, 6, 7, 7, 8)]
    assert status.missing_steps(rows) == [5, 7]
    assert status.missing_steps([{"step": step} for step in range(3, 9)]) == []


def test_a_planted_spike_is_counted_by_both(make_recipe: MakeRecipe) -> None:
    rows = [{"loss": 3.0 + 0.01 * (step % 7), "grad_norm": 1.0} for step in range(2000)]
    rows[1500]["loss"] = 9.0
    scores = status.spike_scores(rows)
    assert scores["loss_paper_7s_1000"] == scores["loss_core_6s_128"] == pytest.approx(0.05)
    assert scores["grad_norm_paper_7s_1000"] == 0.0


def test_the_page_shows_three_curves_and_the_figures(root: str, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    made = runs.train(make_recipe(), root)
    text = status.page(root, "run/tiny")
    assert text.count("<svg") == 3 and made.reference in text and "loss_paper_7s_1000" in text
    assert "http" not in text  # nothing is fetched by who opens it
