"""Values, standard errors and intervals from per-item numbers.

In: one number an item (or bits and bytes a document). Out: an estimate: value, standard error or None; 95 % intervals.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from triplane.errors import Refused

Estimate = dict[str, float | None]
Z = 1.959963984540054  # 97.5 % of a normal distribution lie below it
APART = 3.0


@dataclass(frozen=True)
class Best:
    """Which of several estimates counts, its 95 % interval, and by how much a best of them may exceed the truth on average.

    `excess` is positive for a largest value, which errs upwards, and negative for a smallest.
    """

    name: str
    interval: tuple[float, float] | None
    excess: float


def value_of(estimate: Mapping[str, float | None]) -> float:
    """The value of an estimate. Refused when it has none: a missing score is not zero."""
    value = estimate["value"]
    if value is None:
        raise Refused("an estimate without a value was asked for its value; the evaluation that made it is incomplete")
    return value


def mean(values: np.ndarray) -> Estimate:
    """Plain mean of float[n] and its standard error: sample deviation / sqrt(n); None when n < 2. Refused when n = 0."""
    if len(values) == 0:
        raise Refused("the mean of no items has no value; check the data and the limit")
    numbers = values.astype(np.float64)
    error = float(numbers.std(ddof=1) / math.sqrt(len(numbers))) if len(numbers) > 1 else None
    return {"value": float(numbers.mean()), "stderr": error}


def bits_per_byte(bits: np.ndarray, num_bytes: np.ndarray) -> Estimate:
    """Total bits / total bytes over documents, float64[n] and int64[n]; Refused when there are no bytes.

    The standard error is the ratio estimator's (Cochran, Sampling Techniques, 2.11): documents are the sample, and long
    ones weigh more in both sums.
    """
    total = int(num_bytes.sum())
    if total == 0:
        raise Refused("bits per byte of documents without any text has no value; check the held-out documents")
    ratio = float(bits.sum()) / total
    n = len(bits)
    residual = bits - ratio * num_bytes
    error = math.sqrt(n / (n - 1) * float(residual @ residual)) / total if n > 1 else None
    return {"value": ratio, "stderr": error}


def best_of(
    estimates: Mapping[str, Mapping[str, float | None]],
    larger_is_better: bool,
    difference_errors: Mapping[frozenset[str], float | None],
    num_items: Mapping[str, int] | None = None,
) -> Best:
    """The best of several formats' estimates, the first named of equals.

    `difference_errors` are the standard errors of the difference of two of them (the items are the same, so they are not
    independent); without one, independence is assumed. Formats more than APART such errors from the best do not raise it.
    `num_items` is how many numbers in [0, 1] a plain mean is of; it is not given for other estimates.
    """
    sign = 1 if larger_is_better else -1
    name = max(estimates, key=lambda one: sign * value_of(estimates[one]))
    value, error = value_of(estimates[name]), estimates[name]["stderr"]
    if error is None:
        return Best(name, None, 0.0)
    excess = 0.0
    for other, estimate in estimates.items():
        apart = difference_errors.get(frozenset((name, other)))
        apart = apart if apart is not None else math.hypot(error, estimate["stderr"] or 0.0)
        if other != name and abs(value - value_of(estimate)) < APART * apart:
            excess += apart / math.sqrt(2 * math.pi)
    return Best(name, interval(value, error, sign * excess, (num_items or {}).get(name)), sign * excess)


def interval(value: float, error: float, excess: float = 0.0, num_items: int | None = None) -> tuple[float, float]:
    """95 %: two normal standard errors each way, and on the side a maximum errs to by no more than `excess`, that too.

    The larger of two equal, unbiased estimates is expected to exceed them by sd(difference) / sqrt(2 pi) and by less when they differ
    (Clark, Operations Research 9, 1961). A mean of few numbers in [0, 1] is drawn to the middle first, as if z^2 / 2 more were 0 and as
    many 1 (Agresti and Coull, The American Statistician 52, 1998): none right of four does not mean never.
    """
    low, high = value - Z * error, value + Z * error
    if num_items is not None:
        n = num_items + Z * Z
        middle = (num_items * value + Z * Z / 2) / n
        square = ((num_items - 1) * num_items * error * error + num_items * value * value + Z * Z / 2) / n
        half = Z * math.sqrt(max(square - middle * middle, 0.0) / n)
        low, high = min(value, max(middle - half, 0.0)), max(value, min(middle + half, 1.0))
    return low - max(excess, 0.0), high - min(excess, 0.0)


def macro(estimates: list[Estimate]) -> Estimate:
    """The plain mean over tasks or parts; their errors are independent."""
    values = [value_of(one) for one in estimates]
    errors = [one["stderr"] for one in estimates]
    known = [error for error in errors if error is not None]
    error = math.sqrt(sum(e * e for e in known)) / len(errors) if len(known) == len(errors) else None
    return {"value": sum(values) / len(values), "stderr": error}


def suite_mean(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`macro` over tasks' scores (value, stderr, interval, excess), with its 95 % interval; None where a task has none.

    Each side's distances are combined as independent errors are (Zou and Donner, Statistics in Medicine 27, 2008). They shrink with
    the number of tasks; the excess of each maximum does not, so it is averaged.
    """
    mean = macro([{"value": one["value"], "stderr": one["stderr"]} for one in scores])
    if mean["stderr"] is None or any(one.get("interval") is None for one in scores):
        return {**mean, "interval": None}
    below = [one["value"] - one["interval"][0] - max(one["excess"], 0.0) for one in scores]
    above = [one["interval"][1] - one["value"] + min(one["excess"], 0.0) for one in scores]
    down, up = (sum(max(one["excess"] * sign, 0.0) for one in scores) for sign in (1, -1))
    value, n = value_of(mean), len(scores)
    return {**mean, "interval": [value - (math.hypot(*below) + down) / n, value + (math.hypot(*above) + up) / n]}
