"""What a run would need on GPUs that are not here: (model config, layout, batch) -> memory of a GPU, communication of a step, the batch schedule.

The model is built on the meta device and sharded by the very `parallelize` over a mesh whose process group only pretends (torch's "fake"
backend), so parameters, gradients and optimizer state are counted on real shards. Volumes follow from the groups that FSDP2 gathers together;
activations and buffers are estimates, and say so. Bytes are of one GPU (the first); volumes are what it sends, by ring algorithms.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from math import ceil
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from trainplane import parallel
from trainplane.flops import flops_per_token
from trainplane.loss import MOST_BYTES
from trainplane.parallel import BLOCKS_PER_CHECKPOINT, ParallelSettings
from trainplane.schedule import num_steps
from triplane.errors import UsageError
from triplane.lm.model import ModelConfig, Olmo2

FP32, BF16 = 4, 2


def report(
    config: ModelConfig,
    settings: ParallelSettings,
    *,
    nodes: int,
    gpus_per_node: int,
    sequence_length: int,
    global_batch_tokens: int,
    microbatch_instances: int,
    stop_tokens: int,
) -> dict[str, Any]:
    """Plain values, sizes in bytes. Raises UsageError for a mesh that does not divide the ranks or the batch."""
    world = nodes * gpus_per_node
    batch = schedule(world, sequence_length, global_batch_tokens, microbatch_instances, stop_tokens)
    with _pretended_ranks(world), torch.device("meta"):
        model = Olmo2(config)
        mesh = parallel.mesh(settings, "cpu")
        parallel.parallelize(model, settings, mesh)
        groups = _groups(model, settings)
        shape = (
            dict(zip(mesh.mesh_dim_names or (), mesh.shape, strict=True)) if mesh is not None else {"replicate": world}
        )
        local = sum(_local(parameter).numel() for parameter in model.parameters())
    tokens = microbatch_instances * sequence_length
    return {
        "gpus": world,
        "mesh": shape,
        "layout": asdict(settings),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "memory": _memory(config, settings, groups, local, tokens),
        "communication": communication(groups, shape, batch["micro_batches_per_gpu"], settings),
        "batch": batch,
        "flops_per_gpu_per_step": flops_per_token(config, sequence_length) * global_batch_tokens / world,
    }


def schedule(
    world: int, sequence_length: int, global_batch_tokens: int, microbatch_instances: int, stop_tokens: int
) -> dict[str, int]:
    """How a global batch is shared out. Raises UsageError where ranks do not divide it."""
    instances, left = divmod(global_batch_tokens, sequence_length)
    if left or instances % world:
        raise UsageError(
            f"a batch of {global_batch_tokens} tokens is {global_batch_tokens / sequence_length:g} instances of {sequence_length}, which {world} "
            f"GPUs do not share equally: choose a number of GPUs that divides it"
        )
    of_gpu = instances // world
    return {
        "instances": instances,
        "tokens": global_batch_tokens,
        "instances_per_gpu": of_gpu,
        "micro_batches_per_gpu": ceil(of_gpu / microbatch_instances),
        "tokens_per_micro_batch": min(of_gpu, microbatch_instances) * sequence_length,
        "steps": num_steps(stop_tokens, global_batch_tokens),
    }


@contextmanager
def _pretended_ranks(world: int) -> Iterator[None]:
    """Rank 0 of a process group that moves nothing."""
    if dist.is_initialized():
        raise UsageError(
            "a dry run pretends to be a process group, and this process has a real one: run it in one of its own"
        )
    dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _groups(model: Any, settings: ParallelSettings) -> list[dict[str, Any]]:
    """What is gathered together, in order: padded parameters, and how often a micro-batch gathers them (a block again to go back)."""
    found = [("embeddings", model.embed_tokens, 1)]
    found += [(f"layers.{number}", block, 2) for number, block in enumerate(model.layers)]
    found += [("head", model.lm_head, 1), ("norm", model.norm, 1)]
    return [{"name": name, "elements": _padded(module), "gathers": gathers} for name, module, gathers in found]


def _padded(module: nn.Module) -> int:
    """Elements that a gather moves: shards are of equal size, the last ones filled up."""
    total = 0
    for parameter in module.parameters():
        if isinstance(parameter, DTensor):
            ranks = parameter.device_mesh.shape[-1]
            total += ceil(len(parameter) / ranks) * ranks * parameter[0].numel()
        else:
            total += parameter.numel()
    return total


def _local(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def communication(
    groups: list[dict[str, Any]], shape: dict[str, int], micro_batches: int, settings: ParallelSettings
) -> dict[str, int]:
    """Bytes a GPU sends in a step: parameters gathered in the compute precision, gradients reduced in fp32, between copies once a step."""
    shards, copies = shape.get("shard", 1), shape.get("replicate", 1)
    width = BF16 if settings.precision == "bf16" else FP32
    elements = sum(group["elements"] for group in groups)
    gathered = sum(group["elements"] * group["gathers"] for group in groups)
    ring = (shards - 1) / shards
    return {
        "all_gather": round(micro_batches * gathered * width * ring),
        "reduce_scatter": round(micro_batches * elements * FP32 * ring),
        "all_reduce": round(2 * elements // shards * FP32 * (copies - 1) / copies),
        "collectives": micro_batches * (sum(group["gathers"] for group in groups) + len(groups)) * (shards > 1)
        + len(groups) * (copies > 1),
    }


def _memory(
    config: ModelConfig, settings: ParallelSettings, groups: list[dict[str, Any]], local: int, tokens: int
) -> dict[str, int]:
    """Persistent memory is counted; the rest is an estimate for the moment the head's gradient is there and all activations too."""
    width = BF16 if settings.precision == "bf16" else FP32
    sizes = {group["name"]: group["elements"] for group in groups}
    head, block = sizes["head"], sizes["layers.0"]
    # The head gathered, its gradient as autograd makes it and in fp32 to be reduced, the block that is prefetched for the way back.
    gathered = head * (2 * width + FP32) + block * width if settings.shard != "none" else 0
    found = {
        "parameters": local * FP32,
        "gradients": local * FP32,
        "optimizer": 2 * local * FP32,
        "activations_estimate": activations(config, settings, tokens),
        "gathered_estimate": gathered,
        "logits_estimate": min(MOST_BYTES["cuda"], FP32 * config.vocab_size * tokens) * 2,
    }
    return found | {"total_estimate": sum(found.values())}


def activations(config: ModelConfig, settings: ParallelSettings, tokens: int) -> int:
    """Bytes that autograd keeps of all blocks for `tokens` tokens, with flash attention.

    A block keeps its input, what QK-norm and rotation start from and give, values, what attention gives, what the two norms start from, the stream
    between its halves (7 D + 3 K), and gate, up and their product (3 F).
    """
    width = BF16 if settings.precision == "bf16" else FP32
    kv_width = config.num_key_value_heads * config.head_dim
    stream, inner = 7 * config.hidden_size + 3 * kv_width, 3 * config.intermediate_size
    whole = tokens * ((stream + inner) * width + FP32 * config.num_attention_heads)
    layers, choice = config.num_hidden_layers, settings.activation_checkpointing
    if choice == "memory_budget":
        return round(layers * whole * settings.memory_budget)
    if choice == "mlp":
        return layers * (whole - tokens * inner * width) + tokens * inner * width
    if choice == "none":
        return layers * whole
    checkpointed = ceil(layers / BLOCKS_PER_CHECKPOINT[choice])
    # One block at a time is there whole again.
    return (layers - checkpointed) * whole + checkpointed * tokens * config.hidden_size * width + whole
