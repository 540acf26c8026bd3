"""Values and standard errors against numbers worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from evalplane import metrics
from triplane.errors import Refused


def test_the_standard_error_of_a_proportion() -> None:
    found = metrics.mean(np.array([True, False, False, False]))
    assert found["value"] == 0.25
    assert found["stderr"] == pytest.approx(math.sqrt(0.25 * 0.75 / 3))


def test_one_item_has_no_standard_error_and_none_has_no_value() -> None:
    assert metrics.mean(np.array([True])) == {"value": 1.0, "stderr": None}
    with pytest.raises(Refused, match="no items"):
        metrics.mean(np.array([]))


def test_a_missing_value_is_not_zero() -> None:
    assert metrics.value_of({"value": 0.0, "stderr": None}) == 0.0
    with pytest.raises(Refused, match="without a value"):
        metrics.value_of({"value": None, "stderr": None})


def test_bits_per_byte_is_the_ratio_of_sums_not_the_mean_of_ratios() -> None:
    found = metrics.bits_per_byte(np.array([10.0, 1.0]), np.array([5, 1]))
    assert found["value"] == pytest.approx(11 / 6)  # the mean of ratios would be 1.5
    residual = np.array([10 - 5 * 11 / 6, 1 - 11 / 6])
    assert found["stderr"] == pytest.approx(math.sqrt(2 * (residual**2).sum()) / 6)


def test_bits_per_byte_of_no_bytes_is_refused() -> None:
    with pytest.raises(Refused, match="without any text"):
        metrics.bits_per_byte(np.array([0.0]), np.array([0]))


@given(arrays.arrays(np.float64, st.integers(2, 30), elements=st.floats(0, 1e4)), st.integers(1, 50))
def test_documents_of_one_length_have_the_error_of_a_mean(bits: np.ndarray, length: int) -> None:
    """With all lengths equal the ratio estimator is the plain mean, so the two must agree."""
    ratio = metrics.bits_per_byte(bits, np.full(len(bits), length))
    plain = metrics.mean(bits / length)
    assert ratio["value"] == pytest.approx(plain["value"], abs=1e-9)
    assert ratio["stderr"] == pytest.approx(plain["stderr"], abs=1e-6)


def test_best_and_macro() -> None:
    assert metrics.best({"mc": 0.3, "cloze": 0.4}, larger_is_better=True) == "cloze"
    assert metrics.best({"mc": 0.3, "cloze": 0.3}, larger_is_better=True) == "mc"
    assert metrics.best({"a": 1.2, "b": 1.1}, larger_is_better=False) == "b"
    found = metrics.macro([{"value": 0.2, "stderr": 0.03}, {"value": 0.4, "stderr": 0.04}])
    assert found["value"] == pytest.approx(0.3)
    assert found["stderr"] == pytest.approx(0.025)
    assert metrics.macro([{"value": 0.2, "stderr": None}])["stderr"] is None
