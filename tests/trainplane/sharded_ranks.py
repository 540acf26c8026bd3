"""The four ranks of the test of sharded checkpoints: run as `python -m tests.trainplane.sharded_ranks FOLDER`, which imports once and forks.

Saves and loads a small model and its AdamW state, sharded over a mesh by FSDP2 on gloo. Its parameters follow from their names, so that every
process knows what must be read.
"""

import contextlib
import dataclasses
import json
import os
import sys
import traceback
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from trainplane import checkpoint, optim
from trainplane.checkpoint_writer import Saver
from trainplane.loop import TrainState
from triplane import artifact
from triplane.artifact import Draft
from triplane.errors import TriplaneError
from triplane.lm.model import ModelConfig, Olmo2

# 61 and 14 rows do not divide by 4: shards are uneven, and of the norms' scales one rank of 4 would have none.
CONFIG = ModelConfig(61, 12, 14, 2, 2, 1, max_position_embeddings=32, eos_token_id=1, pad_token_id=0)
SETTINGS = optim.AdamWSettings(0.9, 0.95, 1e-8, 0.1, False, True)
STATE = TrainState(3, 300, (1.5, 0.1), (0.25, 1 / 3))
STATE_BYTES = json.dumps(dataclasses.asdict(STATE)).encode()


def run_of(root: str) -> Draft:
    return artifact.begin(root, "run", "sharded", inputs={}, recipe={}, stage_versions={"train": 1}, version="v")


def value_of(name: str, shape: torch.Size, seed: int) -> torch.Tensor:
    """What a tensor holds."""
    generator = torch.Generator().manual_seed(seed * 1000 + sum(name.encode()))
    return torch.randn(shape, generator=generator)


def make(mesh_shape: tuple[int, ...], seed: int) -> tuple[Any, torch.optim.Optimizer]:
    """Model and optimizer of a seed; sharded when there is a mesh: (shards,) is FSDP2, (replicas, shards) HSDP."""
    model = Olmo2(CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(value_of(name, parameter.shape, seed))
    if mesh_shape:
        names = ("replicas", "shards")[-len(mesh_shape) :]
        mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=names)
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = optim.adamw(model, SETTINGS)
    for name, parameter in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            whole = value_of(f"{key}/{name}", parameter.shape, seed)
            mine = torch.empty_like(parameter).detach()
            put_whole(mine, whole)
            optimizer.state[parameter][key] = mine
        optimizer.state[parameter]["step"] = torch.tensor(float(seed))
    return model, optimizer


def put_whole(target: torch.Tensor, whole: torch.Tensor) -> None:
    if isinstance(target, DTensor):
        from torch.distributed.tensor import distribute_tensor

        target.to_local().copy_(distribute_tensor(whole, target.device_mesh, target.placements).to_local())
    else:
        target.copy_(whole)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_is(model: Any, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """That every element is that of the seed."""
    for name, tensor in checkpoint.tensors_of(model, optimizer).items():
        name = name.partition("/")[2]
        found = whole(tensor)
        expected = torch.tensor(float(seed)) if name.startswith("step/") else value_of(name, found.shape, seed)
        assert torch.equal(found, expected), name


def load(root: str, mesh: tuple[int, ...]) -> None:
    """Reads what stands below a root into another model, and compares."""
    model, optimizer = make(mesh, 1)
    assert checkpoint.load(checkpoint.draft(run_of(root), 300).url, model, optimizer) == STATE
    assert_is(model, optimizer, 7)


def save(root: str, mesh: tuple[int, ...]) -> None:
    """Saves, and changes the model while that uploads: the copy was taken."""
    model, optimizer = make(mesh, 7)
    saver = Saver(run_of(root), model, optimizer, {"model_config": CONFIG.to_dict()})
    saver.save(STATE, [{"step": 3}] if dist.get_rank() == 0 else [])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    saver.wait()


def main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4, timeout=timedelta(seconds=60)
    )
    load(f"{folder}/single", (4,))
    load(f"{folder}/single", (2, 2))
    save(f"{folder}/hsdp", (2, 2))
    load(f"{folder}/hsdp", (4,))
    try:
        save(f"{folder}/file", (4,))
    except TriplaneError as error:
        print(error)
    dist.destroy_process_group()


def fork(rank: int, folder: str) -> int:
    """A process of this rank, whose output is `said-{rank}` in the folder -> its pid."""
    if child := os.fork():
        return child
    code = 1
    try:
        with open(f"{folder}/said-{rank}", "w") as said, contextlib.redirect_stdout(said):
            main(rank, folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    children = [child for rank in range(4) if (child := fork(rank, sys.argv[1]))]
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
