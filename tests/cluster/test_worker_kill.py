"""kill -9 of the Python workers of a real build while they tag: Spark runs their tasks again, and the bytes are those of an undisturbed build."""

import csv
import gzip
import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import zstandard

from tests.cluster.test_build_kill import COMMAND, SOURCES, build, data, named_files, records, write_recipe

HALF_WRITTEN = "attributes.parquet"  # open in a worker from the first document of a shard to its last
ATTRIBUTES = "attributes/*/records/*.json"


def start(recipe: Path, root: Path, scratch: Path, master: str) -> subprocess.Popen[str]:
    scratch.mkdir()
    return subprocess.Popen(
        [*COMMAND, str(recipe), "--root", str(root)],
        env=os.environ | {"TRIPLANE_SPARK_MASTER": master, "TMPDIR": str(scratch)},
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


def kill_a_tagging_worker(process: subprocess.Popen[str], scratch: Path) -> Path:
    """Stops a worker, makes sure that it is in the middle of a shard, and kills it -> the folder that it can no longer remove."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None, "the build ended before a worker could be killed"
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            if half_written(scratch, pid) is None:
                continue
            os.kill(pid, signal.SIGSTOP)
            path = half_written(scratch, pid)
            os.kill(pid, signal.SIGCONT if path is None else signal.SIGKILL)
            if path is not None:
                return path.parent
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
    process = start(recipe, root, scratch, "local[2,4]")
    first = kill_a_tagging_worker(process, scratch)
    second = kill_a_tagging_worker(process, scratch)
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
    killed = kill_a_tagging_worker(process, scratch)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1 and "a Spark job failed: " in said and "Traceback" not in said, said
    assert left_behind(scratch) == {killed}
    assert records(root, "attributes/*/manifest.json") == records(root, "tokens/*/manifest.json") == 0
    build(recipe, root)
    assert standing(root) == undisturbed
