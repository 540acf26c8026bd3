"""The learning rate as a pure function of tokens seen: warm-up, then cosine or linear decay.

(tokens seen, `Schedule`) -> learning rate. The step convention is OLMo's: step k, counted from 1, is taken with the learning rate at
k x global_batch_tokens, that is, after its own batch is counted. Source: allenai/OLMo olmo/optim.py and OLMo-core optim/scheduler.py.
"""

import math
from dataclasses import dataclass
from typing import Literal

Decay = Literal["cosine", "linear"]


@dataclass(frozen=True)
class Schedule:
    """`decay_tokens` is where the decay ends; a run may stop earlier (OLMo 2 7B: horizon 5T, stopped at 3.9T)."""

    peak_lr: float
    warmup_tokens: int
    decay: Decay
    decay_tokens: int
    final_lr_fraction: float


def lr_at(tokens_seen: int, schedule: Schedule) -> float:
    """The learning rate for the step that makes `tokens_seen` tokens seen in all. Raises ValueError for a negative count."""
    if tokens_seen < 0:
        raise ValueError(f"tokens_seen is {tokens_seen}; it counts from 0")
    if tokens_seen < schedule.warmup_tokens:
        return schedule.peak_lr * tokens_seen / schedule.warmup_tokens
    floor = schedule.final_lr_fraction * schedule.peak_lr
    if tokens_seen >= schedule.decay_tokens:
        return floor
    progress = (tokens_seen - schedule.warmup_tokens) / (schedule.decay_tokens - schedule.warmup_tokens)
    if schedule.decay == "linear":
        return schedule.peak_lr - (schedule.peak_lr - floor) * progress
    return floor + (schedule.peak_lr - floor) * (1.0 + math.cos(math.pi * progress)) / 2.0


def num_steps(stop_tokens: int, global_batch_tokens: int) -> int:
    """Steps until at least `stop_tokens` are seen; the last batch is whole."""
    return -(-stop_tokens // global_batch_tokens)
