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


def estimate(value: float, stderr: float | None) -> metrics.Estimate:
    return {"value": value, "stderr": stderr}


def test_the_best_counts_and_the_first_of_equals() -> None:
    def name(larger: bool, **values: float) -> str:
        return metrics.best_of({key: estimate(value, 0.1) for key, value in values.items()}, larger, {}).name

    assert name(True, mc=0.3, cloze=0.4) == "cloze"
    assert name(True, mc=0.3, cloze=0.3) == "mc"
    assert name(False, a=1.2, b=1.1) == "b"


def test_macro_of_tasks() -> None:
    found = metrics.macro([estimate(0.2, 0.03), estimate(0.4, 0.04)])
    assert found["value"] == pytest.approx(0.3)
    assert found["stderr"] == pytest.approx(0.025)
    assert metrics.macro([estimate(0.2, None)])["stderr"] is None


def test_the_interval_of_a_best_reaches_further_down() -> None:
    """By the most that the larger of two equals exceeds either on average; not at all where they are far apart."""
    pair = frozenset(("mc", "cloze"))
    near = metrics.best_of({"mc": estimate(0.30, 0.02), "cloze": estimate(0.29, 0.02)}, True, {pair: 0.01})
    assert near.excess == pytest.approx(0.01 / math.sqrt(2 * math.pi))
    assert near.interval == pytest.approx((0.30 - 1.96 * 0.02 - near.excess, 0.30 + 1.96 * 0.02), abs=1e-5)
    far = metrics.best_of({"mc": estimate(0.30, 0.02), "cloze": estimate(0.25, 0.02)}, True, {pair: 0.01})
    assert far.excess == 0.0
    lower = metrics.best_of({"a": estimate(1.0, 0.1), "b": estimate(1.0, 0.1)}, False, {})
    assert lower.excess < 0
    assert lower.interval == pytest.approx((1.0 - 0.196, 1.0 + 0.196 + math.sqrt(0.02 / (2 * math.pi))), abs=1e-4)
    assert metrics.best_of({"a": estimate(1.0, None)}, True, {}) == metrics.Best("a", None, 0.0)


def test_a_suite_s_interval_combines_its_tasks() -> None:
    one = {"value": 0.5, "stderr": 0.03, "interval": [0.4, 0.56], "excess": 0.04}
    other = {"value": 0.7, "stderr": 0.04, "interval": [0.62, 0.78], "excess": 0.0}
    found = metrics.suite_mean([one, other])
    assert found["value"] == pytest.approx(0.6)
    assert found["interval"] == pytest.approx(
        [0.6 - (0.1 + 0.04) / 2, 0.6 + 0.1 / 2]
    )  # 0.06 and 0.08 make 0.1, both ways
    bits = {"value": 1.0, "stderr": 0.1, "interval": [0.9, 1.15], "excess": -0.05}
    assert metrics.suite_mean([bits])["interval"] == pytest.approx([0.9, 1.15])
    assert metrics.suite_mean([one, {**other, "interval": None}])["interval"] is None


@pytest.mark.parametrize(
    ("right", "n", "low", "high"), [(0, 4, 0.0, 0.55), (4, 4, 0.45, 1.0), (1, 10, 0.0, 0.43), (5, 10, 0.24, 0.76)]
)
def test_few_items_say_little(right: int, n: int, low: float, high: float) -> None:
    """Agresti and Coull's interval, to two places; the normal one of none of four would be [0, 0]."""
    found = metrics.mean(np.array([1.0] * right + [0.0] * (n - right)))
    assert found["stderr"] is not None
    assert metrics.interval(right / n, found["stderr"], 0.0, n) == pytest.approx((low, high), abs=0.006)


@given(st.integers(0, 2000), st.integers(2, 2000))
def test_the_interval_of_a_proportion_is_agresti_and_coull_s(right: int, n: int) -> None:
    right = min(right, n)
    found = metrics.mean(np.array([1.0] * right + [0.0] * (n - right)))
    tilde = n + metrics.Z**2
    p = (right + metrics.Z**2 / 2) / tilde
    half = metrics.Z * math.sqrt(p * (1 - p) / tilde)
    assert metrics.interval(right / n, float(found["stderr"] or 0.0), 0.0, n) == pytest.approx(
        (min(right / n, max(p - half, 0.0)), max(right / n, min(p + half, 1.0))), abs=1e-9
    )


@pytest.mark.parametrize(("gap", "together"), [(0.0, 0.0), (0.0, 0.7), (0.02, 0.0), (0.2, 0.5)])
def test_the_intervals_hold_the_truth(gap: float, together: float) -> None:
    """Simulated: two formats of n items each, answers correlated or not; the interval of the larger, and of the mean of nine such."""
    rng = np.random.default_rng(7)
    n, tasks, runs = 400, 9, 300
    truth = np.array([0.5, 0.5 - gap])
    same = rng.random((runs, tasks, n, 1)) < together
    draws = np.where(same, rng.random((runs, tasks, n, 1)), rng.random((runs, tasks, n, 2))) < truth
    held, mean_held, plain_held = 0, 0, 0
    for run in draws:
        scores = []
        for items in run:
            found = {name: metrics.mean(items[:, i].astype(float)) for i, name in enumerate(("mc", "cloze"))}
            apart = metrics.mean(items[:, 0].astype(float) - items[:, 1])["stderr"]
            best = metrics.best_of(found, True, {frozenset(found): apart}, dict.fromkeys(found, n))
            assert best.interval is not None
            held += best.interval[0] <= 0.5 <= best.interval[1]
            scores.append({**found[best.name], "excess": best.excess, "interval": best.interval})
        low, high = metrics.suite_mean(scores)["interval"]
        mean_held += low <= 0.5 <= high
        kept = [{**one, "excess": 0.0, "interval": metrics.interval(one["value"], one["stderr"])} for one in scores]
        plain = metrics.suite_mean(kept)["interval"]
        plain_held += plain[0] <= 0.5 <= plain[1]
    assert held / (runs * tasks) > 0.94
    assert mean_held / runs > 0.94
    if (gap, together) == (0.0, 0.0):
        assert plain_held / runs < 0.7  # what leaving the excess out would do
