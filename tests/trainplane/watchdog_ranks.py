"""Pairs of ranks for the test of the watchdog: `python -m tests.trainplane.watchdog_ranks FOLDER SECONDS` imports once and forks.

Each pair takes steps of one collective until something happens to one of them; what each said is `{scenario}-{rank}` in the folder, and
`codes.json` how they ended.
"""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from trainplane.watchdog import Watchdog

STEPS_BEFORE = 10
STOPPED = {"stop-0": [0], "stop-1": [1], "paused": [0, 1]}
SCENARIOS = ("undisturbed", *STOPPED, "behind-1")


def steps(scenario: str, rank: int, folder: Path, seconds: float) -> None:
    """Until everybody has been told to end. A rank that is to be behind sleeps instead of the collective."""
    end, step = torch.zeros(1), 0
    with Watchdog(seconds) as dog:
        while not end.item():
            end.fill_((folder / "end").exists())
            if scenario == f"behind-{rank}" and step == STEPS_BEFORE:
                time.sleep(600)
            dist.all_reduce(end, dist.ReduceOp.MAX)
            dog.beat()
            step += 1
            if step == STEPS_BEFORE:
                (folder / f"{scenario}-{rank}.ready").touch()
            time.sleep(0.01)
        with dog.at_rest():
            time.sleep(1.2 * seconds)  # a save: longer than a step may take


def main(scenario: str, rank: int, folder: Path, seconds: float) -> None:
    store = dist.FileStore(str(folder / scenario), 2)
    port = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False) if rank == 0 else None
    if port is not None:
        store.set("port", str(port.port))
    found = port or dist.TCPStore("127.0.0.1", int(store.get("port")), 2, is_master=False)
    dist.init_process_group("gloo", store=found, rank=rank, world_size=2)
    steps(scenario, rank, folder, seconds)
    dist.barrier()


def fork(scenario: str, rank: int, folder: Path, seconds: float) -> int:
    """A rank, whose output goes to a file -> its pid."""
    if child := os.fork():
        return child
    with open(folder / f"{scenario}-{rank}", "w") as said:
        os.dup2(said.fileno(), 2)
        code = 1
        try:
            os.environ["TRIPLANE_LOG"] = str(folder / f"{scenario}.log")
            main(scenario, rank, folder, seconds)
            code = 0
        finally:
            os._exit(code)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def disturb(pids: dict[str, list[int]], folder: Path) -> dict[str, bool]:
    """SIGSTOP to those whose scenario says so -> whether it landed."""
    landed = {}
    for scenario, ranks in STOPPED.items():
        while not all((folder / f"{scenario}-{rank}.ready").exists() for rank in range(2)):
            time.sleep(0.01)
        stopped = [pids[scenario][rank] for rank in ranks]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        end = time.monotonic() + 5
        while not all(map(is_stopped, stopped)) and time.monotonic() < end:
            time.sleep(0.01)
        landed[scenario] = all(map(is_stopped, stopped))
    return landed


def reaped(pids: dict[str, list[int]], folder: Path, seconds: float) -> dict[str, list[int]]:
    """Exit codes; a rank that still stands after its partner left, or that never leaves, is killed."""
    codes: dict[str, list[int]] = {}
    end = time.monotonic() + 20 * seconds
    for scenario, ranks in pids.items():
        order = sorted(range(2), key=lambda rank, s=scenario: s == f"stop-{rank}")  # type: ignore[misc]
        codes[scenario] = [0, 0]
        for rank in order:
            if scenario == f"stop-{rank}":
                os.kill(ranks[rank], signal.SIGKILL)
            while (found := os.waitpid(ranks[rank], os.WNOHANG)) == (0, 0):
                if time.monotonic() > end:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(ranks[rank], signal.SIGKILL)
                time.sleep(0.02)
            codes[scenario][rank] = os.waitstatus_to_exitcode(found[1])
    return codes


if __name__ == "__main__":
    folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
    pids = {scenario: [fork(scenario, rank, folder, seconds) for rank in range(2)] for scenario in SCENARIOS}
    landed = disturb(pids, folder)
    time.sleep(1.5 * seconds)  # the undisturbed pair works on for longer than a step may take
    for pid in pids["paused"]:
        os.kill(pid, signal.SIGCONT)
    (folder / "end").touch()
    ended = {"codes": reaped(pids, folder, seconds), "landed": landed, "pids": pids}
    (folder / "codes.json").write_text(json.dumps(ended))
