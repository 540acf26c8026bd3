"""What the benchmarks of the dataplane share: the documents, and processes on one core whose CPU time is counted to the last descendant.

Shared corpus -> documents in a fixed mixed order, so that a prefix is like the whole; grown by copies in which some words are replaced by others
of the same document. CPU time, not wall time: a busy neighbour hardly moves it.

    python bench/measuring.py FIGURES COMMAND...      # runs COMMAND, writes {"cpu", "wall"} of it and all its descendants
"""

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("TRIPLANE_SHARED", ROOT.parent / "shared"))
CORPUS = SHARED / "data/corpus"
TOKENIZER = SHARED / "data/tokenizer/allenai_dolma2.json"
DATATROVE = ROOT / ".bench/datatrove/bin/python"
DOLMA = ROOT / ".bench/dolma/bin/dolma"
ONE_CORE = {
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
MINHASH = {"bands": 14, "rows": 8, "shingle_words": 5, "seed": 1}
TAGGERS = ("gopher_quality", "gopher_repetition", "ngram_repetition", "text_hash", "minhash")
WORDS_PER_EDIT = 50
SET_CHILD_SUBREAPER = 36
SAMPLE_SECONDS = 0.1
Document = dict[str, str]

# A script's folder comes first in sys.path, where bench/dataplane.py and bench/fasttext.py would hide the packages of these names.
if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    sys.path.extend([str(ROOT), sys.path.pop(0)])


def corpus() -> list[Document]:
    """id and text of every document of the shared corpus but the planted defects, mixed by a fixed shuffle."""
    import numpy as np
    import orjson
    import zstandard

    found: list[Document] = []
    for path in sorted(CORPUS.glob("*/*.jsonl.zst")):
        if path.parent.name == "defects":
            continue
        with path.open("rb") as stream:
            lines = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True).read().splitlines()
        records = map(orjson.loads, lines)
        found.extend({"id": f"{path.parent.name}/{record['id']}", "text": record["text"]} for record in records)
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def grown(documents: Sequence[Document], copies: int, words_per_edit: float = WORDS_PER_EDIT) -> Iterator[Document]:
    """The documents, then `copies` - 1 times the same with seeded word edits; ids carry the number of the copy.

    At 50 words an edit MinHash finds the copies of most documents, at 4 hardly any.
    """
    for copy in range(copies):
        for number, document in enumerate(documents):
            text = edited(document["text"], (copy, number), words_per_edit) if copy else document["text"]
            yield {"id": f"{document['id']}@{copy}", "text": text}


def edited(text: str, seed: tuple[int, ...], words_per_edit: float = WORDS_PER_EDIT) -> str:
    """The text with about one in `words_per_edit` words replaced by another of its words."""
    import numpy as np

    words, random = text.split(" "), np.random.default_rng(seed)
    count = random.poisson(len(words) / words_per_edit)
    for target, origin in random.integers(0, len(words), (count, 2)).tolist():
        words[target] = words[origin]
    return " ".join(words)


def write_shards(documents: Iterator[Document] | Sequence[Document], folder: Path, shard_bytes: int) -> int:
    """JSONL.zst files of about `shard_bytes` of text each -> bytes of text in all."""
    import orjson
    import zstandard

    folder.mkdir(parents=True)
    total, size, lines, number = 0, 0, [], 0
    compressor = zstandard.ZstdCompressor(3)

    def flush() -> None:
        (folder / f"part-{number:05d}.jsonl.zst").write_bytes(compressor.compress(b"".join(lines)))

    for document in documents:
        lines.append(orjson.dumps(document) + b"\n")
        size += len(document["text"].encode())
        if size >= shard_bytes:
            flush()
            total, size, lines, number = total + size, 0, [], number + 1
    if lines:
        flush()
    return total + size


def recipe(documents: Path, master: str, rules: bool = True) -> str:
    """A build of one folder: all of `TAGGERS`, exact and near duplicates removed; without rules only Gopher's taggers and nothing dropped.

    Token counts are in both: a build is planned by them.
    """
    minhash = [*TAGGERS[:-1], {"name": "minhash", "params": MINHASH}]
    source = {
        "name": "bench", "documents": str(documents), "format": "dolma", "licence": "mixed",
        "taggers": minhash if rules else TAGGERS[:3],
        "rules": TAGGERS[:3] if rules else [],
        "exact_dedup": rules, "near_dedup": {"within": "bench"} if rules else None,
    }  # fmt: skip
    build = {
        "name": "bench", "seed": 0, "sequence_length_tokens": 4096, "shard_tokens": 100_000_000, "held_out_fraction": 0.0,
        "tokenizer": str(TOKENIZER), "mixes": [], "spark_master": master, "sources": [source],
    }  # fmt: skip
    return json.dumps(build)


def run(
    command: Sequence[str | Path], folder: Path, cores: Sequence[int] | None = None
) -> tuple[dict[str, float], str]:
    """Runs a command, on one core unless told -> (CPU and wall seconds of all its processes, its standard output)."""
    figures = folder / f"figures-{time.monotonic_ns()}.json"
    wanted = set(cores) if cores else {max(os.sched_getaffinity(0))}
    done = subprocess.run(
        [sys.executable, __file__, figures, *command],
        env=os.environ | ONE_CORE | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, wanted),
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(figures.read_text()), done.stdout


def child(command: Sequence[str | Path], folder: Path, cores: Sequence[int] | None = None) -> dict[str, Any]:
    """`run` of one of our scripts -> what its last line says, as JSON, and the whole command's `tree_cpu` and `tree_wall`."""
    spent, output = run(command, folder, cores)
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures | {"tree_cpu": spent["cpu"], "tree_wall": spent["wall"]}


def versions(*packages: str, python: Path | None = None) -> dict[str, str]:
    """What is installed, here or in another environment."""
    code = "import json, sys; from importlib.metadata import version as v; print(json.dumps({p: v(p) for p in sys.argv[1:]}))"
    found: dict[str, str] = json.loads(subprocess.check_output([python or sys.executable, "-c", code, *packages]))
    return found


def note(name: str, megabytes: float, cpu: float) -> float:
    """Says on standard error what was measured -> MB/s."""
    print(f"{name}: {megabytes:.1f} MB, {cpu:.2f} s CPU, {megabytes / cpu:.2f} MB/s", file=sys.stderr, flush=True)
    return megabytes / cpu


def require(*paths: Path) -> None:
    """Ends with a sentence when a peer is not installed."""
    for path in paths:
        if not path.exists():
            raise SystemExit(f"{path} is missing: run `make bench-env` first")


def _cpu_by_process() -> dict[str, float]:
    """CPU seconds of each process of this session so far, children that ended not included."""
    found, session = {}, str(os.getsid(0))
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended just now
        if fields[3] == session and path.parent.name != str(os.getpid()):
            found[path.parent.name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def _measure(figures: Path, command: list[str]) -> int:
    """CPU time as the kernel adds it up for those waited for, or as seen ten times a second in /proc if that is more: what Spark's daemon does
    with its workers leaves theirs out of the first."""
    ctypes.CDLL(None, use_errno=True).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    seen: dict[str, float] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            seen.update(_cpu_by_process())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    code = subprocess.run(command).returncode
    wall = time.perf_counter() - start
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    ended.set()
    watcher.join()
    times = os.times()
    cpu = max(times.children_user + times.children_system, sum(seen.values()))
    figures.write_text(json.dumps({"cpu": cpu, "wall": wall}))
    return code


if __name__ == "__main__":
    sys.exit(_measure(Path(sys.argv[1]), sys.argv[2:]))
