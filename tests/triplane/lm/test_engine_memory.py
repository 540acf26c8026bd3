"""Memory does not grow with the suite: measured in a process of its own, with the control that the same work without the bound takes more."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triplane.lm import prefix_tree

ROOT = Path(__file__).parents[3]
CHILD = r"""
import json, re, sys
import numpy as np, torch
from triplane.lm import engine
from triplane.lm.model import ModelConfig, Olmo2, init_weights
torch.set_num_threads(1)
count = int(sys.argv[1])
model = Olmo2(ModelConfig(64, 8, 8, 1, 1, 1, max_position_embeddings=512, eos_token_id=0, pad_token_id=0))
init_weights(model, 0)
def peak(): return int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) << 10  # ru_maxrss begins with the parent's
def documents(count): return [(row[:1], row[1:]) for row in np.random.default_rng(1).integers(1, 64, (count, 256), np.uint32)]
engine.loglikelihood(model, documents(64), 8192)
asked = documents(count)
before, told = peak(), []
for engine.PLAN_TOKENS in map(int, sys.argv[2:]):
    found = engine.loglikelihood(model, asked, 8192)
    told.append({"grown": peak() - before, "first": [total for total, _ in found[:50]]})
print(json.dumps(told))
"""
PIECE = 1 << 16  # tokens
BOUND = 30 << 20  # bytes: 60 a token of a piece, one forward, and what the allocator keeps


def measured(count: int, *plan_tokens: int) -> list[dict[str, Any]]:
    """Ascending by `plan_tokens`, as a peak stays a peak."""
    command = [sys.executable, "-c", CHILD, str(count), *map(str, plan_tokens)]
    found: list[dict[str, Any]] = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    return found


def test_peak_memory_does_not_grow_with_the_requests() -> None:
    """Scores themselves (a few bytes a request) aside."""
    parts, whole = measured(3000, PIECE, 1 << 40)
    assert parts["grown"] < BOUND
    assert whole["grown"] > 2 * parts["grown"] > 0  # the control: all planned together
    assert parts["first"] == pytest.approx(whole["first"], abs=1e-4)


def nested(count: int) -> list[np.ndarray]:
    """A conversation that goes on in two ways at every turn, one of them to its end before the other: each turn is a trunk inside the last one."""
    r, path, found = np.random.default_rng(3), np.empty(0, np.int64), []
    for _ in range(count):
        path, other = (np.concatenate([path, [first], r.integers(1, 1000, 300)]) for first in (0, 1000))
        found += [np.concatenate([other, r.integers(1, 1000, 700)]) for _ in range(3)]
    return found


def held_at_once(plan: prefix_tree.Plan) -> int:
    """The most tokens of keys and values that are held together while a plan is carried out, as the engine drops them."""
    last = {step.trunk: number for number, step in enumerate(plan.steps)}
    alive, lengths, most = set[int](), {-1: 0}, 0
    for number, step in enumerate(plan.steps):
        if step.makes >= 0:
            lengths[step.makes] = lengths[step.trunk] + step.num_tokens
            alive.add(step.makes)
            most = max(most, sum(lengths[one] for one in alive))
        if last[step.trunk] == number:
            alive.discard(step.trunk)
    return most


def test_trunks_of_trunks_hold_no_more_than_the_cache_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = nested(25)
    wanted = [1] * len(sequences)
    bounded = prefix_tree.plan(sequences, wanted, 2048)
    assert 0 < held_at_once(bounded) <= prefix_tree.MAX_HELD_TOKENS
    monkeypatch.setattr(prefix_tree, "MAX_HELD_TOKENS", 1 << 40)
    free = prefix_tree.plan(sequences, wanted, 2048)
    assert held_at_once(free) > 2 * 32768  # the control
    assert free.num_tokens <= bounded.num_tokens < sum(map(len, sequences))
