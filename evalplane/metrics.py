"""Values and standard errors from per-item numbers.

In: one number an item (or bits and bytes a document). Out: (value, standard error or None).
"""

import math
from collections.abc import Mapping

import numpy as np

from triplane.errors import Refused

Estimate = dict[str, float | None]


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


def best(values: dict[str, float], larger_is_better: bool) -> str:
    """The name with the best value; the first named of equals."""
    return (max if larger_is_better else min)(values, key=lambda name: values[name])


def macro(estimates: list[Estimate]) -> Estimate:
    """The plain mean over tasks; the tasks' errors are independent."""
    values = [value_of(one) for one in estimates]
    errors = [one["stderr"] for one in estimates]
    known = [error for error in errors if error is not None]
    error = math.sqrt(sum(e * e for e in known)) / len(errors) if len(known) == len(errors) else None
    return {"value": sum(values) / len(values), "stderr": error}
