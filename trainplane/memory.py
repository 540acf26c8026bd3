"""Memory that a CPU training run keeps: (nothing) -> a context in which freed blocks stay with the process.

glibc gives blocks beyond 128 KiB back to the kernel when they are freed and takes fresh, zeroed pages for the next. A step frees and takes the same
hundreds of megabytes again and again: a third of a bf16 step of a small model was page faults. Nothing happens where the C library is not glibc.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# Names and defaults: mallopt(3).
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
KEPT = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 2**26}
DEFAULTS = {MMAP_MAX: 65536, TRIM_THRESHOLD: 2**17, TOP_PAD: 2**17}


@contextmanager
def kept() -> Iterator[None]:
    """Inside, freed memory is used again; afterwards it goes back to the system."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    try:
        _set(library, KEPT)
        yield
    finally:
        _set(library, DEFAULTS)
        library.malloc_trim(ctypes.c_size_t(0))


def _set(library: ctypes.CDLL, values: dict[int, int]) -> None:
    for name, value in values.items():
        library.mallopt(name, value)
