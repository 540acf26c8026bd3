"""Spike scores by both definitions, on series whose spikes are known; the skip rule."""

import math

import numpy as np
import pytest
import torch

from trainplane.stability import SkipStep, spike_score_core, spike_score_paper, spikes


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(2.5, 0.1, n)


def test_planted_spikes_are_counted_and_nothing_else() -> None:
    series = noise(4000)
    assert spike_score_paper(series) == 0.0
    series[[1500, 3000]] += 2.0
    assert spike_score_paper(series) == pytest.approx(100 * 2 / 4000)
    assert np.flatnonzero(spikes(series, 1000, 7.0, False)).tolist() == [1500, 3000]


def test_the_definitions_differ_in_direction_window_and_threshold() -> None:
    series = noise(3000)
    series[2000] -= 2.0  # downward: the paper's counts it, OLMo-core's does not
    assert spike_score_paper(series) > 0.0
    assert not spikes(series, 128, 6.0, True)[2000]
    early = noise(600)
    early[300] += 2.0  # inside the first 1,000 values: only the short window can judge it
    assert spike_score_paper(early) == 0.0
    assert spike_score_core(early) == pytest.approx(100 / 600)


def test_equal_to_a_loop_over_the_definition() -> None:
    series = noise(400, seed=3)
    series[[150, 350]] += 1.0
    expected = [
        t >= 50 and abs(series[t] - series[t - 50 : t].mean()) >= 4.0 * series[t - 50 : t].std() for t in range(400)
    ]
    assert spikes(series, 50, 4.0, False).tolist() == expected
    assert sum(expected) >= 2


@pytest.mark.parametrize("n", [0, 1, 128, 1000])
def test_short_or_constant_series_have_no_spikes(n: int) -> None:
    assert spike_score_paper([1.0] * n) == spike_score_core([1.0] * n) == 0.0
    assert not spikes([1.0] * 300, 128, 6.0, False).any()


def test_skip_step_waits_for_64_values_then_vetoes_a_spike_in_either_series() -> None:
    ordinary = noise(64).tolist()
    young = SkipStep(ordinary[:62], [1.0] * 62)
    assert young(99.0, 1.0)
    assert not SkipStep(ordinary[:63], [1.0] * 63)(99.0, 1.0)
    rule = SkipStep(ordinary, noise(64, seed=1).tolist())
    assert not rule(4.0, 2.5)
    assert rule(2.5, 2.5)
    rule = SkipStep(ordinary, noise(64, seed=1).tolist())
    assert not rule(2.5, 9.0)


@pytest.mark.parametrize("seed", range(4))
def test_skip_step_decides_as_olmo_cores(seed: int) -> None:
    """Every step of a series with values close to the limit, on both sides of it: by the sample deviation, from the 64th value on."""
    theirs = pytest.importorskip("olmo_core.optim.skip_step_optimizer")
    optimizer = theirs.SkipStepOptimizer([torch.nn.Parameter(torch.zeros(1))], {})
    ours, decisions = SkipStep(), []
    losses, norms = noise(300, seed), noise(300, seed + 10)
    for step in range(300):
        loss, norm = losses[step], norms[step]
        if step % 7 == 0 and step > 2:  # just above or below 6 deviations of what is known
            known = np.array(ours.losses)
            loss = known.mean() + 6 * known.std(ddof=1) * (1.0005 if step % 2 else 0.9995)
        if step == 200:
            norm = 9.0
        optimizer.latest_loss, optimizer.latest_grad_norm = (torch.tensor(v, dtype=torch.float64) for v in (loss, norm))
        decisions.append((bool(ours(loss, norm)), bool(optimizer.get_step_factor())))
    assert all(mine == other for mine, other in decisions)
    assert decisions[:62] == [(True, True)] * 62 and decisions[63] == (False, False) and not decisions[200][0]
    assert 5 < sum(not mine for mine, _ in decisions) < 30


def test_what_is_no_number_is_skipped() -> None:
    assert not SkipStep(noise(64).tolist(), noise(64).tolist())(math.nan, 2.5)


def test_skip_step_remembers_128_values_and_skipped_ones_too() -> None:
    rule = SkipStep()
    for value in noise(200):
        rule(value, value)
    rule(50.0, 2.5)
    assert len(rule.losses) == len(rule.grad_norms) == 128
    assert rule.losses[-1] == 50.0
