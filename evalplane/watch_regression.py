"""Whether a checkpoint is worse than the one before it, beyond what the choice of items explains.

Two evaluations of one suite on the same items -> per task the difference of its scores with an interval, and which of them are regressions.
Items are paired: what is hard for both does not count as noise. The intervals hold all together with 95 % (Bonferroni), so that a suite
of twenty tasks does not raise an alarm every second checkpoint. Differences of numbers in [0, 1] are drawn to 0 first, as if two more pairs
had come, one equal and one half each way (Agresti and Min, Statistics in Medicine 24, 2005): few flips are no proof.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pyarrow as pa

from evalplane import metrics, scorers
from evalplane.run import Evaluation
from evalplane.task import Format, Suite, Task
from triplane.errors import TriplaneError

CONFIDENCE = 0.95
MIN_PAIRS = 5  # fewer items say nothing, whatever they say


class Regressed(TriplaneError):
    """A checkpoint is worse than the one before it. Exit code 4."""

    exit_code = 4


@dataclass(frozen=True)
class Change:
    """A task's scores before and after, in the units of its metric; `difference` and its interval are drawn to 0 where the task is of
    numbers in [0, 1]. `sign` is 1 where larger is better, -1 in bits."""

    task: str
    before: float
    after: float
    difference: float
    interval: tuple[float, float]
    sign: int

    @property
    def is_regression(self) -> bool:
        """The whole interval is on the side of worse."""
        low, high = self.interval
        return high < 0 if self.sign > 0 else low > 0

    def __str__(self) -> str:
        scale, unit, digits = (100, " %", 1) if self.sign > 0 else (1, " bits per byte", 3)
        before, after, low, high = (f"{scale * one:.{digits}f}" for one in (self.before, self.after, *self.interval))
        return f"{self.task} {before} -> {after}{unit} (interval of the difference {low} to {high})"


@dataclass(frozen=True)
class _Difference:
    task: str
    before: float
    after: float
    value: float
    error: float
    pairs: int
    sign: int


def changes(suite: Suite, before: Evaluation, after: Evaluation) -> list[Change]:
    """Of every task that can be judged, and of the suite's mean where it has one. A task with fewer than 5 common items, or
    whose error is unknown, cannot. Raises Corrupt, NotFound where items are damaged."""
    found = [one for task in suite.tasks if (one := _difference(task, before, after)) is not None]
    if suite.aggregation == "mean" and 1 < len(found) == len(suite.tasks):
        found.append(_mean(suite, found))
    z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / max(len(found), 1))
    return [_change(one, z) for one in found]


def _difference(task: Task, before: Evaluation, after: Evaluation) -> _Difference | None:
    names = [one.scores[task.name]["format"] for one in (before, after)]
    values = [float(one.scores[task.name]["value"]) for one in (before, after)]
    tables = [one.items(task.name, name) for one, name in zip((before, after), names, strict=True)]
    if not tables[0]["id"].equals(tables[1]["id"]):
        return None
    formats = [task.formats[name] for name in names]
    if formats[0].kind == "bits_per_byte":
        estimate, pairs = _bits(*tables), tables[0].num_rows
    else:
        estimate, pairs = _paired(formats, tables)
    if pairs < MIN_PAIRS or estimate["value"] is None or estimate["stderr"] is None:
        return None
    sign = 1 if scorers.is_larger_better(formats[0]) else -1
    return _Difference(task.name, values[0], values[1], estimate["value"], estimate["stderr"], pairs, sign)


def _bits(before: pa.Table, after: pa.Table) -> metrics.Estimate:
    """Of the same documents: the ratio of what the bits changed by to the bytes."""
    return metrics.bits_per_byte(after["bits"].to_numpy() - before["bits"].to_numpy(), after["bytes"].to_numpy())


def _paired(formats: Sequence[Format], tables: Sequence[pa.Table]) -> tuple[metrics.Estimate, int]:
    """Over the items both scored, each in the format that counted there; and how many they are."""
    fits = ~np.logical_or(*(np.array(table["overlong"].to_pylist(), bool) for table in tables))
    kept = [table.filter(pa.array(fits)) for table in tables]
    if kept[0].num_rows < MIN_PAIRS:
        return {"value": None, "stderr": None}, kept[0].num_rows
    first, second = (
        scorers.item_values(format, table)[format.metric] for format, table in zip(formats, kept, strict=True)
    )
    apart = second - first
    if formats[0].average != "items":
        parts = np.array(kept[0]["part"].to_pylist())
        return metrics.macro([metrics.mean(apart[parts == part]) for part in dict.fromkeys(parts.tolist())]), len(apart)
    return (_drawn(apart) if scorers.is_larger_better(formats[0]) else metrics.mean(apart)), len(apart)


def _drawn(apart: np.ndarray) -> metrics.Estimate:
    """Mean and error of differences in [-1, 1] with two pairs more: 0, and half of each of -1 and 1."""
    n = len(apart) + 2
    mean = float(apart.sum()) / n
    return {"value": mean, "stderr": math.sqrt((float(apart @ apart) + 1) / n - mean * mean) / math.sqrt(n)}


def _mean(suite: Suite, found: Sequence[_Difference]) -> _Difference:
    """Of tasks, as the suite's score is; the tasks' items are independent."""
    n = len(found)
    value, before, after = (
        sum(part) / n for part in zip(*((one.value, one.before, one.after) for one in found), strict=True)
    )
    error = math.sqrt(sum(one.error**2 for one in found)) / n
    return _Difference(
        f"mean of {suite.name}", before, after, value, error, sum(one.pairs for one in found), found[0].sign
    )


def _change(one: _Difference, z: float) -> Change:
    half = _student(z, one.pairs - 1) * one.error
    interval = (one.value - half, one.value + half)
    return Change(one.task, one.before, one.after, one.value, interval, one.sign)


def _student(z: float, degrees: int) -> float:
    """Student's quantile from the normal's, to 1 % from 4 degrees on at 95 % (Abramowitz and Stegun 26.7.5)."""
    terms = (z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return sum(term / degrees**power for power, term in enumerate(terms))
