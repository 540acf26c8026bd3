"""A place for infra/up and infra/down to run in: a server that plays AWS, and the fakes as `aws`, `kubectl` and `helm` on PATH."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
FAKES = Path(__file__).parent
REGION = "us-east-1"
BUCKET = "triplane-test-bucket"
DIGEST = f"sha256:{'ab' * 32}"
DEADLINE_SECONDS = 60.0


@dataclass(frozen=True)
class World:
    """`environment`: of the processes that live in it. `log`: one line of JSON for every call of a fake."""

    folder: Path
    endpoint: str
    environment: dict[str, str]

    def calls(self) -> list[list[str]]:
        """Every call so far, [tool, arguments...]."""
        log = Path(self.environment["FAKE_LOG"])
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def forget(self) -> None:
        Path(self.environment["FAKE_LOG"]).unlink(missing_ok=True)

    def client(self, service: str) -> Any:
        import boto3

        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        return boto3.client(service, endpoint_url=self.endpoint, region_name=REGION, **keys)


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, str]]:
    """(endpoint, socket) of a server that plays AWS."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # a socket's path may have 108 characters, and pytest's folders have more
    with tempfile.TemporaryDirectory() as short, (folder / "aws_server.log").open("wb") as log:
        calls = f"{short}/aws"
        command = [sys.executable, str(FAKES / "aws_server.py"), str(port), calls]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait(port, process)
            yield f"http://127.0.0.1:{port}", calls
        finally:
            process.terminate()
            process.wait(30)


def reset(endpoint: str) -> None:
    """Empties the account."""
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server that plays AWS ended with {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError("the server that plays AWS did not answer")


def make(folder: Path, endpoint: str, calls: str) -> World:
    """Skips where there is no kubectl to render with."""
    real = shutil.which("kubectl")
    if real is None:
        pytest.skip("kubectl is not installed: kustomizations cannot be rendered")
    (folder / "bin").mkdir()
    for tool in ("aws", "kubectl", "helm"):
        program = folder / "bin" / tool
        program.write_text(f"#!{sys.executable} -S\n{_PROGRAM.format(fakes=str(FAKES), tool=tool)}")
        program.chmod(0o755)
    environment = {
        "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
        "HOME": str(folder),
        "FAKE_LOG": str(folder / "calls.jsonl"),
        "FAKE_STATE": str(folder),
        "FAKE_AWS_SOCKET": calls,
        "REAL_KUBECTL": real,
        "NUMBA_CACHE_DIR": os.environ.get("NUMBA_CACHE_DIR", str(folder)),
    }
    return World(folder, endpoint, environment)


# By import, so that Python compiles a fake once and not at each of its hundreds of calls.
_PROGRAM = """import sys

sys.path.insert(0, {fakes!r})
import {tool}
"""


def pins(folder: Path) -> Path:
    """infra/pins.yaml with the images filled in, by a digest that no image has."""
    value = yaml.safe_load((ROOT / "infra" / "pins.yaml").read_text())
    for images in ("bases", "images"):
        value[images] = {name: f"registry.example/{name}@{DIGEST}" for name in value[images]}
    path = folder / "pins.yaml"
    path.write_text(yaml.safe_dump(value, sort_keys=False))
    return path


def script(world: World, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """infra/NAME as a user runs it, with the packages of this interpreter."""
    command = [sys.executable, str(ROOT / "infra" / name), "--environment", "dev", "--region", REGION, *arguments]
    return subprocess.run(
        command,
        env=world.environment | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
