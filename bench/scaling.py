"""What does Spark cost, and is time linear in the input? `tag` by Spark with two workers, and by two independent processes, same kernels.

Efficiency: wall time of two processes that tag half of the shards each / wall time of the `tag` verb on local[2], both on two cores; with the
session already up (`ratio`) and with its start. Linear: CPU seconds per MB of the verb as the input grows, by copies of the corpus with
seeded word edits, and the largest memory of one Python worker. Wall times: run it on a quiet machine. The last line is one JSON object.

    python bench/scaling.py [--quick]      # 85 and 170 MB; else 0.1 to 5 GB
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import measuring

COPIES = (1, 3, 12, 30, 59)
QUICK_COPIES = (1, 2)
SHARD_BYTES = 8 << 20
WORKERS = 2
POLL_SECONDS = 0.2


def spark_tag(documents: Path, output: Path) -> dict[str, Any]:
    """The verb on two workers -> seconds of the session's start and of the verb, and the largest worker's resident bytes."""
    from dataplane import ingestion, spark, tagging
    from dataplane.recipe import BuildRecipe
    from triplane.progress import Progress
    from triplane.recipe import parse
    from triplane.tokenizer import Tokenizer

    build = parse(measuring.recipe(documents, f"local[{WORKERS}]"), BuildRecipe, "bench")
    tokenizer = Tokenizer.load(measuring.TOKENIZER)
    start = time.perf_counter()
    session = spark.session(build.spark_master)
    started = time.perf_counter() - start
    memory = Memory()
    ingested = ingestion.ingest(lambda: session, str(output), build, Progress())
    start = time.perf_counter()
    where = (str(measuring.TOKENIZER), tokenizer.sha256)
    tagging.tag(lambda: session, str(output), build, ingested, where, Progress())
    wall = time.perf_counter() - start
    spark.stop()
    return {"start": started, "wall": wall, "worker_bytes": memory.stop()}


class Memory:
    """The largest resident size of any Python process below this one, looked at five times a second."""

    def __init__(self) -> None:
        self.most, self.ended = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def stop(self) -> int:
        self.ended.set()
        self.thread.join()
        return self.most

    def _watch(self) -> None:
        while not self.ended.wait(POLL_SECONDS):
            for path in Path("/proc").glob("[0-9]*/status"):
                if path.parent.name != str(os.getpid()):
                    self.most = max(self.most, _worker_bytes(path))


def _worker_bytes(path: Path) -> int:
    """Resident bytes of a pyspark worker of this session; 0 for any other process."""
    try:
        if b"pyspark" not in (path.parent / "cmdline").read_bytes() or os.getsid(int(path.parent.name)) != os.getsid(0):
            return 0
        lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        return int(lines["VmRSS"].split()[0]) * 1024 if lines["Name"].strip().startswith("python") else 0
    except (OSError, KeyError):
        return 0


def independent(documents: Path, folder: Path) -> float:
    """Wall seconds of two processes that tag every other shard each, from the start of both to the end of the last."""
    halves = [folder / f"half-{number}" for number in range(WORKERS)]
    for number, half in enumerate(halves):
        (half / "documents").mkdir(parents=True)
        (half / "out").mkdir()
        for path in sorted(documents.iterdir())[number::WORKERS]:
            (half / "documents" / path.name).symlink_to(path)
    command = [sys.executable, measuring.ROOT / "bench/dataplane.py", "--child", "tag"]
    start = time.perf_counter()
    running = [
        subprocess.Popen(
            [*command, half / "documents", half / "out"],
            env=os.environ | measuring.ONE_CORE | {"PYTHONPATH": str(measuring.ROOT)},
            stdout=subprocess.DEVNULL,
        )
        for half in halves
    ]
    if any([process.wait() for process in running]):
        raise SystemExit("a process that tags failed")
    return time.perf_counter() - start


def _attributes(paths: Iterable[Path]) -> set[str]:
    """sha256 of each Parquet file: the same shards give the same bytes, with and without Spark."""
    from triplane.hashing import sha256_file

    return {sha256_file(path) for path in paths}


def measured(quick: bool, folder: Path) -> dict[str, Any]:
    mixed, line, same = measuring.corpus(), [], True
    for copies in QUICK_COPIES if quick else COPIES:
        documents, output = folder / f"documents-{copies}", folder / f"output-{copies}"
        size = measuring.write_shards(measuring.grown(mixed, copies), documents, SHARD_BYTES)
        output.mkdir()
        cores = sorted(os.sched_getaffinity(0))[-WORKERS:]
        if not line:  # compiles what is not in numba's cache yet
            independent(documents, folder / "warm")
        found = measuring.child([sys.executable, __file__, "--child", documents, output], folder, cores)
        apart = independent(documents, folder / f"apart-{copies}")
        same = same and _attributes(output.glob("attributes/*/*.parquet")) == _attributes(
            folder.glob(f"apart-{copies}/*/out/*")
        )
        line.append({"megabytes": round(size / 1e6, 1), "independent": apart, **found})
        measuring.note(f"Spark, {copies} copies", size / 1e6, found["tree_cpu"])
        print(json.dumps(line[-1]), file=sys.stderr, flush=True)
    last = line[-1]
    slope = [(b["tree_cpu"] - a["tree_cpu"]) / (b["megabytes"] - a["megabytes"]) for a, b in itertools.pairwise(line)]
    return {
        "ours": round(last["megabytes"] / last["wall"], 1),
        "peer": round(last["megabytes"] / last["independent"], 1),
        "ratio": round(last["independent"] / last["wall"], 3),
        "ratio_with_start": round(last["independent"] / (last["wall"] + last["start"]), 3),
        "same_output": same,
        "line": [{name: round(value, 2) for name, value in point.items()} for point in line],
        "marginal_cpu_seconds_per_mb": [round(value, 4) for value in slope],
        "largest_worker_mb": round(max(point["worker_bytes"] for point in line) / 1e6),
    }


def main(quick: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        figures = measured(quick, Path(name))
    report = {"bench": "scaling", "unit": "MB/s on two cores", "peer_name": "two processes without Spark", **figures}
    print(json.dumps(report | {"quick": quick, "versions": measuring.versions("pyspark", "numba")}))


if __name__ == "__main__":
    os.environ.setdefault("NUMBA_CACHE_DIR", str(measuring.ROOT / ".numba_cache"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", type=Path, nargs=2, metavar=("DOCUMENTS", "OUTPUT"))
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(spark_tag(*arguments.child)))
    else:
        main(arguments.quick)
