"""Spikes in loss and gradient norm: two published definitions of the spike score, and the rule that skips a step.

(series of loss or gradient norm) -> score in percent. `paper`: arXiv 2501.00656, section 3 (values at least 7 standard
deviations from the rolling average of the last 1,000). `core`: OLMo-core StabilityMonitorCallback (more than 6 above the
mean of the last 128). They differ, so both are reported. Skip-step: OLMo-core optim/skip_step_optimizer.py, its sample deviation
(n - 1) too; unlike there, its history is part of the checkpoint.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

SKIP_WINDOW = 128
SKIP_MIN_HISTORY = 64  # values, the latest included
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


class SkipStep:
    """Vetoes an update whose loss or gradient norm is more than 6 deviations above its last 128 values. Skipped values enter the history.

    Everything is fp64 on the device of what it is asked about; nothing waits for the device but reading `losses` and `grad_norms`.
    """

    def __init__(self, losses: Sequence[float] = (), grad_norms: Sequence[float] = ()) -> None:
        # [values, 2], oldest first: losses and gradient norms.
        self.history = torch.tensor([*zip(losses, grad_norms, strict=True)], dtype=torch.float64).reshape(-1, 2)

    def __call__(self, loss: Tensor | float, grad_norm: Tensor | float) -> Tensor:
        """bool, a scalar: True to step. Always, until 64 values are known, this one included; never for what is not a number."""
        latest = torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in (loss, grad_norm)])
        history = self.history.to(latest.device)
        self.history = torch.cat([history, latest[None]])[-SKIP_WINDOW:]
        if len(history) + 1 < SKIP_MIN_HISTORY:
            return torch.ones((), dtype=torch.bool, device=latest.device)
        return (latest - history.mean(0) <= SKIP_SIGMAS * history.std(0)).all()

    @property
    def losses(self) -> tuple[float, ...]:
        return tuple(self.history[:, 0].tolist())

    @property
    def grad_norms(self) -> tuple[float, ...]:
        return tuple(self.history[:, 1].tolist())
