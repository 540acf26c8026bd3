"""Freed blocks stay while they should and go back afterwards."""

import ctypes
import gc
import resource
import time

import pytest
import torch

from trainplane import memory


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def page_faults(times: int = 5) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(8 << 20)  # 32 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc alone has mallopt")
def test_memory_is_used_again_inside_and_given_back_outside() -> None:
    gc.collect()
    start = resident_bytes()
    outside = page_faults()
    with memory.kept():
        torch.ones(8 << 20)
        inside = page_faults()
    assert inside < outside / 4
    for _ in range(20):
        if resident_bytes() < start + (16 << 20):
            break
        time.sleep(0.05)
    assert resident_bytes() < start + (16 << 20)


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with memory.kept():
        assert torch.ones(3).sum() == 3
