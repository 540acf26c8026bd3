"""kill -9 of the Python workers of a real build while they tag: Spark runs their tasks again, and the bytes are those of an undisturbed build."""

import csv
import gzip
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pyspark
import pytest
import zstandard

from tests.cluster.test_build_kill import COMMAND, SOURCES, build, data, named_files, records, write_recipe

HALF_WRITTEN = "attributes.parquet"  # open in a worker from the first document of a shard to its last
ATTRIBUTES = "attributes/*/records/*.json"


def start(recipe: Path, root: Path, scratch: Path, master: str = "", **environment: str) -> subprocess.Popen[str]:
    scratch.mkdir()
    return subprocess.Popen(
        [*COMMAND, str(recipe), "--root", str(root)],
        env=os.environ | {"TRIPLANE_SPARK_MASTER": master, "TMPDIR": str(scratch), **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def half_written(scratch: Path, pid: int) -> Path | None:
    """The attributes file in `scratch` that a process has open."""
    try:
        targets = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return None
    found = [Path(target) for target in targets if target.endswith(HALF_WRITTEN)]
    return next((path for path in found if path.is_relative_to(scratch)), None)


def executor_of(pid: int) -> int:
    """The JVM above a Python worker and its daemon."""
    while b"CoarseGrainedExecutorBackend" not in Path(f"/proc/{pid}/cmdline").read_bytes():
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        assert pid > 1, "the worker has no executor of its own"
    return pid


def kill_a_tagging_worker(
    process: subprocess.Popen[str], scratch: Path, victim: Callable[[int], int] = lambda worker: worker
) -> tuple[Path, int]:
    """Stops a worker, makes sure that it is in the middle of a shard, and kills it, or what `victim` finds above it -> the folder that is
    half written, and who was killed."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None, "the build ended before a worker could be killed"
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            if half_written(scratch, pid) is None:
                continue
            os.kill(pid, signal.SIGSTOP)
            path = half_written(scratch, pid)
            if path is None:
                os.kill(pid, signal.SIGCONT)
                continue
            killed = victim(pid)
            os.kill(killed, signal.SIGKILL)
            if killed != pid:
                os.kill(pid, signal.SIGCONT)  # an orphan now, that may go on until it notices
            while killed == pid and half_written(scratch, pid):
                time.sleep(0.002)  # it dies, and must not be met again
            return path.parent, killed
        time.sleep(0.002)
    raise AssertionError("no worker tagged")


def left_behind(scratch: Path) -> set[Path]:
    return {path.parent for path in scratch.rglob(HALF_WRITTEN)}


@pytest.fixture(scope="module")
def recipe(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), shared)


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> dict[str, bytes]:
    build(recipe, recipe.parent / "whole")
    return standing(recipe.parent / "whole")


def standing(root: Path) -> dict[str, bytes]:
    named = named_files(root)
    return {name: value for name, value in data(root).items() if name in named}


def ids_of_corpus(shared: Path, source: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for path in (shared / "data/corpus" / source).glob("*.jsonl.zst"):
        with zstandard.open(path, "rt", encoding="utf-8") as stream:
            found.update(json.loads(line)["id"] for line in stream.read().split("\n") if line)
    return found


def named(root: Path, kind: str, source: str, ending: str) -> list[Path]:
    return [
        root / name
        for name in sorted(named_files(root))
        if name.startswith(f"{kind}/{source}@") and name.endswith(ending)
    ]


def ids_tagged(root: Path, source: str) -> Counter[str]:
    tables = [pq.read_table(path) for path in named(root, "attributes", source, ".parquet")]
    return Counter(value for table in tables for value in table.column("id").to_pylist())


def ids_tokenized(root: Path, source: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for path in named(root, "tokens", source, ".csv.gz"):
        with gzip.open(path, "rt", newline="") as stream:
            found.update(row[2] for row in csv.reader(stream))
    return found


def test_workers_killed_while_they_tag_change_no_byte(
    recipe: Path, undisturbed: dict[str, bytes], shared: Path, tmp_path: Path
) -> None:
    root, scratch = tmp_path / "root", tmp_path / "scratch"
    process = start(recipe, root, scratch)  # on the default master
    first, _ = kill_a_tagging_worker(process, scratch)
    second, _ = kill_a_tagging_worker(process, scratch)
    assert records(root, ATTRIBUTES) < 16 and records(root, "attributes/*/manifest.json") == 0
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert first != second and left_behind(scratch) == {first, second}, "both were killed before they could clean up"

    assert standing(root) == undisturbed
    for source in SOURCES:
        expected = ids_of_corpus(shared, source)
        assert sum(expected.values()) > 100 and ids_tagged(root, source) == expected
        tokenized = ids_tokenized(root, source)
        assert tokenized and tokenized <= expected


def test_without_another_attempt_the_kill_is_an_error_and_the_same_command_finishes(
    recipe: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """The control: it is Spark's next attempt that made the build above end well."""
    root, scratch = tmp_path / "root", tmp_path / "scratch"
    process = start(recipe, root, scratch, "local[1,1]")
    killed, _ = kill_a_tagging_worker(process, scratch)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1 and "a Spark job failed: " in said and "Traceback" not in said, said
    assert left_behind(scratch) == {killed}
    assert records(root, "attributes/*/manifest.json") == records(root, "tokens/*/manifest.json") == 0
    build(recipe, root)
    assert standing(root) == undisturbed


def spark_home(folder: Path, settings: dict[str, str]) -> dict[str, str]:
    """The environment of a Spark with settings of its own, whose executors work below `folder` and not below the installed package."""
    home, conf = folder / "spark", folder / "conf"
    for path in (home, conf):
        path.mkdir()
    for path in Path(pyspark.__file__).parent.iterdir():
        (home / path.name).symlink_to(path)
    (conf / "spark-defaults.conf").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    return {"SPARK_HOME": str(home), "SPARK_CONF_DIR": str(conf)}


def test_an_executor_killed_while_it_tags_changes_no_byte(
    recipe: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Two executors, each a process of its own, of which one dies with a shard half written; its tasks run on the next one."""
    root, scratch = tmp_path / "root", tmp_path / "scratch"
    settings = {
        "spark.eventLog.enabled": "true",
        "spark.eventLog.compress": "false",
        "spark.eventLog.rolling.enabled": "false",
        "spark.eventLog.dir": (tmp_path / "events").as_uri(),
    }
    (tmp_path / "events").mkdir()
    environment = spark_home(tmp_path, settings)
    process = start(recipe, root, scratch, "local-cluster[2,1,1024]", **environment)
    _, executor = kill_a_tagging_worker(process, scratch, executor_of)
    assert records(root, ATTRIBUTES) < 16 and records(root, "attributes/*/manifest.json") == 0
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert not Path(f"/proc/{executor}").exists()
    assert standing(root) == undisturbed

    events = [json.loads(line) for path in (tmp_path / "events").iterdir() for line in path.read_text().splitlines()]
    assert any(event["Event"] == "SparkListenerExecutorRemoved" for event in events)
    ends = {event["Task End Reason"]["Reason"] for event in events if event["Event"] == "SparkListenerTaskEnd"}
    assert {"ExecutorLostFailure", "Success"} <= ends
