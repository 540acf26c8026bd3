"""Kernels that count no references read, slice and write arrays like any other; what would make an array does not compile."""

import numba
import numpy as np
import pytest

from dataplane.kernels.borrowing import borrowing


@borrowing
def _sums(values, starts, out):  # type: ignore[no-untyped-def]
    for k in range(len(starts) - 1):
        out[k] = 0
        for value in values[starts[k] : starts[k + 1]]:
            out[k] += value


@borrowing
def _copies(values):  # type: ignore[no-untyped-def]
    return values.copy().sum()


def test_arrays_are_borrowed_from_the_caller() -> None:
    values, out = np.arange(10), np.empty(3, np.int64)
    _sums(values, np.array([0, 4, 4, 10]), out)
    assert out.tolist() == [6, 0, 39]


def test_what_makes_an_array_is_refused() -> None:
    with pytest.raises(numba.core.errors.NumbaError, match="NRT required"):
        _copies(np.arange(10))
