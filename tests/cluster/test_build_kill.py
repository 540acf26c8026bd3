"""kill -9 of a real build's driver while it tags and again while it tokenizes: the same command then gives the bytes of an undisturbed build."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SOURCES = ("web", "math_web", "books", "qa")
TAGGERS = "[lengths, gopher_quality, gopher_repetition, text_hash, ngram_repetition]"
COMMAND = [sys.executable, "-c", "from jobs.cli import app; app()", "data", "build"]


def write_recipe(folder: Path, shared: Path) -> Path:
    sources = [
        f"  - {{name: {name}, documents: {shared}/data/corpus/{name}, format: dolma, licence: see corpus README, "
        f"taggers: {TAGGERS}, rules: [ngram_repetition, gopher_quality], exact_dedup: true}}"
        for name in SOURCES
    ]
    lines = [
        "name: killed",
        "seed: 3",
        f"tokenizer: {shared}/data/tokenizer/allenai_dolma2.json",
        "sequence_length_tokens: 512",
        "shard_tokens: 500K",
        "held_out_fraction: 0.05",
        "sources:",
        *sources,
        "mixes:",
        "  - {name: killed-mix, tokens: 1M, shares: {web: 0.4, math_web: 0.3, books: 0.2, qa: 0.1}}",
    ]
    (folder / "killed.yaml").write_text("\n".join(lines) + "\n")
    return folder / "killed.yaml"


def environment() -> dict[str, str]:
    return os.environ | {"TRIPLANE_SPARK_MASTER": "local[1]"}


def build(recipe: Path, root: Path) -> None:
    done = subprocess.run(
        [*COMMAND, str(recipe), "--root", str(root)], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def build_killed_when(recipe: Path, root: Path, reached: Callable[[Path], bool]) -> None:
    """Starts a build and sends its driver SIGKILL as soon as `reached(root)`."""
    process = subprocess.Popen(
        [*COMMAND, str(recipe), "--root", str(root)],
        env=environment(),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    end = time.monotonic() + 240
    try:
        while not reached(root):
            assert process.poll() is None, "the build ended before it could be killed"
            assert time.monotonic() < end, "the build never got there"
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        status = process.wait(30)
    assert status == -signal.SIGKILL
    wait_until_still(root)


def wait_until_still(root: Path) -> None:
    """A worker that outlives its driver may finish the shard it has in hand."""
    before, now = None, contents(root)
    while before != now:
        time.sleep(2)
        before, now = now, contents(root)


def contents(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*") if path.is_file()}


def data(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def records(root: Path, pattern: str) -> int:
    return len(list(root.glob(pattern)))


ATTRIBUTES = "attributes/*/records/*.json"
SCATTERED = "tokens/*/scatter/records/*.json"


def test_a_build_killed_twice_gives_the_same_bytes(shared: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, shared)
    root, whole = tmp_path / "root", tmp_path / "whole"

    build_killed_when(recipe, root, lambda root: records(root, ATTRIBUTES) >= 2)
    tagged = records(root, ATTRIBUTES)
    assert 2 <= tagged < 16, "killed while it tagged"
    assert records(root, "attributes/*/manifest.json") == records(root, "selection/*/manifest.json") == 0

    build_killed_when(recipe, root, lambda root: records(root, SCATTERED) >= 2)
    assert 2 <= records(root, SCATTERED) < 16, "killed while it tokenized"
    assert records(root, "attributes/*/manifest.json") == 4 and records(root, "selection/*/manifest.json") == 1
    assert records(root, "tokens/*/manifest.json") == records(root, "mix/*/manifest.json") == 0

    build(recipe, root)
    build(recipe, whole)
    named = named_files(root)
    assert named == named_files(whole)
    assert {name: value for name, value in data(root).items() if name in named} == {
        name: value for name, value in data(whole).items() if name in named
    }
    lock = json.loads(next(root.glob("mix/*/lock-*.json")).read_text())
    assert lock["sequence_length"] == 512


def named_files(root: Path) -> set[str]:
    """Manifests, records and every file that they name; what a killed attempt left beside them is for `triplane gc`."""
    found = set()
    for manifest in root.glob("*/*/manifest.json"):
        folder = manifest.parent.relative_to(root)
        found.add(str(folder / "manifest.json"))
        for record in json.loads(manifest.read_text())["records"]:
            found |= {str(folder / file["name"]) for file in record["files"]}
    return found
