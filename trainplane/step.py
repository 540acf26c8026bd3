"""One optimizer step: the equation of training, top to bottom.

(model, optimizer, this rank's share of the global batch, tokens seen) -> `StepTensors`, and read to the host `StepMetrics`. Any split into
micro-batches and any number of ranks gives the same gradient up to the order of fp32 sums, because sums are divided by the number of labelled tokens
of the *global* batch. The host never waits for the device in here. No logging, no storage, no schedule state.

Shapes: B instances on this rank, T tokens, D hidden.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .loss import IGNORE, head_loss, next_token_labels
from .optim import clip_, global_norm, set_lr, step_if
from .parallel import before_micro_batch, sum_over_ranks
from .schedule import Schedule, lr_at


@dataclass(frozen=True)
class StepSettings:
    schedule: Schedule
    z_loss: float
    max_grad_norm: float
    microbatch_instances: int
    # A copy of the weights for one step: 4 bytes a parameter.
    measure_update_norm: bool
    # A token sees its own document only, which ends with an EOS. OLMo 2 trained without (`generate_doc_lengths` is commented out).
    document_masks: bool = False
    # The loss too is compiled; the blocks are by `parallelize`.
    compile_loss: bool = False


class StepMetrics(NamedTuple):
    """Of the global batch. `loss` is cross-entropy alone, in nats a token; `z_loss` is z * mean(lse^2), as it enters the gradient."""

    loss: float
    z_loss: float
    lr: float
    grad_norm: float
    update_norm: float | None
    num_labels: int
    skipped: bool


class StepTensors(NamedTuple):
    """The same on the device, fp32 scalars (`lr` is the host's): nothing has waited for them yet."""

    loss: Tensor
    z_loss: Tensor
    lr: float
    grad_norm: Tensor
    update_norm: Tensor | None
    num_labels: Tensor
    stepped: Tensor


# (loss, gradient norm), scalars of the device -> whether to update: a bool, or a bool tensor that only the device looks at.
ShouldStep = Callable[[Tensor, Tensor], Tensor | bool]


def always_step(loss: Tensor, grad_norm: Tensor) -> bool:
    return True


def train_step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    tokens_BT: Tensor,
    is_target_BT: Tensor,
    tokens_seen: int,
    settings: StepSettings,
    should_step: ShouldStep = always_step,
) -> StepMetrics:
    """`device_step`, read at once."""
    (metrics,) = read([device_step(model, optimizer, tokens_BT, is_target_BT, tokens_seen, settings, should_step)])
    return metrics


def device_step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    tokens_BT: Tensor,
    is_target_BT: Tensor,
    tokens_seen: int,
    settings: StepSettings,
    should_step: ShouldStep = always_step,
) -> StepTensors:
    """`tokens_seen` counts this batch. `should_step` may veto the update (skip-step); it is asked on every rank alike."""
    labels_BT = next_token_labels(tokens_BT, is_target_BT)
    sums = torch.zeros(3, device=tokens_BT.device)  # cross-entropy, lse^2, labelled tokens: fp32 counts to 2^24 exactly

    for rows in range(0, len(tokens_BT), settings.microbatch_instances):
        micro = slice(rows, rows + settings.microbatch_instances)
        before_micro_batch(model, is_last=micro.stop >= len(tokens_BT))
        mask_BTT = document_mask(tokens_BT[micro], model.config.eos_token_id) if settings.document_masks else None
        hidden_BTD, labels_N = model.hidden(tokens_BT[micro], mask_BTT=mask_BTT), labels_BT[micro].flatten()
        inputs = hidden_BTD.flatten(0, 1), labels_N, settings.z_loss
        loss = model.lm_head.through(partial(head_loss, compiled=settings.compile_loss), *inputs)
        loss.total.backward()
        sums += torch.stack([loss.cross_entropy, loss.z_squared, (labels_N != IGNORE).sum()])

    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    sum_over_ranks(model, gradients, sums)
    num_labels = sums[2].clamp(min=1)  # a batch whose every instance is masked has gradient 0, not NaN
    mean_loss, mean_z = sums[:2] / num_labels
    grad_norm = clip_(model.parameters(), settings.max_grad_norm, num_labels)
    lr = lr_at(tokens_seen, settings.schedule)
    set_lr(optimizer, lr)
    decision = should_step(mean_loss, grad_norm)
    # `full` is a kernel; a copy from the host would be waited for.
    stepping = decision if isinstance(decision, Tensor) else torch.full((), decision, device=sums.device)
    update_norm = _update(model, optimizer, stepping, settings.measure_update_norm)
    optimizer.zero_grad(set_to_none=True)
    return StepTensors(mean_loss, settings.z_loss * mean_z, lr, grad_norm, update_norm, sums[2], stepping)


def read(steps: Sequence[StepTensors]) -> list[StepMetrics]:
    """The metrics of some steps on the host, by one transfer: the only place that waits for the device."""
    columns = [
        torch.stack([step.loss, step.z_loss, step.grad_norm, step.num_labels, step.stepped.float(), *_present(step)])
        for step in steps
    ]
    values = torch.stack(columns).tolist() if columns else []
    return [
        StepMetrics(loss, z_loss, step.lr, grad_norm, update[0] if update else None, int(num_labels), not stepped)
        for step, (loss, z_loss, grad_norm, num_labels, stepped, *update) in zip(steps, values, strict=True)
    ]


def _present(step: StepTensors) -> list[Tensor]:
    return [] if step.update_norm is None else [step.update_norm]


def document_mask(tokens_BT: Tensor, eos_id: int) -> Tensor:
    """bool [B, T, T], True where query t may attend to key s: s is not later and in the same document, whose EOS is its last token."""
    ends_BT = (tokens_BT == eos_id).long()
    document_BT = ends_BT.cumsum(1) - ends_BT
    same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
    return same_BTT.tril()


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, stepping: Tensor, measure: bool) -> Tensor | None:
    if not measure:
        step_if(optimizer, stepping)
        return None
    parameters = [p.detach() for p in model.parameters()]
    before = [p.clone() for p in parameters]
    step_if(optimizer, stepping)
    torch._foreach_sub_(before, parameters)
    return global_norm(before)
