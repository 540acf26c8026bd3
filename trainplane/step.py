"""One optimizer step: the equation of training, top to bottom.

(model, optimizer, this rank's share of the global batch, tokens seen) -> `StepMetrics`. Any split into micro-batches and any number of ranks
gives the same gradient up to the order of fp32 sums, because sums are divided by the number of labelled tokens of the *global* batch.
No logging, no storage, no schedule state in here.

Shapes: B instances on this rank, T tokens, D hidden.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .loss import IGNORE, head_loss, next_token_labels
from .optim import clip_, set_lr
from .schedule import Schedule, lr_at


@dataclass(frozen=True)
class StepSettings:
    schedule: Schedule
    z_loss: float
    max_grad_norm: float
    microbatch_instances: int
    # A copy of the weights for one step: 4 bytes a parameter.
    measure_update_norm: bool


class StepMetrics(NamedTuple):
    """Of the global batch. `loss` is cross-entropy alone, in nats a token; `z_loss` is z * mean(lse^2), as it enters the gradient."""

    loss: float
    z_loss: float
    lr: float
    grad_norm: float
    update_norm: float | None
    num_labels: int
    skipped: bool


def always_step(loss: float, grad_norm: float) -> bool:
    return True


def train_step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    tokens_BT: Tensor,
    is_target_BT: Tensor,
    tokens_seen: int,
    settings: StepSettings,
    should_step: Callable[[float, float], bool] = always_step,
) -> StepMetrics:
    """`tokens_seen` counts this batch. `should_step(loss, grad_norm)` may veto the update (skip-step); it is asked on every rank alike."""
    labels_BT = next_token_labels(tokens_BT, is_target_BT)
    sums = torch.zeros(3, device=tokens_BT.device)  # cross-entropy, lse^2, labelled tokens: fp32 counts to 2^24 exactly

    for rows in range(0, len(tokens_BT), settings.microbatch_instances):
        micro = slice(rows, rows + settings.microbatch_instances)
        hidden_BTD, labels_N = model.hidden(tokens_BT[micro]), labels_BT[micro].flatten()
        loss = head_loss(hidden_BTD.flatten(0, 1), model.lm_head.weight, labels_N, settings.z_loss)
        loss.total.backward()
        sums += torch.stack([loss.cross_entropy, loss.z_squared, (labels_N != IGNORE).sum()])

    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    _sum_over_ranks([*gradients, sums])
    num_labels = int(sums[2])
    denominator = max(1, num_labels)  # a batch whose every instance is masked has gradient 0, not NaN
    torch._foreach_div_(gradients, denominator)
    mean_loss, mean_z = (sums[:2] / denominator).tolist()
    grad_norm = clip_(model.parameters(), settings.max_grad_norm).item()
    lr = lr_at(tokens_seen, settings.schedule)
    set_lr(optimizer, lr)
    stepping = should_step(mean_loss, grad_norm)
    update_norm = _update(model, optimizer, settings.measure_update_norm) if stepping else 0.0
    optimizer.zero_grad(set_to_none=True)
    z_loss = settings.z_loss * mean_z
    return StepMetrics(mean_loss, z_loss, lr, grad_norm, update_norm, num_labels, not stepping)


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, measure: bool) -> float | None:
    if not measure:
        optimizer.step()
        return None
    parameters = [p.detach() for p in model.parameters()]
    before = [p.clone() for p in parameters]
    optimizer.step()
    torch._foreach_sub_(before, parameters)
    return torch.stack(torch._foreach_norm(before)).norm().item()


def _sum_over_ranks(tensors: list[Tensor]) -> None:
    """In place, by one all-reduce of one flat bucket: one wait a step, and the same order of sums every time for a world size."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    bucket = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(bucket)
    parts = bucket.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])
