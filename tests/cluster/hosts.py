"""Hosts in network namespaces, joined by a bridge: each has its own loopback, ports and link, and can be cut off.

`with network(["a", "b"]) as hosts` -> `Host`s; everything of them is gone afterwards, processes by pid. A namespace does not isolate pids:
whoever ends a host's processes must know them (`Host.pids`), and `ray stop` would end every Ray on the machine. Source: ip-netns(8).
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

LINK = "eth0"  # inside a namespace


def why_not() -> str | None:
    """Why no hosts can be made here; None if they can."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        return "network namespaces need root and iproute2"
    probe = f"tp{secrets.token_hex(3)}"
    made = _ip(["netns", "add", probe], check=False)
    _ip(["netns", "del", probe], check=False)
    return f"no network namespaces here: {made.stderr.strip()}" if made.returncode else None


@dataclass(frozen=True)
class Host:
    """`name` is its namespace's; `outside` its link's end at the bridge; `started`: what is waited for when it is removed."""

    name: str
    address: str
    outside: str
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], output: IO[Any] | int
    ) -> subprocess.Popen[str]:
        """A process on this host, a session of its own."""
        inside = ["ip", "netns", "exec", self.name, *command]
        self.started.append(
            subprocess.Popen(
                inside,
                env=dict(environment),
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return self.started[-1]

    def pids(self) -> list[int]:
        """Of every process in the namespace."""
        return [int(pid) for pid in _ip(["netns", "pids", self.name], check=False).stdout.split()]

    def cut_off(self) -> None:
        """Nothing comes in or goes out any more; nobody is told."""
        _ip(["link", "set", self.outside, "down"])

    def kill(self) -> None:
        """SIGKILL to all that runs here, as a host that loses its power."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def network(names: Sequence[str]) -> Iterator[list[Host]]:
    """A host for each name, all of which reach each other. Names of links are unique to this call, and so is the subnet."""
    token, subnet = secrets.token_hex(3), f"10.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
    bridge = f"tp{token}"
    hosts = [Host(f"tp{token}-{name}", f"{subnet}.{i + 11}", f"tp{token}v{i}") for i, name in enumerate(names)]
    try:
        _ip(["link", "add", bridge, "type", "bridge"])
        _ip(["link", "set", bridge, "up"])
        for host in hosts:
            _join(host, bridge)
        yield hosts
    finally:
        for host in hosts:
            _remove(host)
        _ip(["link", "del", bridge], check=False)


def _join(host: Host, bridge: str) -> None:
    _ip(["netns", "add", host.name])
    _ip(["link", "add", host.outside, "type", "veth", "peer", "name", LINK, "netns", host.name])
    _ip(["link", "set", host.outside, "master", bridge, "up"])
    _ip(["-n", host.name, "addr", "add", f"{host.address}/24", "dev", LINK])
    for link in ("lo", LINK):
        _ip(["-n", host.name, "link", "set", link, "up"])


def _remove(host: Host) -> None:
    """A namespace lives as long as its processes: those are ended first, the ones they start while they end too."""
    end = time.monotonic() + 10
    while host.pids() and time.monotonic() < end:
        host.kill()
        time.sleep(0.05)
    for process in host.started:
        process.wait(10)
    _ip(["netns", "del", host.name], check=False)
    _ip(["link", "del", host.outside], check=False)


def _ip(arguments: Sequence[str], check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True)


def leftovers(name: str) -> list[str]:
    """Namespaces and links of a call of `network`, by the name of one of its hosts: none, when it is over."""
    token = name.partition("-")[0]
    spaces = _ip(["netns", "list"]).stdout.split()
    links = [path.name for path in Path("/sys/class/net").iterdir()]
    return [found for found in (*spaces, *links) if found.startswith(token)]


_reason = why_not()
needs_hosts = pytest.mark.skipif(bool(_reason), reason=_reason or "")
