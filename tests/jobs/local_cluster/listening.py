"""Who listens where: /proc/net/tcp and tcp6 -> the listening sockets of given processes. Source: proc(5)."""

import ipaddress
import os
import socket
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

LISTEN = "0A"


@dataclass(frozen=True)
class Listener:
    """A listening socket, and one of the processes that hold it."""

    address: str
    port: int
    pid: int
    command: str

    @property
    def is_loopback(self) -> bool:
        found = ipaddress.ip_address(self.address)
        mapped = getattr(found, "ipv4_mapped", None)
        return (mapped or found).is_loopback


def of(pids: Collection[int]) -> list[Listener]:
    """The listening TCP sockets of processes, by port."""
    holders = {inode: pid for pid in pids for inode in _inodes(pid)}
    found = [
        Listener(_address(place), int(place.rpartition(":")[2], 16), holders[inode], _command(holders[inode]))
        for family in ("tcp", "tcp6")
        for place, inode in _listening(family)
        if inode in holders
    ]
    return sorted(found, key=lambda one: one.port)


def _listening(family: str) -> list[tuple[str, str]]:
    rows = [line.split() for line in Path("/proc/net", family).read_text().splitlines()[1:]]
    return [(row[1], row[9]) for row in rows if row[3] == LISTEN]


def _address(place: str) -> str:
    """Hexadecimal words in the machine's byte order."""
    words = place.rpartition(":")[0]
    raw = b"".join(bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def _inodes(pid: int) -> set[str]:
    found = set()
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(link)
            if target.startswith("socket:["):
                found.add(target[8:-1])
    except OSError:
        pass  # it has ended
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]
    except OSError:
        return ""
