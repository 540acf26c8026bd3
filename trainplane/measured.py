"""What live objects will really do, asked of the objects: (model, optimizer, settings, batches) -> plain values, before the first step.

Nothing here looks at a recipe. Coefficients are measured by calling what the step calls; the optimizer's settings are read by parameter name;
the model's structure is read from its modules and the spread of its fresh weights. OLMo's z-loss, and OLMo-core's step counter, were
once not what the configuration said.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainplane import optim
from trainplane.loss import head_loss
from trainplane.schedule import lr_at
from trainplane.step import StepSettings
from triplane.lm.model import SWITCHES, TRUNCATION_SIGMAS, initial_std

_LAYER = re.compile(r"(?<=layers\.)\d+(?=\.)")
# Variance of a standard normal cut at +-TRUNCATION_SIGMAS.
_DENSITY = math.exp(-(TRUNCATION_SIGMAS**2) / 2) / math.sqrt(2 * math.pi)
TRUNCATED_STD = math.sqrt(1 - 2 * TRUNCATION_SIGMAS * _DENSITY / math.erf(TRUNCATION_SIGMAS / math.sqrt(2)))


def z_loss(settings: StepSettings) -> float:
    """The coefficient that the step's loss applies: with one class and a logit of 1, cross-entropy is 0 and lse^2 is 1."""
    one = torch.ones(1, 1)
    return float(head_loss(one, one, torch.zeros(1, dtype=torch.long), settings.z_loss).total)


def max_grad_norm(settings: StepSettings) -> float:
    """The norm that a gradient far too long has after the step's clipping."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.full((1,), 1e6 * max(1.0, settings.max_grad_norm))
    optim.clip_([parameter], settings.max_grad_norm)
    return float(parameter.grad.abs())


def learning_rates(optimizer: torch.optim.Optimizer, settings: StepSettings, tokens: Iterable[int]) -> list[float]:
    """What the groups hold after the step has set the rate at each token count; NaN where groups differ. The rate is 0 afterwards."""
    found = []
    for count in tokens:
        optim.set_lr(optimizer, lr_at(count, settings.schedule))
        rates = {float(group["lr"]) for group in optimizer.param_groups}
        found.append(rates.pop() if len(rates) == 1 else math.nan)
    optim.set_lr(optimizer, 0.0)
    return found


def weight_decay(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Decay by parameter name, layers as one (`layers.*.mlp.up_proj.weight`); 'absent' for a parameter that no group has."""
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    return by_name({name: decays.get(id(p), "absent") for name, p in model.named_parameters()})


def structure(model: nn.Module) -> dict[str, Any]:
    """Where the norms are and what QK-norm spans, read from the modules: `mixed` where layers differ."""
    names = [plain_name(name) for name, _ in model.named_parameters()]
    layers = {int(match[0]) for name in names if (match := _LAYER.search(name))}
    by_layer = [{name.split(".", 2)[2] for name in names if name.startswith(f"layers.{layer}.")} for layer in layers]
    positions = {"pre" if "input_layernorm.weight" in inside else "post" for inside in by_layer}
    qk_norms = {"self_attn.q_norm.weight" in inside and "self_attn.k_norm.weight" in inside for inside in by_layer}
    return {
        "num_hidden_layers": len(layers),
        "norm_position": positions.pop() if len(positions) == 1 else "mixed",
        "qk_norm": qk_norms.pop() if len(qk_norms) == 1 else "mixed",
    }


def initialization(model: Any) -> str | None:
    """Which rule the weights of a fresh model follow, by the spread of every matrix within 6 standard errors: `normal`, `scaled` or
    `neither`; None while there are no weights (meta device)."""
    matrices = {plain_name(name): _local(p) for name, p in model.named_parameters() if p.ndim > 1}
    if any(values.is_meta for values in matrices.values()):
        return None
    spreads = {name: (_std(values), values.numel()) for name, values in matrices.items() if values.numel() > 1}
    rules = {rule: dataclasses.replace(model.config, initialization=rule) for rule in SWITCHES["initialization"]}
    # The config's own rule first: at some widths both fit.
    for rule in sorted(rules, key=lambda one: one != model.config.initialization):
        expected = {name: TRUNCATED_STD * initial_std(name, rules[rule]) for name in spreads}
        if all(abs(std / expected[name] - 1) < 6 / math.sqrt(2 * n) for name, (std, n) in spreads.items()):
            return rule
    return "neither"


def _std(values: Tensor) -> float:
    return float(values.float().std())


def precision(model: Any) -> dict[str, str] | None:
    """The dtypes of weights and of what the embeddings give, where the residual stream begins; None while there are no weights."""
    if any(parameter.is_meta for parameter in model.parameters()):
        return None
    device = next(model.parameters()).device
    with torch.no_grad():
        stream = model.embed_tokens(torch.zeros(1, 1, dtype=torch.long, device=device))
    weights = {_short(parameter.dtype) for parameter in model.parameters()}
    return {"parameters": weights.pop() if len(weights) == 1 else "mixed", "activations": _short(stream.dtype)}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.").replace("bfloat", "bf").replace("float", "fp")


def data(batches: Any) -> dict[str, Any]:
    """How the loader orders and filters, read from the loader."""
    kinds = {None: "feistel", 0: "olmo", 1: "olmo-core"}  # by the number of the first epoch, which feistel has not
    return {
        "order": kinds[getattr(batches.order, "first_epoch", None)],
        "order_chunk_instances": getattr(batches.order, "chunk_instances", 1),
        "order_seed": batches.order.seed,
        "global_batch_instances": batches.batch_instances,
        "instance_filter": batches.instance_filter,
    }


def plain_name(name: str) -> str:
    """A parameter's name without what compiling and activation checkpointing put in."""
    return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")


def by_name(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name with the number of the layer replaced by `*`; a list where layers differ."""
    grouped: dict[str, list[Any]] = {}
    for name, value in values.items():
        kept = grouped.setdefault(_LAYER.sub("*", plain_name(name)), [])
        if value not in kept:
            kept.append(value)
    return {name: found[0] if len(found) == 1 else found for name, found in grouped.items()}


def _local(parameter: Tensor) -> Tensor:
    """This rank's part of a parameter that may be sharded."""
    values = parameter.detach()
    return values.to_local() if hasattr(values, "to_local") else values
