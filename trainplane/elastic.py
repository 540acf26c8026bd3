"""Ray may start any number of workers between two bounds; a global batch is shared by those that divide it. The others leave.

(instances of a global batch) -> whether this rank trains. The order of data is that of the global batch, whatever the number of ranks.
"""

import os
from datetime import timedelta

import torch.distributed as dist

from trainplane import parallel


def largest_divisor(whole: int, most: int) -> int:
    """The largest number up to `most` that divides `whole`."""
    return max(number for number in range(1, most + 1) if whole % number == 0)


def keep_divisor(batch_instances: int, timeout_seconds: float) -> bool:
    """Makes the first ranks, as many as divide the batch, the process group -> whether this rank is one of them. Every rank calls it.
    A collective of the new group may take `timeout_seconds`.

    The store of the group before is rank 0's too, but ends with it: the new group gets one of its own, below MASTER_ADDR.
    """
    size, rank = parallel.world_size(), parallel.rank()
    legal = largest_divisor(batch_instances, size)
    if legal == size:
        return True
    backend, host = dist.get_backend_config(), os.environ["MASTER_ADDR"]
    server = dist.TCPStore(host, 0, legal, is_master=True, wait_for_workers=False) if rank == 0 else None
    port = parallel.from_rank_0(server.port if server else 0)
    dist.destroy_process_group()
    if rank >= legal:
        return False
    store = server or dist.TCPStore(host, port, legal, is_master=False)
    timeout = timedelta(seconds=timeout_seconds)
    dist.init_process_group(str(backend), store=store, rank=rank, world_size=legal, timeout=timeout)
    return True
