"""Where the ranks of a run meet: (the address of rank 0's node, rank, ranks) -> a process group whose sockets listen on that address alone.

PyTorch's own store of a group listens on every interface, and asks nobody who it is; gloo and NCCL take an interface by the host's name or by guess.
On one host the address may be loopback, which nobody else reaches. Between hosts it must be reached by the others: there the network
decides who reaches it (network policies, security groups). Sources: torch 2.13 `TCPStore`, gloo and NCCL environment variables, netdevice(7).
"""

import fcntl
import ipaddress
import os
import socket
import struct
from datetime import timedelta

import torch.distributed as dist

SIOCGIFADDR = 0x8915  # the address of an interface
NAME_BYTES, REQUEST_BYTES = 16, 256


def listen(address: str) -> tuple[int, int]:
    """(port, file descriptor) of a socket that listens on this address: what `join` takes on rank 0, in the same process."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.create_server((address, 0), family=family, backlog=socket.SOMAXCONN)
    return server.getsockname()[1], server.detach()


def join(
    backend: str, place: tuple[str, int], rank: int, ranks: int, timeout_seconds: float, listener: int | None, own: str
) -> None:
    """Joins the group that meets at `place` (address, port). Rank 0, which is there, gives its `listener`. `own` is the address of
    this rank's node. A collective may take `timeout_seconds`."""
    _stay_on_interface_of(own)
    timeout = timedelta(seconds=timeout_seconds)
    store = dist.TCPStore(*place, ranks, rank == 0, timeout, wait_for_workers=False, master_listen_fd=listener)
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timeout)


def _stay_on_interface_of(address: str) -> None:
    """What the user has set stands. NCCL is left to choose between the interfaces that others reach: it may use several."""
    found = interface_of(address)
    if found:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", found)
        if ipaddress.ip_address(address).is_loopback:
            os.environ.setdefault("NCCL_SOCKET_IFNAME", found)


def interface_of(address: str) -> str | None:
    """The interface with this IPv4 address as its first; None if there is none (an IPv6 address, a second address)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack(f"{REQUEST_BYTES}s", name.encode()[: NAME_BYTES - 1])
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
            except OSError:
                continue  # it has no address
            if socket.inet_ntoa(answer[20:24]) == address:  # after the name, the family and the port
                return name
    return None
