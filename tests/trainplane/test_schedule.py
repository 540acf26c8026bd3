"""The learning-rate table of OLMo 2's released runs, and what must hold of any schedule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainplane.schedule import Schedule, lr_at, num_steps

# Peak LR, batch tokens, warm-up tokens and cosine horizon of the runs that happened (13B: the launcher's 9e-4, not the config's 3e-4).
STAGE_1 = {
    "1B": (Schedule(4e-4, 8_388_608_000, "cosine", 5 * 10**12, 0.1), 2_097_152),
    "7B": (Schedule(3e-4, 8_388_608_000, "cosine", 5 * 10**12, 0.1), 4_194_304),
    "13B": (Schedule(9e-4, 8_388_608_000, "cosine", 5 * 10**12, 0.1), 8_388_608),
    "32B": (Schedule(6e-4, 2000 * 8_388_608, "cosine", 65 * 10**11, 0.1), 8_388_608),
}


@pytest.mark.parametrize(
    ("size", "last_step", "lr"),
    [
        ("1B", 1_907_359, 7.4487e-5),
        ("7B", 928_646, 6.1351e-5),
        ("7B", 928_000, 6.1499e-5),  # the step whose value was written into the stage-2 config
        ("13B", 596_057, 9.0e-5),
        ("32B", 721_901, 6.623e-5),
    ],
)
def test_stage_1_stops_at_the_published_rate(size: str, last_step: int, lr: float) -> None:
    schedule, batch = STAGE_1[size]
    # Three to four decimals are printed.
    assert lr_at(last_step * batch, schedule) == pytest.approx(lr, rel=5e-5)


@pytest.mark.parametrize(("size", "steps"), [("1B", 4000), ("7B", 2000), ("13B", 1000), ("32B", 2000)])
def test_warm_up_ends_at_the_peak(size: str, steps: int) -> None:
    schedule, batch = STAGE_1[size]
    assert lr_at(steps * batch, schedule) == pytest.approx(schedule.peak_lr, rel=1e-12)
    assert lr_at(steps // 2 * batch, schedule) == pytest.approx(schedule.peak_lr / 2)
    assert lr_at(batch, schedule) == pytest.approx(schedule.peak_lr / steps)  # step 1 is not taken at 0
    assert lr_at(0, schedule) == 0.0


def test_stage_2_anneals_to_zero_on_the_step_that_ends_it() -> None:
    batch, tokens = 4_194_304, 50 * 10**9
    schedule = Schedule(6.1499e-5, 0, "linear", tokens, 0.0)
    steps = num_steps(tokens, batch)
    assert steps == 11_921  # the released runs went on for 10 more steps at 0
    assert lr_at(steps * batch, schedule) == 0.0
    assert lr_at((steps - 1) * batch, schedule) > 0.0
    assert lr_at(tokens // 2, schedule) == pytest.approx(6.1499e-5 / 2)


def test_a_wrong_horizon_is_seen() -> None:
    """Negative control: OLMo-core's 7B script decays over 4T tokens; the table tells it from the run's 5T."""
    wrong = Schedule(3e-4, 8_388_608_000, "cosine", 4 * 10**12, 0.1)
    assert lr_at(928_646 * 4_194_304, wrong) != pytest.approx(6.1351e-5, rel=0.05)


schedules = st.builds(
    Schedule,
    peak_lr=st.floats(1e-6, 1e-1),
    warmup_tokens=st.integers(0, 10**6),
    decay=st.sampled_from(["cosine", "linear"]),
    decay_tokens=st.integers(10**6 + 1, 10**13),
    final_lr_fraction=st.floats(0.0, 1.0),
)


@given(schedules, st.integers(0, 2 * 10**13))
def test_the_rate_stays_between_zero_and_the_peak(schedule: Schedule, tokens: int) -> None:
    assert 0.0 <= lr_at(tokens, schedule) <= schedule.peak_lr * (1 + 1e-12)


@given(schedules, st.integers(0, 10**13), st.integers(0, 10**13))
def test_the_rate_never_rises_after_warm_up(schedule: Schedule, a: int, b: int) -> None:
    early, late = sorted((a + schedule.warmup_tokens, b + schedule.warmup_tokens))
    assert lr_at(late, schedule) <= lr_at(early, schedule) * (1 + 1e-12)


@given(schedules)
def test_after_the_horizon_the_rate_is_the_floor(schedule: Schedule) -> None:
    assert lr_at(schedule.decay_tokens, schedule) == schedule.final_lr_fraction * schedule.peak_lr


def test_negative_tokens_are_an_error() -> None:
    with pytest.raises(ValueError, match="counts from 0"):
        lr_at(-1, STAGE_1["7B"][0])
