"""The dry run counts what a real sharded step does: shards, bytes and calls of its collectives, and what autograd keeps."""

import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from trainplane import dry_run, optim, parallel
from trainplane.parallel import ParallelSettings
from trainplane.schedule import Schedule
from trainplane.step import StepSettings, device_step
from triplane.errors import UsageError
from triplane.lm.model import ModelConfig, Olmo2, init_weights

OLMO_2_32B = ModelConfig(100352, 5120, 27648, 64, 40, 8)
HSDP = ParallelSettings("hsdp", 256, "bf16", activation_checkpointing="mlp")
BATCH = {
    "sequence_length": 4096,
    "global_batch_tokens": 2048 * 4096,
    "microbatch_instances": 2,
    "stop_tokens": 6_500_000_000_000,
}


def test_the_32b_recipe_on_128_nodes_of_8() -> None:
    found = dry_run.report(OLMO_2_32B, HSDP, nodes=128, gpus_per_node=8, **BATCH)
    assert found["gpus"] == 1024 and found["mesh"] == {"replicate": 4, "shard": 256}
    assert found["parameters"] == 32_234_279_936
    memory = found["memory"]
    # Every matrix and every norm's scale divides by 256.
    assert memory["parameters"] == memory["gradients"] == 32_234_279_936 // 256 * 4
    assert memory["optimizer"] == 2 * memory["parameters"]
    assert 20e9 < memory["total_estimate"] < 80e9
    assert found["batch"] == {
        "instances": 2048, "tokens": 8_388_608, "instances_per_gpu": 2, "micro_batches_per_gpu": 1, "tokens_per_micro_batch": 8192, "steps": 774_861,
    }  # fmt: skip
    sent = found["communication"]
    blocks = 32_234_279_936 - 2 * 100352 * 5120 - 5120
    once = 2 * 100352 * 5120 + 5120
    assert sent["all_gather"] == pytest.approx((2 * blocks + once) * 2 * 255 / 256)
    assert sent["reduce_scatter"] == pytest.approx(32_234_279_936 * 4 * 255 / 256)
    assert sent["all_reduce"] == pytest.approx(2 * 3 / 4 * 32_234_279_936 / 256 * 4)
    assert not dist.is_initialized()


class Collectives(TorchDispatchMode):
    """Bytes that a ring sends, and calls, of the collectives that really run."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = function.name()
        if name in ("c10d::_allgather_base_", "c10d::_reduce_scatter_base_"):
            whole = max(arguments[:2], key=lambda tensor: tensor.numel())
            part = min(arguments[:2], key=lambda tensor: tensor.numel())
            self.count("all_gather" if "gather_base" in name else "reduce_scatter", whole.nbytes - part.nbytes)
        if name == "c10d::allreduce_" and arguments[0][0].numel() > 3:  # the sums of the loss are 3 numbers
            ranks = dist.ProcessGroup.unbox(arguments[1]).size()
            self.count("all_reduce", 2 * arguments[0][0].nbytes * (ranks - 1) // ranks)
        return function(*arguments, **(options or {}))

    def count(self, name: str, size: int) -> None:
        self.bytes[name] += size
        self.calls += 1


CONFIG = ModelConfig(98, 32, 48, 3, 4, 2, max_position_embeddings=8, eos_token_id=0, pad_token_id=1)


def measured(settings: ParallelSettings, world: int, micro_batches: int) -> Collectives:
    """A real step on a process group that moves nothing: the numbers are wrong, the calls are right."""
    with dry_run._pretended_ranks(world):
        model = Olmo2(CONFIG)
        init_weights(model, 0)
        parallel.parallelize(model, settings, parallel.mesh(settings, "cpu"))
        optimizer = optim.adamw(model, optim.AdamWSettings(0.9, 0.95, 1e-8, 0.1, False, True))
        step = StepSettings(Schedule(0.0, 0, "linear", 10, 1.0), 0.0, 1.0, 1, measure_update_norm=False)
        tokens = torch.randint(2, 98, (micro_batches, 8))
        with Collectives() as found:
            device_step(model, optimizer, tokens, torch.ones_like(tokens, dtype=torch.bool), 1, step)
    return found


@pytest.mark.parametrize(
    ("settings", "world", "micro_batches"),
    [
        (ParallelSettings("fsdp"), 8, 1),
        (ParallelSettings("fsdp", precision="bf16", activation_checkpointing="full"), 4, 3),
        (ParallelSettings("hsdp", 4, "bf16"), 8, 2),
    ],
)
def test_a_real_step_sends_what_the_dry_run_says(settings: ParallelSettings, world: int, micro_batches: int) -> None:
    batch = {
        "sequence_length": 8,
        "global_batch_tokens": world * micro_batches * 8,
        "microbatch_instances": 1,
        "stop_tokens": 1,
    }
    expected = dry_run.report(CONFIG, settings, nodes=1, gpus_per_node=world, **batch)["communication"]
    found = measured(settings, world, micro_batches)
    assert found.calls == expected["collectives"]
    for name in ("all_gather", "reduce_scatter", "all_reduce"):
        assert found.bytes[name] == pytest.approx(expected[name], abs=64), name


def test_a_batch_that_the_ranks_do_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match="2048 instances of 4096, which 1000 GPUs do not share equally"):
        dry_run.report(OLMO_2_32B, ParallelSettings("fsdp"), nodes=125, gpus_per_node=8, **BATCH)
    with pytest.raises(UsageError, match="shard_ranks 96 does not divide 1024 ranks"):
        dry_run.report(OLMO_2_32B, dataclasses.replace(HSDP, shard_ranks=96), nodes=128, gpus_per_node=8, **BATCH)


def test_less_is_kept_the_more_is_computed_again() -> None:
    kept = {
        choice: dry_run.activations(OLMO_2_32B, dataclasses.replace(HSDP, activation_checkpointing=choice), 8192)
        for choice in ("none", "every_4", "every_2", "mlp", "full")
    }
    assert kept["none"] > kept["every_4"] > kept["every_2"] > kept["full"]
    assert kept["none"] > kept["mlp"] > kept["full"]
