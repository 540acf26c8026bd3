"""`triplane cluster up, status, env, down` on programs that only sleep: what is printed, what a shell makes of it, exit codes."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from jobs.cli.cluster import app
from jobs.local_cluster import cluster, processes, record
from tests.jobs.local_cluster.test_cluster import NAMES, let_it_sleep


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    let_it_sleep(monkeypatch)
    yield tmp_path / "a cluster"  # a shell must not take it for two words
    cluster.down(tmp_path / "a cluster")


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_a_shell_can_use_what_env_prints(folder: Path) -> None:
    made = json.loads(ask("up", "--folder", str(folder), "--json").stdout)
    assert made["root"] == "s3://triplane/root" and [one["name"] for one in made["processes"]] == NAMES
    lines = ask("env", "--folder", str(folder)).stdout
    own = {"PATH": os.environ["PATH"], "AWS_ACCESS_KEY_ID": "mine"}
    script = f"{lines}\nenv"
    done = subprocess.run(["bash", "-c", script], env=own, capture_output=True, text=True, check=True)
    seen = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert made["environment"].items() <= seen.items()
    assert Path(seen["RAY_AUTH_TOKEN_PATH"]).parent == folder and Path(seen["SPARK_CONF_DIR"]).is_dir()
    assert (seen["AWS_ACCESS_KEY_ID"], seen["AWS_SECRET_ACCESS_KEY"]) == ("mine", "local")  # no key is replaced


def test_status_tells_what_has_ended(folder: Path) -> None:
    assert ask("up", "--folder", str(folder)).stdout.splitlines()[0] == "up"
    assert ask("up", "--folder", str(folder)).stdout.splitlines()[0] == "it is up"
    whole = ask("status", "--folder", str(folder))
    assert whole.exit_code == 0 and whole.stdout.count("  runs  ") == 7 and "ENDED" not in whole.stdout
    victim = record.read(folder).processes[3]
    os.kill(victim.pid, signal.SIGKILL)
    while processes.is_running(victim):
        time.sleep(0.01)
    broken = ask("status", "--folder", str(folder), "--json")
    assert broken.exit_code == 1
    assert [one["name"] for one in json.loads(broken.stdout)["processes"] if not one["running"]] == ["spark-worker-1"]
    assert ask("down", "--folder", str(folder)).stdout.startswith("down: 6 processes ended")


def test_without_a_cluster(folder: Path) -> None:
    assert ask("down", "--folder", str(folder)).stdout == f"no cluster in {folder}\n"
    for command in ("status", "env"):
        missing = ask(command, "--folder", str(folder))
        assert missing.exit_code == 1 and "`triplane cluster up` starts one" in missing.stderr


def test_another_s3_server_gets_no_keys_of_ours(folder: Path) -> None:
    made = json.loads(ask("up", "--folder", str(folder), "--s3", "http://127.0.0.1:9", "--json").stdout)
    assert made["root"] is None and made["s3"] == "http://127.0.0.1:9"
    assert "AWS_ACCESS_KEY_ID" not in ask("env", "--folder", str(folder)).stdout
