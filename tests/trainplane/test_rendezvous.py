"""Ranks meet, and some go on as fewer, without a socket beyond the address that they were given: real processes, their sockets counted."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.jobs.local_cluster import listening
from trainplane import rendezvous

RANKS, LEFT = 3, 2
BEHIND = "10.9.8.7"  # no address of this machine
PROGRAM = """
import json, os, sys
import torch, torch.distributed as dist
from tests.jobs.local_cluster import listening
from trainplane import elastic, rendezvous

address, ranks = sys.argv[1], 3
port, listener = rendezvous.listen(address)
rank, children = 0, []
for number in range(1, ranks):
    if not (pid := os.fork()):
        rank, children = number, []
        break
    children.append(pid)
rendezvous.join("gloo", (address, port), rank, ranks, 60, listener if rank == 0 else None, address)
sums = [torch.ones(1)]
dist.all_reduce(sums[0])
found = listening.of([os.getpid(), *children])
if elastic.keep_divisor(4, 60):
    sums.append(torch.ones(1))
    dist.all_reduce(sums[1])
    if rank == 0:
        found += listening.of([os.getpid(), *children])
        told = {"sums": [one.item() for one in sums], "addresses": [one.address for one in found]}
        told |= {"are_loopback": [one.is_loopback for one in found], "interface": os.environ.get("GLOO_SOCKET_IFNAME")}
        print(json.dumps(told), flush=True)
    dist.barrier()
os._exit(max([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children], default=0))
"""


def ranks_at(address: str) -> dict[str, Any]:
    """What rank 0 of three ranks says, of which the last leaves. Its own guess of an interface would be wrong."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("SOCKET_IFNAME")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, address], env=environment | {"OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_ranks_meet_on_loopback_and_listen_nowhere_else(address: str) -> None:
    said = ranks_at(address)
    assert said["sums"] == [RANKS, LEFT]
    assert all(said["are_loopback"]) and len(said["addresses"]) >= (1 + RANKS) + (
        1 + LEFT
    )  # the store, and a port of each
    assert said["interface"] == ("lo" if address == "127.0.0.1" else None)


def test_torch_alone_listens_on_every_interface_and_that_is_seen() -> None:
    """The control."""
    before = {one.port for one in listening.of([os.getpid()])}
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)
    (found,) = [one for one in listening.of([os.getpid()]) if one.port not in before]
    assert found.port == store.port and not found.is_loopback


def test_the_interface_of_an_address() -> None:
    assert rendezvous.interface_of("127.0.0.1") == "lo"
    assert rendezvous.interface_of(BEHIND) is None


def test_what_the_user_has_set_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth8")
    rendezvous._stay_on_interface_of("127.0.0.1")
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("eth7", "eth8")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    monkeypatch.setattr(rendezvous, "interface_of", lambda address: "eth0")
    rendezvous._stay_on_interface_of("10.0.0.1")
    assert "NCCL_SOCKET_IFNAME" not in os.environ  # between hosts it chooses
