"""What counts as worse: real models for bits, chosen tables for accuracy; the alarm must sound for a planted fall and not for noise."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from evalplane import run, watch_regression
from evalplane.run import Evaluation
from evalplane.task import Suite, load_task
from tests.evalplane import watched_run
from triplane.lm.model import Olmo2


@dataclass(frozen=True)
class Table:
    """Stands for an evaluation of one task in one format, by which items it got right."""

    task: str
    rights: np.ndarray
    parts: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    overlong: int = 0

    @property
    def scores(self) -> dict[str, Any]:
        return {self.task: {"format": "generate", "value": float(self.rights.mean())}}

    def items(self, task: str, format: str) -> pa.Table:
        n = len(self.rights)
        return pa.table(
            {
                "id": list(self.ids) or [f"i{i}" for i in range(n)],
                "part": list(self.parts) or [""] * n,
                "overlong": [i < self.overlong for i in range(n)],
                "exact_match": self.rights.astype(np.float64),
            }
        )


SUITE = Suite("arithmetic", (load_task("arithmetic"),), "none")


def changed(before: Any, after: Any, **more: Any) -> list[watch_regression.Change]:
    made = [Table("arithmetic", np.array(one, float), **more) for one in (before, after)]
    return watch_regression.changes(SUITE, *made)  # type: ignore[arg-type]


def test_many_items_lost_are_a_regression_and_its_sentence_says_how_far() -> None:
    (one,) = changed([1] * 60 + [0] * 40, [0] * 20 + [1] * 40 + [0] * 40)
    assert one.is_regression and (one.before, one.after) == (0.6, 0.4)
    # Agresti and Min by hand: 102 pairs, mean -20/102, E[d^2] 21/102.
    mean, square = -20 / 102, 21 / 102
    half = 1.984 * math.sqrt((square - mean * mean) / 102)
    assert one.difference == pytest.approx(mean)
    assert one.interval == pytest.approx((mean - half, mean + half), abs=1e-4)
    assert str(one) == "arithmetic 60.0 -> 40.0 % (interval of the difference -27.6 to -11.6)"
    (back,) = changed([0] * 20 + [1] * 40 + [0] * 40, [1] * 60 + [0] * 40)
    assert not back.is_regression and back.difference == -one.difference


def test_pairing_sees_what_two_independent_errors_hide() -> None:
    before, after = [1] * 50 + [0] * 50, [0] * 8 + [1] * 42 + [0] * 50
    (one,) = changed(before, after)
    assert one.is_regression
    independent = 1.96 * math.hypot(*(np.std(values, ddof=1) / 10 for values in (before, after)))
    assert independent > 0.08  # side by side nobody could tell them apart


def test_noise_and_few_flips_are_none() -> None:
    for before, after in (
        ([1] * 100, [1] * 100),
        ([1] * 60 + [0] * 40, [0] * 10 + [1] * 50 + [1] * 8 + [0] * 32),  # 10 lost, 8 won
        ([1] * 100, [1] * 96 + [0] * 4),  # plain standard errors would call this 2 sigma; four heads of four would not
    ):
        (one,) = changed(before, after)
        assert not one.is_regression
    assert changed([1] * 4, [0] * 4) == []  # four items say nothing
    (all_lost,) = changed([1] * 8, [0] * 8)
    assert all_lost.is_regression


def test_items_that_one_could_not_score_do_not_count_and_others_are_not_compared() -> None:
    (one,) = changed([1] * 10 + [0] * 10, [0] * 10 + [1] * 10, overlong=10)
    assert one.difference > 0  # the ten that were lost are those nobody scored
    made = [Table("arithmetic", np.ones(20), ids=tuple(f"{name}{i}" for i in range(20))) for name in "ab"]
    assert watch_regression.changes(SUITE, *made) == []  # type: ignore[arg-type]


def test_a_suite_of_many_tasks_is_held_to_a_wider_interval() -> None:
    """Twenty tasks at 95 % each would raise an alarm in four of ten pairs of equal models; together at 95 % in one of forty."""
    generator, alarms = np.random.default_rng(0), []
    tasks = tuple(load_task("arithmetic").model_copy(update={"name": f"t{i}"}) for i in range(20))
    suite = Suite("twenty", tasks, "none")
    for _ in range(60):
        before, after = (generator.random((20, 60)) < 0.5 for _ in range(2))
        both = [Many([Table(task.name, row) for task, row in zip(tasks, of, strict=True)]) for of in (before, after)]
        found = watch_regression.changes(suite, *both)  # type: ignore[arg-type]
        alarms.append(sum(one.is_regression for one in found))
    assert np.mean(np.array(alarms) > 0) <= 0.07
    assert len(found) == 20


@dataclass(frozen=True)
class Many:
    tables: list[Table]

    @property
    def scores(self) -> dict[str, Any]:
        return {task: score for table in self.tables for task, score in table.scores.items()}

    def items(self, task: str, format: str) -> pa.Table:
        return next(table for table in self.tables if table.task == task).items(task, format)


def test_small_samples_get_students_quantile() -> None:
    for degrees, expected in ((4, 2.776), (9, 2.262), (30, 2.042), (1000, 1.962)):
        assert watch_regression._student(1.959964, degrees) == pytest.approx(expected, rel=0.01)


def disturbed(model: Olmo2, scale: float, seed: int = 0) -> Olmo2:
    generator, other = torch.Generator().manual_seed(seed), Olmo2(model.config)
    other.load_state_dict(
        {
            name: value + scale * torch.randn(value.shape, generator=generator)
            for name, value in model.state_dict().items()
        }
    )
    return other.eval()


def test_bits_of_real_models_planted_worse_equal_and_less_trained(tmp_path: Path) -> None:
    root = str(tmp_path)
    watched_run.begin(root)
    suite, good = watched_run.suite(root), watched_run.model(24)

    def scored(tokens: int, model: Olmo2) -> Evaluation:
        return run.evaluate(watched_run.checkpoint(root, tokens, model), suite, root)

    def worse(after: Evaluation) -> list[str]:
        return [one.task for one in watch_regression.changes(suite, first, after) if one.is_regression]

    first = scored(10, good)
    assert worse(scored(20, good)) == []
    assert worse(scored(30, disturbed(good, 0.3))) == ["held_out_bits_per_byte"]
    assert worse(scored(40, watched_run.model(12))) == ["held_out_bits_per_byte"]  # less trained
    assert [one.task for one in watch_regression.changes(suite, scored(40, watched_run.model(12)), first)] != []
