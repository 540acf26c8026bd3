"""How a model lies over ranks and how its blocks run: (model, `ParallelSettings`, device mesh) -> the same model, changed in place.

`parallelize` reads top to bottom in the order that matters: activation checkpointing inside compiled blocks inside shards. FSDP2 keeps fp32 shards of
parameters, gradients and optimizer state, gathers a block's parameters for its forward and backward pass and reduces gradients in fp32; HSDP
shards inside a group of ranks and copies between groups. OLMo 2 used no tensor parallelism; nor does this (arXiv 2501.00656, section 6).

Below it, what a process knows of its group: it works without one (one rank), under `torchrun` and under Ray Train; whoever starts the
process has set the group up.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial, wraps
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from triplane.errors import UsageError
from triplane.lm.model import MLP, Block, initial_std, initial_tensor

from . import products

Shard = Literal["none", "fsdp", "hsdp"]
Precision = Literal["fp32", "bf16"]
ActivationCheckpointing = Literal["none", "full", "every_2", "every_4", "mlp", "memory_budget"]
GPU_BACKEND, CPU_BACKEND = "cpu:gloo,cuda:nccl", "gloo"
START_SECONDS = 60  # beside what a step may take: what a collective has when not all have begun
BLOCKS_PER_CHECKPOINT: dict[str, int] = {"full": 1, "every_2": 2, "every_4": 4}


@dataclass(frozen=True)
class ParallelSettings:
    """`shard_ranks`: ranks that share one copy of the model, for hsdp. `memory_budget`: the part of a block's activations that the
    compiler may keep, where `activation_checkpointing` is "memory_budget"."""

    shard: Shard = "none"
    shard_ranks: int | None = None
    precision: Precision = "fp32"
    compile: bool = False
    activation_checkpointing: ActivationCheckpointing = "none"
    memory_budget: float = 0.5


def mesh(settings: ParallelSettings, device_type: str) -> DeviceMesh | None:
    """The ranks, [replicate, shard] for hsdp, [shard] for fsdp, None for none. Raises UsageError where they do not divide."""
    world, ranks = world_size(), settings.shard_ranks
    if settings.shard == "none":
        return None
    if settings.shard == "fsdp":
        return init_device_mesh(device_type, (world,), mesh_dim_names=("shard",))
    if not ranks or world % ranks:
        raise UsageError(f"shard_ranks {ranks} does not divide {world} ranks: choose a divisor")
    return init_device_mesh(device_type, (world // ranks, ranks), mesh_dim_names=("replicate", "shard"))


def parallelize(model: Any, settings: ParallelSettings, mesh: DeviceMesh | None) -> None:
    """Changes the model in place; names and values of its parameters stay. Raises UsageError for settings that exclude each other."""
    if settings.activation_checkpointing == "memory_budget" and not settings.compile:
        raise UsageError("activation_checkpointing memory_budget is a choice of the compiler: set compile too")
    _checkpoint_activations(model, settings)
    if settings.precision == "fp32":
        products.use_in(model.layers)
    if settings.compile:
        for block in model.layers:
            block.compile(fullgraph=True)
    if mesh is not None:
        _shard(model, settings, mesh)
    elif settings.precision == "bf16":
        _compute_in_bf16(model)


def _checkpoint_activations(model: Any, settings: ParallelSettings) -> None:
    """What is wrapped keeps its input and computes the rest again in the backward pass. No random numbers: OLMo 2 has no dropout."""
    choice = settings.activation_checkpointing
    if choice == "memory_budget":
        torch._functorch.config.activation_memory_budget = settings.memory_budget
    for number, block in enumerate(model.layers):
        # The class and not `checkpoint_wrapper`, which renames parameters.
        if choice == "mlp":
            block.mlp.__class__ = CheckpointedMLP
        elif choice in BLOCKS_PER_CHECKPOINT and number % BLOCKS_PER_CHECKPOINT[choice] == 0:
            block.__class__ = CheckpointedBlock


class CheckpointedBlock(Block):
    def forward(self, *arguments: Any) -> Tensor:
        return checkpoint(super().forward, *arguments, use_reentrant=False, preserve_rng_state=False)


class CheckpointedMLP(MLP):
    def forward(self, *arguments: Any) -> Tensor:
        return checkpoint(super().forward, *arguments, use_reentrant=False, preserve_rng_state=False)


def _shard(model: Any, settings: ParallelSettings, mesh: DeviceMesh) -> None:
    """Groups that are gathered together: the embeddings, each block, the head; the final norm is the root's."""
    compute = torch.bfloat16 if settings.precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    shard = partial(fully_shard, mesh=mesh, mp_policy=policy)
    shard(model.embed_tokens)
    for block in model.layers:
        shard(block)
    shard(model.lm_head, reshard_after_forward=False)  # its backward comes at once
    shard(model)
    groups = [model.embed_tokens, *model.layers, model.lm_head]
    for group, following in pairwise(groups):
        group.set_modules_to_forward_prefetch([following])
    model.embed_tokens.set_unshard_in_backward(False)  # the gradient of a look-up needs no weights
    for group in (*groups, model):
        group.set_gradient_divide_factor(1.0)  # sums: the step divides by the labels of the global batch
        group.set_force_sum_reduction_for_comms(True)  # without, the factor asks for an operation that gloo has not
    register_fsdp_forward_method(model, "hidden")
    register_fsdp_forward_method(model.lm_head, "through")


def _compute_in_bf16(model: Any) -> None:
    """As sharded models compute: fp32 weights are cast for their products, and the residual stream is bf16 from the embeddings on."""
    model.embed_tokens.register_forward_hook(lambda module, arguments, output: output.bfloat16())
    model.hidden = _autocast(model.hidden)


def _autocast(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(function)
    def call(ids_BT: Tensor, *arguments: Any, **options: Any) -> Tensor:
        with torch.autocast(ids_BT.device.type, torch.bfloat16):
            return function(ids_BT, *arguments, **options)

    return call


def before_micro_batch(model: nn.Module, is_last: bool) -> None:
    """Between copies of an HSDP model gradients are summed once a step, at the last micro-batch.

    Every backward pass ends as the last would: told to hold that back too, FSDP2 (torch 2.13) gathers the head once more in the next one.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(is_last)


def sum_over_ranks(model: nn.Module, gradients: Sequence[Tensor], sums: Tensor) -> None:
    """In place. Gradients of a sharded model have been summed in the backward pass; else they and `sums` are one flat bucket and one
    all-reduce: one wait a step, and the same order of sums every time for a world size."""
    if world_size() == 1:
        return
    if isinstance(model, FSDPModule):
        dist.all_reduce(sums)
        return
    tensors = [*gradients, sums]
    bucket = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(bucket)
    parts = bucket.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])


def initialize(model: Any, seed: int, device: torch.device | str) -> None:
    """`init_weights` for a model that may be sharded and may have been built on the meta device: no rank ever holds more than one whole
    parameter beside its shards, and the values do not depend on the ranks."""
    if any(parameter.is_meta for parameter in model.parameters()):
        model.to_empty(device=device)
    for name, parameter in model.named_parameters():
        copy_whole_(parameter, initial_tensor(name, parameter.shape, initial_std(name, model.config), seed))


@torch.no_grad()
def copy_whole_(parameter: Tensor, whole: Tensor) -> None:
    """Writes a tensor that every rank has whole into a parameter, or into this rank's shard of it. No communication."""
    whole = whole.to(parameter.device)
    if isinstance(parameter, DTensor):
        whole = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(whole)


def join_group(timeout_seconds: float | None = None) -> None:
    """Joins the process group of `torchrun`, if that started this process and no group is there yet, and pins its GPU. What the host exchanges
    goes by gloo even where there are GPUs: it never waits for them. A collective may take `timeout_seconds` (None: torch's default)."""
    if "TORCHELASTIC_RUN_ID" in os.environ and not is_distributed():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        timeout = timeout_seconds and timedelta(seconds=timeout_seconds)
        dist.init_process_group(GPU_BACKEND if torch.cuda.is_available() else CPU_BACKEND, timeout=timeout or None)


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def barrier() -> None:
    """Returns when every rank has come here."""
    if world_size() > 1:
        dist.barrier()


def from_rank_0(value: int) -> int:
    """Rank 0's value, on every rank. An int64, not an object: nothing is unpickled."""
    if world_size() == 1:
        return value
    tensor = torch.tensor([value], dtype=torch.int64)
    dist.broadcast(tensor, src=0)
    return int(tensor.item())


def gather(values: np.ndarray) -> np.ndarray:
    """Arrays of equal shape [n] and 8-byte items from every rank -> [ranks, n], in rank order."""
    if world_size() == 1:
        return values[None]
    mine = torch.from_numpy(np.ascontiguousarray(values).view(np.int64))
    all_ranks = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(all_ranks, mine)
    return torch.stack(all_ranks).numpy().view(values.dtype)
