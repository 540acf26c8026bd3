"""The figures of a classifier: known values, slow references, and what a broken classifier looks like."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane import calibration
from triplane.errors import UsageError

SCORED = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.00001]), st.booleans()), min_size=2, max_size=40
).filter(lambda pairs: len({is_positive for _, is_positive in pairs}) == 2)


def arrays(pairs: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    scores, is_positive = zip(*pairs, strict=True)
    return np.array(scores), np.array(is_positive)


def test_known_values() -> None:
    scores, is_positive = np.array([0.9, 0.8, 0.7, 0.2]), np.array([True, False, True, False])
    report = calibration.evaluate(scores, is_positive, (0.75, 0.95))
    assert report["roc_auc"] == 0.75  # of four pairs, one is the wrong way round
    assert report["average_precision"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert report["brier"] == pytest.approx((0.01 + 0.64 + 0.09 + 0.04) / 4)
    assert report["expected_calibration_error"] == pytest.approx((0.1 + 0.8 + 0.3 + 0.2) / 4)
    assert report["thresholds"] == [
        {"threshold": 0.75, "taken": 2, "taken_fraction": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5},
        {"threshold": 0.95, "taken": 0, "taken_fraction": 0.0, "precision": None, "recall": 0.0, "f1": 0.0},
    ]


@given(SCORED)
def test_auc_is_the_share_of_pairs_in_order(pairs: list[tuple[float, bool]]) -> None:
    above = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high, is_positive in pairs
        if is_positive
        for low, other in pairs
        if not other
    ]
    assert calibration.roc_auc(*arrays(pairs)) == pytest.approx(sum(above) / len(above))


@given(SCORED)
def test_average_precision_is_the_sum_over_distinct_thresholds(pairs: list[tuple[float, bool]]) -> None:
    total, recall_before = 0.0, 0.0
    for threshold in sorted({score for score, _ in pairs}, reverse=True):
        row = calibration.at_threshold(*arrays(pairs), threshold)
        total += (row["recall"] - recall_before) * row["precision"]
        recall_before = row["recall"]
    assert calibration.average_precision(*arrays(pairs)) == pytest.approx(total)


@given(SCORED)
def test_the_curve_agrees_with_the_table_and_bins_lose_no_document(pairs: list[tuple[float, bool]]) -> None:
    scores, is_positive = arrays(pairs)
    for threshold, precision, recall in zip(*calibration.precision_recall(scores, is_positive), strict=True):
        row = calibration.at_threshold(scores, is_positive, threshold)
        assert (row["precision"], row["recall"]) == pytest.approx((precision, recall))
    assert sum(row["documents"] for row in calibration.reliability(scores, is_positive)) == len(pairs)


def test_calibration_error_tells_calibrated_from_overconfident_scores() -> None:
    chance = np.random.default_rng(1).random(20_000)
    is_positive = np.random.default_rng(2).random(20_000) < chance
    calibrated = calibration.reliability(chance, is_positive)
    sharpened = calibration.reliability(np.where(chance > 0.5, 0.99, 0.01), is_positive)
    assert calibration.expected_calibration_error(calibrated) < 0.02
    assert calibration.expected_calibration_error(sharpened) == pytest.approx(0.24, abs=0.02)


def test_the_standard_error_is_the_spread_of_the_auc_by_chance() -> None:
    random = np.random.default_rng(3)
    aucs = [calibration.roc_auc(random.random(150), np.arange(150) < 60) for _ in range(400)]
    assert np.std(aucs) == pytest.approx(calibration.auc_standard_error(0.5, 60, 90), rel=0.1)


def test_one_class_or_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(UsageError, match="0 positive and 2 negative documents cannot be compared"):
        calibration.evaluate(np.zeros(2), np.zeros(2, bool), ())
    with pytest.raises(UsageError, match="not a number"):
        calibration.evaluate(np.array([np.nan, 0.0]), np.array([True, False]), ())
