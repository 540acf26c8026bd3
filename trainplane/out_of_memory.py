"""A worker that has no memory left: (error) -> one sentence that says which, how much it had and what to change.

The same batch takes the same memory each time, so this is no failure to try again. What a process may have: its address space (RLIMIT_AS),
else its cgroup, else the machine, or the GPU it computes on. Sources: getrlimit(2), proc(5), cgroups(7).
"""

import os
import resource
import socket
from pathlib import Path

import torch

from trainplane import parallel
from triplane.errors import TriplaneError
from triplane.progress import amount

# What torch says on a CPU, where its error is a RuntimeError like any other; the class of the same on a GPU says it all.
TORCH_WORDS = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class OutOfMemory(TriplaneError):
    """A worker had no memory left; with the same settings it would have none again."""


def is_cause(error: BaseException) -> bool:
    """Whether an error says that there was no memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in TORCH_WORDS)


def sentence(who: str, had: str, microbatch_instances: int) -> str:
    """Of a worker: who it is, and what it held of what it may have."""
    less = f"lower runtime.microbatch_instances (now {microbatch_instances})" if microbatch_instances > 1 else ""
    more = "add ranks that share the model (runtime.num_workers, runtime.parallel.shard: fsdp)"
    keep = "keep fewer activations (runtime.parallel.activation_checkpointing)"
    advice = ", ".join(filter(None, [less, keep])) + f" or {more}"
    return f"{who} ran out of memory{had}: {advice}; it is not tried again, and the same command goes on from the last checkpoint"


def of_this_process(microbatch_instances: int) -> OutOfMemory:
    """The error of this rank."""
    held, limit, kind = in_use()
    had = f" ({amount(held)}B of {amount(limit)}B of {kind} in use)"
    who = f"rank {parallel.rank()} (host {socket.gethostname()}, pid {os.getpid()})"
    return OutOfMemory(sentence(who, had, microbatch_instances))


def in_use() -> tuple[int, int, str]:
    """(bytes in use, bytes there may be, of what)."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        return total - free, total, "its GPU's memory"
    virtual, resident = (
        int(pages) * resource.getpagesize() for pages in Path("/proc/self/statm").read_text().split()[:2]
    )
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY:
        return virtual, space, "address space (RLIMIT_AS)"
    machine = os.sysconf("SC_PHYS_PAGES") * resource.getpagesize()
    return resident, min([machine, *_cgroup_limits()]), "memory"


def _cgroup_limits() -> list[int]:
    texts = [Path(path).read_text().strip() for path in CGROUP_LIMITS if Path(path).exists()]
    return [int(text) for text in texts if text.isdigit()]
