"""Writers as processes of their own: of racing committers one wins, and one that was stopped and replaced changes nothing when it goes on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from triplane import artifact, lease, storage

# What each process runs: wait for a line on standard input, then commit its own recipe under the one name.
RACE = """
import sys
from triplane import artifact
from triplane.errors import TriplaneError

root, number = sys.argv[1], int(sys.argv[2])
draft = artifact.begin(root, "documents", "code", inputs={}, recipe={"n": number}, stage_versions={}, version="v1")
print("ready", flush=True)
sys.stdin.readline()
try:
    draft.commit({})
except TriplaneError as error:
    sys.exit(error.exit_code)
"""
# Holds the lease, stores the bytes of its shard, is stopped, and goes on as if nothing had been.
ZOMBIE = """
import json, os, signal, sys
from triplane import artifact, lease

root, stops = sys.argv[1], sys.argv[2] == "stops"
held = lease.acquire(root, "build/code", "first", 0.5)
draft = artifact.begin(root, "documents", "code", inputs={}, recipe={}, stage_versions={})
mine = draft.put_bytes(b"of the first", "part-00000", ".bin")
if stops:
    os.kill(os.getpid(), signal.SIGSTOP)
outcome = {"is_current": held.is_current(), "renews": held.renew()}
standing = draft.record("part-00000", [mine], {"by": "first"})
outcome |= {"recorded": standing.counts["by"], "committed": draft.commit({"by": "first"}).metadata["by"]}
print(json.dumps(outcome))
"""


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.getfixturevalue("s3_root")) if request.param == "s3" else str(tmp_path / "root")


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def test_of_racing_processes_one_commits_and_the_others_leave_with_3(root: str) -> None:
    processes = [start(RACE, root, str(number)) for number in range(3)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 3, 3]
    assert artifact.load(root, "documents/code@v1").recipe == {"n": codes.index(0)}
    assert storage.list_names(storage.join(root, "documents/code@v1")) == ["manifest.json"]


def test_a_stopped_writer_that_was_replaced_changes_nothing(root: str) -> None:
    process = start(ZOMBIE, root, "stops")
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        second = None
        while second is None:  # until the lease of the one that is stopped has expired
            second = lease.acquire(root, "build/code", "second", 60)
        draft = artifact.begin(root, "documents", "code", inputs={}, recipe={}, stage_versions={})
        draft.record("part-00000", [draft.put_bytes(b"of the second", "part-00000", ".bin")], {"by": "second"})
        manifest = draft.commit({"by": "second"})
        process.send_signal(signal.SIGCONT)
        outcome = finished(process)
    finally:
        process.kill()
    assert outcome == {"is_current": False, "renews": False, "recorded": "second", "committed": "second"}
    assert second.is_current() and artifact.load(root, "documents/code") == manifest
    url = artifact.artifact_url(root, manifest.reference)
    assert artifact.verify(url) == [] and artifact.read(url, manifest.files[0]) == b"of the second"


def test_a_writer_that_is_not_stopped_keeps_what_it_wrote(root: str) -> None:
    """The control: the same process, undisturbed."""
    outcome = finished(start(ZOMBIE, root, "runs"))
    assert outcome == {"is_current": True, "renews": True, "recorded": "first", "committed": "first"}
