"""Ray may start any number of workers between two bounds; a global batch is shared by those that divide it. The others leave.

(instances of a global batch) -> whether this rank trains. The order of data is that of the global batch, whatever the number of ranks.
"""

from datetime import timedelta

import torch.distributed as dist

from trainplane import parallel


def largest_divisor(whole: int, most: int) -> int:
    """The largest number up to `most` that divides `whole`."""
    return max(number for number in range(1, most + 1) if whole % number == 0)


def keep_divisor(batch_instances: int, timeout_seconds: float) -> bool:
    """Makes the first ranks, as many as divide the batch, the process group -> whether this rank is one of them. Every rank calls it.
    A collective of the new group may take `timeout_seconds`.

    The new group meets at the store of the one before: rank 0's, which stays.
    """
    size, rank = parallel.world_size(), parallel.rank()
    legal = largest_divisor(batch_instances, size)
    if legal == size:
        return True
    backend = dist.get_backend_config()
    store = dist.PrefixStore("fewer", dist.group.WORLD.get_group_store())  # type: ignore[union-attr]
    dist.destroy_process_group()
    if rank >= legal:
        return False
    timeout = timedelta(seconds=timeout_seconds)
    dist.init_process_group(str(backend), store=store, rank=rank, world_size=legal, timeout=timeout)
    return True
