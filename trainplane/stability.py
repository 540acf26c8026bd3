"""Spikes in loss and gradient norm: two published definitions of the spike score, and the rule that skips a step.

(series of loss or gradient norm) -> score in percent. `paper`: arXiv 2501.00656, section 3 (values at least 7 standard
deviations from the rolling average of the last 1,000). `core`: OLMo-core StabilityMonitorCallback (more than 6 above the
mean of the last 128). They differ, so both are reported. Skip-step: OLMo-core optim/skip_step_optimizer.py; unlike there,
its history is part of the checkpoint.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

SKIP_WINDOW = 128
SKIP_MIN_HISTORY = 64
SKIP_SIGMAS = 6.0


def spikes(series: Sequence[float] | np.ndarray, window: int, sigmas: float, upward_only: bool) -> np.ndarray:
    """bool [n]: is value t a spike against the `window` values before it (itself excluded, population deviation)?
    The first `window` values never are."""
    values = np.asarray(series, dtype=np.float64)
    flags = np.zeros(len(values), dtype=bool)
    if len(values) <= window:
        return flags
    before = sliding_window_view(values[:-1], window)
    distance = values[window:] - before.mean(1)
    deviation = before.std(1)
    over = distance > sigmas * deviation if upward_only else np.abs(distance) >= sigmas * deviation
    # A value equal to a constant history is 0 deviations away: no spike.
    flags[window:] = over & (distance != 0)
    return flags


def spike_score_paper(series: Sequence[float] | np.ndarray) -> float:
    """Percent of all values at least 7 standard deviations from the rolling average of the last 1,000 (`paper_7s_1000`)."""
    return 100.0 * float(spikes(series, 1000, 7.0, False).sum()) / max(1, len(series))


def spike_score_core(series: Sequence[float] | np.ndarray) -> float:
    """Percent of all values more than 6 standard deviations above the mean of the last 128 (`core_6s_128`)."""
    return 100.0 * float(spikes(series, SKIP_WINDOW, SKIP_SIGMAS, True).sum()) / max(1, len(series))


@dataclass
class SkipStep:
    """Vetoes an update whose loss or gradient norm is more than 6 deviations above its last 128 values. Skipped values enter the history."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)

    def __call__(self, loss: float, grad_norm: float) -> bool:
        """True to step. Always, until 64 values are known."""
        ordinary = not (_is_high(loss, self.losses) or _is_high(grad_norm, self.grad_norms))
        self.losses = [*self.losses, loss][-SKIP_WINDOW:]
        self.grad_norms = [*self.grad_norms, grad_norm][-SKIP_WINDOW:]
        return ordinary


def _is_high(value: float, history: Sequence[float]) -> bool:
    if len(history) < SKIP_MIN_HISTORY:
        return False
    mean = math.fsum(history) / len(history)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in history) / len(history))
    return value - mean > SKIP_SIGMAS * deviation
