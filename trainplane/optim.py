"""AdamW with OLMo 2's parameter groups, its conditional step, and the optimizer's state as named tensors.

(model, `AdamWSettings`) -> torch.optim.AdamW. Weight decay applies to every matrix, to norm weights as OLMo 2 does
(`decay_norm_and_bias: true`), and not to token embeddings (arXiv 2501.00656, section 3.4.2). State goes in and out as a flat dict of tensors named
after parameters, which safetensors can hold.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

CLIP_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_
STATE_KEYS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class AdamWSettings:
    """Decoupled weight decay is multiplied by the learning rate, as in torch. `skip_step_bug`: the step counter never moves."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decay_embeddings: bool
    decay_norms: bool
    skip_step_bug: bool = False


def parameter_groups(model: nn.Module, settings: AdamWSettings) -> list[dict[str, Any]]:
    """Three groups (matrices, norms, embeddings); every parameter is in exactly one, in the model's order. Empty groups are left out."""
    embedding_ids = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    members: dict[str, list[nn.Parameter]] = {"matrices": [], "norms": [], "embeddings": []}
    for parameter in model.parameters():
        kind = "embeddings" if id(parameter) in embedding_ids else "norms" if parameter.ndim == 1 else "matrices"
        members[kind].append(parameter)
    decays = {"matrices": True, "norms": settings.decay_norms, "embeddings": settings.decay_embeddings}
    groups: list[dict[str, Any]] = [
        {"name": name, "params": params, "weight_decay": settings.weight_decay if decays[name] else 0.0}
        for name, params in members.items()
        if params
    ]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    return groups


def adamw(model: nn.Module, settings: AdamWSettings) -> torch.optim.AdamW:
    """The learning rate is 0 until the step sets it. `fused` is one kernel over all tensors, on CPU too."""
    groups = [group | {"skip_step_bug": settings.skip_step_bug} for group in parameter_groups(model, settings)]
    optimizer = torch.optim.AdamW(
        groups,
        lr=0.0,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,
    )
    optimizer.register_step_post_hook(_forget_steps)
    return optimizer


def _forget_steps(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """The defect OLMo 2 32B was trained with (OLMo-core SkipStepAdamW before its PR 309): every step corrects the bias as the first does, so
    that a settled step is 1 / (1 - beta1) * sqrt(1 - beta2) = 2.236 times as long at (0.9, 0.95)."""
    for group in optimizer.param_groups:
        if group["skip_step_bug"]:
            torch._foreach_zero_([optimizer.state[p]["step"] for p in group["params"] if p in optimizer.state])


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_(parameters: Iterable[nn.Parameter], max_norm: float, divisor: Tensor | float = 1.0) -> Tensor:
    """Divides gradients by `divisor` and scales them so that their global L2 norm is at most `max_norm`, in place and in one pass; returns
    the norm after the division and before the scaling, a scalar of the device. As `torch.nn.utils.clip_grad_norm_`."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = global_norm(gradients) / divisor
    torch._foreach_mul_(_local(gradients), (max_norm / (norm + CLIP_EPS)).clamp(max=1.0) / divisor)
    return norm


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm over all elements, of all ranks' shards; a scalar of the device."""
    norm = nn.utils.get_total_norm(list(tensors), foreach=True)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def step_if(optimizer: torch.optim.Optimizer, stepping: Tensor) -> None:
    """`optimizer.step()` where `stepping` (bool, a scalar) is true; else parameters, moments and step counts stay as they are, bit for bit.

    The fused kernel looks at the flag on the device, by the hook that loss scaling has for gradients that are not finite: no host asks.
    """
    optimizer.found_inf = (~stepping).float()  # type: ignore[attr-defined]
    optimizer.step()


def _local(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor, or this rank's shard of it."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def effective(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """What the live optimizer will do, by group name: read from its groups, never from the recipe."""
    return {
        group["name"]: {
            "beta1": group["betas"][0],
            "beta2": group["betas"][1],
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "num_parameters": sum(p.numel() for p in group["params"]),
            **({"skip_step_bug": True} if group["skip_step_bug"] else {}),
        }
        for group in optimizer.param_groups
    }


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`{key}/{parameter name}` -> tensor, for every parameter that has taken a step."""
    return {
        f"{key}/{name}": optimizer.state[parameter][key]
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for key in STATE_KEYS
    }


def load_state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `state_tensors`. Raises KeyError for a tensor that is missing and ValueError for one too many or of another shape."""
    left = dict(tensors)
    for name, parameter in model.named_parameters() if tensors else ():
        state = {key: left.pop(f"{key}/{name}").clone() for key in STATE_KEYS}
        if state["exp_avg"].shape != parameter.shape:
            raise ValueError(
                f"optimizer state of {name} is {tuple(state['exp_avg'].shape)}, the parameter {tuple(parameter.shape)}"
            )
        optimizer.state[parameter] = state
    if left:
        raise ValueError(f"optimizer state names parameters the model has not: {', '.join(sorted(left)[:3])}")
