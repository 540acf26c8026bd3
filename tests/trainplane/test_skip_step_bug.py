"""The optimizer OLMo 2 32B was trained with: OLMo-core's SkipStepAdamW while its step counter stood still, written out and compared."""

import math

import pytest
import torch
from torch import nn

from trainplane.optim import AdamWSettings, adamw, effective, state_tensors

LR, BETA1, BETA2, EPS, DECAY = 0.01, 0.9, 0.95, 1e-8, 0.1


def settings(bug: bool) -> AdamWSettings:
    return AdamWSettings(BETA1, BETA2, EPS, DECAY, True, True, skip_step_bug=bug)


def model() -> nn.Linear:
    made = nn.Linear(4, 3, bias=False)
    nn.init.constant_(made.weight, 0.5)
    return made


def gradients(n: int) -> list[torch.Tensor]:
    return list(torch.randn(n, 3, 4, generator=torch.Generator().manual_seed(1)))


def stepped(bug: bool, of: list[torch.Tensor]) -> torch.Tensor:
    made = model()
    optimizer = adamw(made, settings(bug))
    for group in optimizer.param_groups:
        group["lr"] = LR
    for gradient in of:
        made.weight.grad = gradient.clone()
        optimizer.step()
    return made.weight.detach()


def reference(of: list[torch.Tensor], counting: bool) -> torch.Tensor:
    """`adamw_step` of OLMo-core, whose `step` was to be raised by its caller and was not."""
    weight = torch.full((3, 4), 0.5, dtype=torch.float64)
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for step, gradient in enumerate(map(torch.Tensor.double, of)):
        step = step if counting else 0
        weight = weight * (1 - LR * DECAY)
        mean = BETA1 * mean + (1 - BETA1) * gradient
        square = BETA2 * square + (1 - BETA2) * gradient**2
        size = LR / (1 - BETA1 ** (step + 1))
        weight = weight - size * mean / (square.sqrt() / math.sqrt(1 - BETA2 ** (step + 1)) + EPS)
    return weight.float()


@pytest.mark.parametrize("bug", [True, False])
def test_equal_to_the_optimizer_written_out(bug: bool) -> None:
    torch.testing.assert_close(stepped(bug, gradients(20)), reference(gradients(20), counting=not bug))


def test_the_two_differ() -> None:
    """Negative control of the test above."""
    with pytest.raises(AssertionError):
        torch.testing.assert_close(stepped(True, gradients(20)), reference(gradients(20), counting=True))
    torch.testing.assert_close(stepped(True, gradients(1)), stepped(False, gradients(1)))  # the first step is the same


def test_settled_steps_are_2_236_times_as_long() -> None:
    steady = [torch.ones(3, 4)] * 400
    lengths = {}
    for bug in (True, False):
        before, after = stepped(bug, steady[:-1]), stepped(bug, steady)
        lengths[bug] = float((before * (1 - LR * DECAY) - after).mean())
    assert lengths[True] / lengths[False] == pytest.approx(math.sqrt(1 - BETA2) / (1 - BETA1), rel=1e-4)
    assert math.sqrt(1 - BETA2) / (1 - BETA1) == pytest.approx(2.236, abs=1e-3)


def test_the_live_optimizer_says_which_it_is() -> None:
    assert effective(adamw(model(), settings(True)))["matrices"]["skip_step_bug"] is True
    assert "skip_step_bug" not in effective(adamw(model(), settings(False)))["matrices"]


def test_a_checkpoint_keeps_the_counter_at_zero() -> None:
    made = model()
    optimizer = adamw(made, settings(True))
    made.weight.grad = torch.ones(3, 4)
    optimizer.step()
    assert float(state_tensors(made, optimizer)["step/weight"]) == 0.0
