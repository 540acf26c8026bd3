"""A model that lies over ranks (FSDP2), asked by all of them at once: parts gathered while they are needed, equal forwards on every rank.

A forward gathers the same parts in the same order on every rank, whatever its tokens; a rank that has fewer forwards to make gathers along without
computing (`idle`), or the others would wait for it. A model that is not sharded takes no part in any of this.
Source: torch.distributed.fsdp `FSDPModule.unshard` and `reshard` (not recursive).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from triplane.lm.model import Olmo2


def is_sharded(module: nn.Module) -> bool:
    return hasattr(module, "unshard")


@contextmanager
def gathered(module: Any) -> Iterator[None]:
    """The module's own parameters whole on every rank, those of other groups inside it not."""
    if not is_sharded(module):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def without_gradients(model: nn.Module) -> AbstractContextManager[None]:
    """What is gathered in inference mode could not be trained with later."""
    return torch.no_grad() if is_sharded(model) else torch.inference_mode()


def idle(model: Olmo2) -> None:
    """The gathers of one forward and its head, as `tree_forward.hidden` and the engine make them."""
    for part in (model.embed_tokens, *model.layers, model, model.lm_head):
        with gathered(part):
            pass


def most(model: nn.Module, forwards: int) -> int:
    """The most forwards that a rank has to make; of a model that is not sharded, its own."""
    if not is_sharded(model):
        return forwards
    count = torch.tensor([forwards], dtype=torch.int64)
    dist.all_reduce(count, dist.ReduceOp.MAX)
    return int(count.item())


def share(count: int) -> range:
    """This rank's part of `count` requests, side by side as they stand: neighbours have the same prefix."""
    rank, world = dist.get_rank(), dist.get_world_size()
    return range(count * rank // world, count * (rank + 1) // world)


def together(values: np.ndarray) -> np.ndarray:
    """The sum over ranks of float64 arrays, zero where another rank has the value: the same on every rank."""
    summed = torch.from_numpy(values)
    dist.all_reduce(summed)
    return summed.numpy()
