"""The two ranks of the tests of sharding: run as `python -m tests.trainplane.parallel_ranks FOLDER [LAYOUT ...]`, which imports once and forks,
or called with one rank in the test.

Trains a small model for some steps in every layout, or in those named, and leaves what came out, whole, in the folder.
"""

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from trainplane import optim, parallel, step
from trainplane.parallel import ParallelSettings
from trainplane.schedule import Schedule
from trainplane.step import StepSettings
from triplane.lm.model import ModelConfig, Olmo2, init_weights

# 97 rows do not divide by 2, and grouped queries make matrices of several shapes.
CONFIG = ModelConfig(97, 32, 48, 3, 4, 2, max_position_embeddings=16, rope_theta=1e4, eos_token_id=0, pad_token_id=1)
ADAMW = optim.AdamWSettings(0.9, 0.95, 1e-8, 0.1, decay_embeddings=False, decay_norms=True)
ROWS, LENGTH, STEPS, SKIPPED = 8, 16, 4, 2
SETTINGS = StepSettings(
    schedule=Schedule(3e-3, warmup_tokens=2 * ROWS * LENGTH, decay="cosine", decay_tokens=20 * ROWS * LENGTH, final_lr_fraction=0.1),
    z_loss=1e-4, max_grad_norm=0.05, microbatch_instances=2, measure_update_norm=True,
)  # fmt: skip
LAYOUTS = {
    "plain": ParallelSettings(),
    "fsdp": ParallelSettings("fsdp"),
    "hsdp_1x2": ParallelSettings("hsdp", 2),
    "hsdp_2x1": ParallelSettings("hsdp", 1),
    "fsdp_full": ParallelSettings("fsdp", activation_checkpointing="full"),
    "fsdp_bf16": ParallelSettings("fsdp", precision="bf16"),
}
COMPILED = {"fsdp_compiled": ParallelSettings("fsdp", compile=True)}
WORLD = 2


def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [8, 16] and its mask. Rows have different numbers of targets: a mean of means would differ."""
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(0, CONFIG.vocab_size, (ROWS, LENGTH), generator=generator)
    return tokens, torch.rand(ROWS, LENGTH, generator=generator) > torch.linspace(0.1, 0.8, ROWS)[:, None]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def train(
    settings: ParallelSettings, rank: int = 0, world: int = 1
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Some steps, of which one is vetoed on the device -> metrics of each, the weights and the optimizer's moments, whole."""
    model = Olmo2(CONFIG)
    init_weights(model, 5)
    parallel.parallelize(model, settings, parallel.mesh(settings, "cpu"))
    optimizer = optim.adamw(model, ADAMW)
    how = dataclasses.replace(SETTINGS, compile_loss=settings.compile)
    metrics = []
    for number in range(1, STEPS + 1):
        tokens, is_target = batch(number)
        go = torch.tensor(number != SKIPPED)
        shares = tokens[rank::world], is_target[rank::world]
        metrics.append(
            step.train_step(
                model, optimizer, *shares, number * ROWS * LENGTH, how, lambda loss, norm, go=go: go
            )._asdict()
        )
    state = {name: whole(parameter) for name, parameter in model.named_parameters()}
    return metrics, state | {key: whole(value) for key, value in optim.state_tensors(model, optimizer).items()}


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def all_reduces_a_step(rank: int) -> int:
    """Of HSDP with two micro-batches a rank."""
    calls = 0
    real = dist.all_reduce

    def counting(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return real(*arguments, **options)

    with replaced(dist, "all_reduce", counting):
        train(LAYOUTS["hsdp_2x1"], rank, 2)
    assert calls % STEPS == 0
    return calls // STEPS


def initialised_in_shards() -> bool:
    """Is a model built on the meta device and initialised shard by shard the one that `init_weights` makes?"""
    with torch.device("meta"):
        model = Olmo2(CONFIG)
    parallel.parallelize(model, LAYOUTS["fsdp"], parallel.mesh(LAYOUTS["fsdp"], "cpu"))
    parallel.initialize(model, 5, "cpu")
    expected = Olmo2(CONFIG)
    init_weights(expected, 5)
    pairs = zip(model.parameters(), expected.parameters(), strict=True)
    return all([torch.equal(whole(a), b) for a, b in pairs])


def train_in(layouts: dict[str, ParallelSettings], rank: int, folder: Path) -> None:
    for name, settings in layouts.items():
        metrics, state = train(settings, rank, WORLD)
        if rank == 0:
            save_file(state, folder / f"{name}.safetensors")
        (folder / f"{name}-{rank}.json").write_text(json.dumps(metrics))


def gather_facts(rank: int, folder: Path) -> None:
    facts = {"all_reduces": all_reduces_a_step(rank), "initialised": initialised_in_shards()}
    with replaced(step, "before_micro_batch", lambda model, is_last: None):
        facts["all_reduces_not_held_back"] = all_reduces_a_step(rank)
    (folder / f"facts-{rank}.json").write_text(json.dumps(facts))
    with replaced(FSDPModule, "set_gradient_divide_factor", lambda group, factor: None):
        metrics, _ = train(LAYOUTS["fsdp"], rank, WORLD)
    (folder / f"averaged-{rank}.json").write_text(json.dumps(metrics))


def main(rank: int, folder: Path, names: list[str]) -> None:
    """One process group for all of it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    if names:
        train_in({name: COMPILED[name] for name in names}, rank, folder)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        (folder / f"graphs-{rank}.json").write_text(json.dumps(graphs))
    else:
        train_in(LAYOUTS, rank, folder)
        gather_facts(rank, folder)
    dist.barrier()
    dist.destroy_process_group()


def fork(rank: int, folder: Path, names: list[str]) -> int:
    """A process of this rank -> its pid."""
    if child := os.fork():
        return child
    code = 1
    try:
        main(rank, folder, names)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Not through the interpreter's teardown, in which threads of gloo (torch 2.13) now and then abort a process that is done.
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    children = [fork(rank, Path(folder), names) for rank in range(WORLD)]
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
