"""A worker without memory says which it is, what it had and what to change: under a real limit of its address space."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainplane import out_of_memory
from trainplane.recipe import RunRecipe
from triplane.recipe import resolved

# A limit as `ulimit -v` sets it, so much above what the process has when everything is imported; a child for each room.
LIMITED = """
import json, os, resource, sys
from pathlib import Path
from trainplane.recipe import RunRecipe
from trainplane.run import train
from triplane.errors import TriplaneError

def run(room):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + room
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        return f"finished step {train(RunRecipe.model_validate(json.loads(sys.argv[1])), sys.argv[2]).step}"
    except TriplaneError as error:
        return f"{type(error).__name__} {error.exit_code}: {error}"

for room in map(int, sys.argv[3:]):
    if not (child := os.fork()):
        print(json.dumps(run(room)), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_a_limit_that_is_too_low_is_named_and_one_that_is_not_is_kept(
    root: str, make_recipe: Callable[..., RunRecipe]
) -> None:
    """The control is the same run with more room."""
    changes = {"model.intermediate_size": 20_000, "runtime.microbatch_instances": 8, "stop_tokens": 8 * 48}
    recipe = json.dumps(resolved(make_recipe(**changes)))
    command = [sys.executable, "-c", LIMITED, recipe, root, str(130 << 20), str(4 << 30)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[2], text=True, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    failed, control = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    assert failed.startswith(f"OutOfMemory 1: rank 0 (host {os.uname().nodename}, pid ")
    assert ") ran out of memory (" in failed and "B of address space (RLIMIT_AS) in use): " in failed
    assert "lower runtime.microbatch_instances (now 8)" in failed and "add ranks that share the model" in failed
    assert control == "finished step 1"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried ..."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError(12, "Cannot allocate memory"), False),
    ],
)  # fmt: skip
def test_what_is_want_of_memory(error: Exception, expected: bool) -> None:
    assert out_of_memory.is_cause(error) is expected


def test_torch_says_what_we_look_for() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert out_of_memory.is_cause(caught.value)


def test_the_smallest_micro_batch_is_not_to_be_lowered() -> None:
    assert "lower" not in out_of_memory.sentence("rank 0", "", 1)
    assert "lower runtime.microbatch_instances (now 2), keep fewer" in out_of_memory.sentence("rank 0", "", 2)


def test_what_is_in_use_is_of_the_limit_that_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    held, limit, kind = out_of_memory.in_use()
    assert 0 < held < limit and kind == "memory"
    assert limit <= os.sysconf("SC_PHYS_PAGES") * resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (123 << 30, resource.RLIM_INFINITY))
    assert out_of_memory.in_use()[1:] == (123 << 30, "address space (RLIMIT_AS)")
