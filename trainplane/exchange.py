"""What ranks tell each other beside tensors: JSON values, on a CPU process group of their own, so that no object is unpickled and a background
thread never gets between the collectives of the step.

(value of every rank) -> all of them on rank 0; (values on rank 0) -> each rank's own. With one rank, nothing is sent.
"""

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from trainplane import parallel

TIMEOUT = timedelta(minutes=30)  # the slowest upload that the fastest rank waits for


@dataclass(frozen=True)
class Exchange:
    """`group` is None for one rank. Every rank calls the same methods in the same order."""

    group: Any

    def to_rank_0(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on rank 0; [] on the others."""
        if self.group is None:
            return [value]
        mine = json.dumps(value).encode()
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(parallel.world_size())]
        dist.all_gather(sizes, torch.tensor([len(mine)]), group=self.group)
        longest = max(int(size) for size in sizes)
        everyone = [torch.empty(longest, dtype=torch.uint8) for _ in sizes] if parallel.rank() == 0 else None
        dist.gather(_padded(mine, longest), everyone, dst=0, group=self.group)
        return [_value(data, int(size)) for data, size in zip(everyone or (), sizes, strict=bool(everyone))]

    def from_rank_0(self, values: list[Any]) -> Any:
        """values[r] of rank 0, on rank r; what other ranks pass is ignored."""
        if self.group is None:
            return values[0]
        texts = [json.dumps(value).encode() for value in values] if parallel.rank() == 0 else []
        sizes = torch.tensor([len(text) for text in texts] or [0] * parallel.world_size())
        dist.broadcast(sizes, src=0, group=self.group)
        longest = int(sizes.max())
        mine = torch.empty(longest, dtype=torch.uint8)
        dist.scatter(mine, [_padded(text, longest) for text in texts] or None, src=0, group=self.group)
        return _value(mine, int(sizes[parallel.rank()]))


def exchange() -> Exchange:
    """A new one. Every rank calls this."""
    if parallel.world_size() == 1:
        return Exchange(None)
    return Exchange(dist.new_group(backend="gloo", timeout=TIMEOUT))


def _padded(text: bytes, length: int) -> torch.Tensor:
    return torch.frombuffer(bytearray(text.ljust(length)), dtype=torch.uint8)


def _value(data: torch.Tensor, size: int) -> Any:
    return json.loads(data[:size].numpy().tobytes())
