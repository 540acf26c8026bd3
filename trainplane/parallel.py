"""What a process knows of its group: rank, size, and the few values that ranks exchange beside gradients.

Works without a process group (one rank), under `torchrun` and under Ray Train alike; whoever starts the process has set the group up.
"""

import os

import numpy as np
import torch
import torch.distributed as dist


def join_group() -> None:
    """Joins the process group of `torchrun`, if that started this process and no group is there yet."""
    if "TORCHELASTIC_RUN_ID" in os.environ and not is_distributed():
        dist.init_process_group("gloo")


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
