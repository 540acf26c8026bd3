"""The demo's promises are checked, not assumed: intervals against known values, claims with data that breaks them."""

import numpy as np
import pytest

from jobs.demo_claims import Scored, check_claims, paired_difference, paired_rate_difference

BYTES = {"code": np.array([100.0, 300.0]), "prose": np.array([50.0, 150.0, 50.0])}


def scored(name: str, num_correct: int, bits_per_byte: float) -> Scored:
    correct = np.arange(200) < num_correct
    return Scored(name, correct, {source: sizes * bits_per_byte for source, sizes in BYTES.items()}, BYTES)


def test_paired_difference_equals_the_textbook_formula() -> None:
    after, before = np.array([1, 1, 0, 1]), np.array([0, 1, 0, 0])
    interval = paired_difference(after, before)
    half = 1.959964 * np.sqrt((0.5**2 * 4) / 3) / 2  # differences 1, 0, 0, 1: mean 0.5, each 0.5 away from it
    assert interval.mean == 0.5
    assert interval.low == pytest.approx(0.5 - half) and interval.high == pytest.approx(0.5 + half)


def test_the_interval_covers_the_true_difference_about_95_times_in_100() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        before = draw.random(256) < 0.3
        after = before ^ (draw.random(256) < 0.2)  # flips: true difference is 0.2 * (0.7 - 0.3)
        interval = paired_difference(after, before)
        covered += interval.low <= 0.08 <= interval.high
    assert 0.91 <= covered / 400 <= 0.985


def test_paired_rate_difference_weighs_documents_by_their_bytes() -> None:
    sizes = np.array([100.0, 300.0])
    interval = paired_rate_difference(sizes * 2.0, sizes * 2.5, sizes)
    assert interval.mean == interval.low == interval.high == pytest.approx(-0.5)  # the same rate everywhere: no error
    uneven = paired_rate_difference(np.array([100.0, 900.0]), np.array([200.0, 900.0]), sizes)
    assert uneven.mean == pytest.approx(-0.25) and uneven.low < -0.25 < uneven.high


def test_bits_per_byte_is_of_the_documents_as_one_text() -> None:
    mixed = Scored(
        "x",
        np.array([True]),
        {"a": np.array([10.0]), "b": np.array([90.0])},
        {"a": np.array([10.0]), "b": np.array([30.0])},
    )
    assert mixed.bits_per_byte() == 2.5 and mixed.bits_per_byte(["b"]) == 3.0


def test_claims_hold_where_the_figures_do() -> None:
    claims = check_claims(
        scored("pretrained", 14, 2.3),
        [scored("order 1", 190, 2.2), scored("order 2", 60, 2.24)],
        scored("soup", 150, 2.19),
    )
    assert [claim.holds for claim in claims] == [True, True, True]
    assert "7.0% → 95.0%" in claims[0].evidence


def test_a_claim_fails_where_its_figures_do_not_support_it() -> None:
    pretrained, better = scored("pretrained", 14, 2.3), scored("order 1", 190, 2.2)
    no_rise, barely = scored("order 2", 14, 2.2), scored("order 3", 15, 2.2)
    claims = check_claims(pretrained, [better, no_rise, barely], scored("soup", 190, 2.2001))
    assert [claim.holds for claim in claims] == [True, False, False, False]
    assert not check_claims(pretrained, [scored("worse", 0, 2.2)], scored("soup", 0, 2.1))[0].holds
