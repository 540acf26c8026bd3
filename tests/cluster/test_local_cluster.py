"""`triplane cluster` with the real programs: who may ask, what listens, and that down ends exactly what up started, also a half-killed one."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.local_cluster import processes, record
from tests.jobs.local_cluster import listening

TRIPLANE = str(Path(sys.executable).parent / "triplane")
ROGUE = """
import socket, time
server = socket.create_server(("0.0.0.0", 0))
print("up", flush=True)
time.sleep(600)
"""
BROKEN_JAVA = """#!/bin/sh
case "$*" in *org.apache.spark.launcher.Main*) exec {java} "$@";; esac
echo 'Could not create the Java Virtual Machine' >&2
exit 1
"""
# Spark itself, without anything of ours: it counts to ten on the master of the command line.
COUNT = """
import sys
from pyspark import SparkConf, SparkContext
conf = SparkConf().setAppName("count").setMaster(sys.argv[1]).set("spark.ui.enabled", "false")
print("counted", SparkContext(conf=conf).parallelize(range(10), 2).count())
"""


def triplane(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TRIPLANE, *arguments], capture_output=True, text=True, timeout=240, env=os.environ | environment
    )


def members(folder: Path) -> dict[int, int]:
    standing = record.read(folder)
    assert standing is not None
    return processes.members(standing.id, standing.processes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A whole cluster of one worker, of Spark and of Ray."""
    folder = tmp_path_factory.mktemp("cluster")
    done = triplane("cluster", "up", "--workers", "1", "--folder", str(folder))
    try:
        assert done.returncode == 0, done.stderr
        yield folder
    finally:
        triplane("cluster", "down", "--folder", str(folder))


@pytest.fixture(scope="module")
def about(folder: Path) -> dict[str, Any]:
    done = triplane("cluster", "status", "--folder", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_up_says_what_is_up_and_up_again_says_the_same(folder: Path, about: dict[str, Any]) -> None:
    assert about["state"] == "up" and all(one["running"] for one in about["processes"])
    names = ["s3", "spark-master", "ray-head", "spark-worker-1", "ray-worker-1"]
    assert [one["name"] for one in about["processes"]] == names
    again = triplane("cluster", "up", "--workers", "1", "--folder", str(folder))
    assert again.returncode == 0 and again.stdout.startswith("it is up")
    assert [one["pid"] for one in about["processes"]] == [one.pid for one in record.read(folder).processes]
    more = triplane("cluster", "up", "--workers", "2", "--folder", str(folder))
    assert more.returncode == 2 and "has 1 workers and 2 are asked for" in more.stderr


def status_of(url: str, token: str | None) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.mark.parametrize("path", ["/api/jobs/", "/api/version", "/nodes?view=summary", "/api/v0/actors", "/logs"])
def test_ray_answers_only_who_has_the_token(folder: Path, about: dict[str, Any], path: str) -> None:
    """401 without one. With a wrong one Ray says 403, which is as closed. The control is the right one."""
    token = (folder / "ray-token").read_text()
    codes = [status_of(about["ray"] + path, given) for given in (None, "0" * len(token), token)]
    assert codes[:2] == [401, 403]
    assert codes[2] == 200 or (path == "/logs" and codes[2] not in (401, 403))


def test_a_job_without_the_token_is_refused(about: dict[str, Any]) -> None:
    request = urllib.request.Request(
        about["ray"] + "/api/jobs/",
        data=json.dumps({"entrypoint": "touch taken"}).encode(),
        headers={"Content-Type": "application/json"},
        method="POST",
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    refused.value.close()
    assert refused.value.code == 401


def test_a_driver_without_the_token_is_refused(about: dict[str, Any]) -> None:
    """Ray's own protocol, not HTTP: what a process that knows the address can do without asking the dashboard."""
    code = (
        "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); print('joined', ray.cluster_resources()['CPU'])"
    )
    gcs = about["environment"]["RAY_ADDRESS"]
    right = {**os.environ, **about["environment"]}
    wrong = {**right, "RAY_AUTH_TOKEN": "0" * 64}
    del wrong["RAY_AUTH_TOKEN_PATH"]
    refused, joined = (
        subprocess.run([sys.executable, "-c", code, gcs], env=environment, capture_output=True, text=True, timeout=200)
        for environment in (wrong, right)
    )
    assert refused.returncode != 0 and "joined" not in refused.stdout and "oken" in refused.stderr
    assert joined.returncode == 0 and f"joined {float(about['cores_per_worker'])}" in joined.stdout, joined.stderr


def applications(about: dict[str, Any]) -> list[str]:
    with urllib.request.urlopen(about["spark_page"] + "/json/", timeout=10) as answer:
        state = json.load(answer)
    return [one["name"] for one in [*state["activeapps"], *state["completedapps"]]]


def test_spark_runs_only_who_has_the_secret(folder: Path, about: dict[str, Any], tmp_path: Path) -> None:
    """An application without it gets no answer, and the master says why in its log. The control is the same one with it."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("SPARK_")}
    plain |= {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", COUNT, about["spark"]]
    log = folder / "logs" / "spark-master.log"
    assert "Expected SaslMessage" not in log.read_text()
    stranger = subprocess.Popen(command, env=plain, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        end = time.monotonic() + 120
        while "Expected SaslMessage" not in log.read_text():
            assert stranger.poll() is None and time.monotonic() < end, log.read_text()[-2000:]
            time.sleep(0.1)
        assert applications(about) == []
    finally:
        stranger.send_signal(signal.SIGINT)
        stranger.terminate()
        said, _ = stranger.communicate(timeout=30)
    assert "counted" not in said
    known = {**plain, "SPARK_CONF_DIR": about["environment"]["SPARK_CONF_DIR"]}
    done = subprocess.run(command, env=known, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "counted 10" in done.stdout, done.stderr[-3000:]
    assert applications(about) == ["count"]


def test_nothing_listens_beyond_loopback(folder: Path, about: dict[str, Any]) -> None:
    """Of any process of the cluster. The control is a process that bears its mark and listens everywhere."""
    found = listening.of(list(members(folder)))
    ports = {one.port for one in found}
    for address in (
        about["spark"],
        about["spark_page"],
        about["ray"],
        about["s3"],
        about["environment"]["RAY_ADDRESS"],
    ):
        assert int(address.rpartition(":")[2]) in ports
    assert len(found) > 10 and 6066 not in ports  # Ray's many; Spark's REST server is off
    assert [one for one in found if not one.is_loopback] == []

    standing = record.read(folder)
    environment = os.environ | {processes.MARK: standing.id}
    rogue = subprocess.Popen([sys.executable, "-c", ROGUE], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        rogue.stdout.readline()
        (beyond,) = [one for one in listening.of(list(members(folder))) if not one.is_loopback]
        assert (beyond.pid, beyond.address) == (rogue.pid, "0.0.0.0")
    finally:
        rogue.kill()
        rogue.communicate()


def test_secrets_are_in_files_of_their_own(folder: Path, about: dict[str, Any]) -> None:
    secret = [folder / "ray-token", folder / "spark-conf" / "spark-defaults.conf"]
    assert [path.stat().st_mode & 0o777 for path in (folder, *secret)] == [0o700, 0o600, 0o600]
    token = secret[0].read_text()
    exported = triplane("cluster", "env", "--folder", str(folder)).stdout
    assert f"export RAY_AUTH_TOKEN_PATH={secret[0]}" in exported
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in members(folder)]
    for text in (exported, (folder / record.NAME).read_text(), *commands):
        assert token not in text
    assert triplane("cluster", "status", "--folder", str(folder)).stdout.splitlines()[0] == "up"


def test_down_after_a_kill_in_the_middle_of_up_ends_that_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    up = subprocess.Popen(
        [TRIPLANE, "cluster", "up", "--workers", "2", "--folder", str(other)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 120
    while not (other / "cluster.json").exists() or len(members(other)) < 5:  # masters, S3, Ray's GCS, a worker
        assert up.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    up.kill()
    up.wait()
    mark, before = record.read(other).id, members(folder)
    assert record.read(other).state == "starting" and processes.members(mark, [])
    done = triplane("cluster", "down", "--folder", str(other))
    assert done.returncode == 0 and done.stdout.startswith("down: "), done.stderr
    assert processes.members(mark, []) == {} and not (other / "cluster.json").exists()
    assert triplane("cluster", "status", "--folder", str(folder)).returncode == 0
    assert set(before) <= set(members(folder)) | {pid for pid in before if processes.started_at(pid) is None}
    assert triplane("cluster", "down", "--folder", str(other)).stdout.startswith("no cluster in")


def test_a_program_that_ends_is_one_error_and_the_others_end(tmp_path: Path) -> None:
    """A Java that starts nothing but Spark's launcher: the process is named with its last words, and nothing is left of what had started."""
    java = tmp_path / "java" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(BROKEN_JAVA.format(java=shutil.which("java")))
    java.chmod(0o755)
    done = triplane("cluster", "up", "--folder", str(tmp_path / "c"), JAVA_HOME=str(tmp_path / "java"))
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    log = tmp_path / "c" / "logs" / "spark-master.log"
    assert line == f"error: spark-master ended: Could not create the Java Virtual Machine (all it said: {log})"
    assert [path.name for path in (tmp_path / "c").iterdir() if path.name not in {"logs", "ray"}] == []
    assert not [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if writes_below(tmp_path, pid)]
    none = triplane("cluster", "up", "--folder", str(tmp_path / "c"), JAVA_HOME="/nonexistent")
    assert none.returncode == 2 and "error: Spark needs Java 17 or newer and none was found" in none.stderr


def writes_below(folder: Path, pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/fd/1").startswith(str(folder))
    except OSError:
        return False


def test_a_killed_process_is_seen_and_down_ends_the_rest(folder: Path) -> None:
    """The last test of the module: the cluster is down afterwards."""
    standing, everything = record.read(folder), members(folder)
    (s3,) = [one for one in standing.processes if one.name == "s3"]
    os.kill(s3.pid, signal.SIGKILL)
    end = time.monotonic() + 10
    while processes.is_running(s3):
        assert time.monotonic() < end
    seen = triplane("cluster", "status", "--folder", str(folder))
    assert seen.returncode == 1 and "ENDED" in next(
        line for line in seen.stdout.splitlines() if line.startswith("  s3  ") and "pid" in line
    )
    again = triplane("cluster", "up", "--workers", "1", "--folder", str(folder))
    assert again.returncode == 1 and "is not whole (s3 ended): run `triplane cluster down" in again.stderr
    assert triplane("cluster", "down", "--folder", str(folder)).returncode == 0
    assert [pid for pid, began in everything.items() if processes.started_at(pid) == began] == []
    assert not Path(standing.alias).is_symlink() and not (folder / "ray-token").exists()
    with socket.socket() as probe:  # to bind it would also fail for what connections of a moment ago leave behind
        assert probe.connect_ex(("127.0.0.1", int(standing.ray.rpartition(":")[2]))) == errno.ECONNREFUSED
