"""How fast is a core at turning Arrow text into shard-ready ids? Ours, `tokenizers` and `tiktoken` on the same documents.

Each is measured in fresh processes of its own, pinned to one core, on text that process has not seen before; loading and reading are
not counted, what it takes to get from an Arrow batch to uint32 ids and int64 offsets is. Rates are bytes of text per second of the
process's CPU time (all threads), so a busy machine hardly moves them; wall times are printed too. Peers run on a prefix of the
documents, ours on all of them, its encoder reloads and sample checks included. The last line is one JSON object.

    python bench/tokenizer.py [--quick]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import zstandard

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("TRIPLANE_SHARED", ROOT.parent / "shared"))
TOKENIZER = SHARED / "data/tokenizer/allenai_dolma2.json"
BATCH_BYTES = 16 << 20
PEER_BATCH_BYTES = 1 << 20
ONE_CORE = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
# cl100k_base as tiktoken ships it (possessive, so faster than the tokenizer.json's spelling of the same pattern).
CL100K = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
Encoded = tuple[np.ndarray, np.ndarray]
Encode = Callable[[pa.Array], Encoded]


def texts() -> list[str]:
    """Every document of the corpus, its sources mixed by a fixed shuffle so that a prefix is like the whole."""
    found: list[str] = []
    for path in sorted((SHARED / "data/corpus").glob("*/part-0000[0-9].jsonl.zst")):
        if path.parent.name == "defects":
            continue
        with path.open("rb") as stream:
            lines = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True).read().splitlines()
        found.extend(orjson.loads(line)["text"] for line in lines)
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def batches(documents: list[str], batch_bytes: int) -> Iterator[pa.Array]:
    """Arrow batches of about `batch_bytes` of text."""
    whole = pa.array(documents, pa.large_string())
    offsets = np.frombuffer(whole.buffers()[1], np.int64)
    start = 0
    while start < len(whole):
        end = max(start + 1, int(np.searchsorted(offsets, offsets[start] + batch_bytes, side="right")) - 1)
        yield whole.slice(start, end - start)
        start = end


def ours() -> Encode:
    from triplane.tokenizer import Tokenizer

    return Tokenizer.load(TOKENIZER).encode


def with_tokenizers() -> Encode:
    import tokenizers

    peer = tokenizers.Tokenizer.from_file(str(TOKENIZER))
    peer.encode_special_tokens = True
    return lambda batch: _pack(
        [encoding.ids for encoding in peer.encode_batch_fast(batch.to_pylist(), add_special_tokens=False)]
    )


def with_tiktoken() -> Encode:
    import tiktoken

    model = json.loads(TOKENIZER.read_bytes())["model"]
    byte_of = {character: byte for byte, character in _byte_characters().items()}
    mergeable = {  # the added tokens have no merges and stand behind the rest
        bytes(byte_of[character] for character in token): rank
        for token, rank in model["vocab"].items()
        if rank < len(model["merges"]) + 256
    }
    peer = tiktoken.Encoding("dolma2", pat_str=CL100K, mergeable_ranks=mergeable, special_tokens={})
    return lambda batch: _pack(peer.encode_ordinary_batch(batch.to_pylist(), num_threads=1))


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


def _pack(rows: list[list[int]]) -> Encoded:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return np.concatenate([np.array(row, np.uint32) for row in rows]), offsets


MAKERS = {"ours": ours, "tokenizers": with_tokenizers, "tiktoken": with_tiktoken}


def child(name: str, seconds: float, folder: Path) -> None:
    """Encodes batch after batch, each once, for `seconds` of CPU time or to the end; leaves ids, lengths and figures in `folder`."""
    work = list(batches(texts(), BATCH_BYTES if name == "ours" else PEER_BATCH_BYTES))
    encode = MAKERS[name]()
    parts: list[Encoded] = []
    size, cpu, wall = 0, 0.0, 0.0
    for batch in work:
        cpu_start, wall_start = time.process_time(), time.perf_counter()
        parts.append(encode(batch))
        cpu += time.process_time() - cpu_start
        wall += time.perf_counter() - wall_start
        offsets = np.frombuffer(batch.buffers()[1], np.int64)[batch.offset :][: len(batch) + 1]
        size += int(offsets[-1] - offsets[0])
        if cpu > seconds:
            break
    np.concatenate([ids for ids, _ in parts]).tofile(folder / f"{name}.ids")
    np.concatenate([np.diff(offsets) for _, offsets in parts]).tofile(folder / f"{name}.lengths")
    reload_cpu = reload_share(encode.__self__, size) if name == "ours" else 0.0  # type: ignore[attr-defined]
    print(json.dumps({"bytes": size, "cpu": cpu + reload_cpu, "wall": wall, "reload_cpu": reload_cpu}))


def reload_share(tokenizer: Any, size: int) -> float:
    """CPU seconds of encoder reloads that `size` bytes owe: the corpus is too small for a whole one, so one is timed here."""
    from triplane.tokenizer import RELOAD_AFTER_BYTES

    start = time.process_time()
    tokenizer.reload()
    due = size / RELOAD_AFTER_BYTES - (tokenizer.reloads - 1)
    return max(0.0, due) * (time.process_time() - start)


def measure(name: str, seconds: float, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, "--seconds", str(seconds), "--folder", str(folder)]
    environment = os.environ | ONE_CORE | {"PYTHONPATH": str(ROOT)}
    core = max(os.sched_getaffinity(0))
    done = subprocess.run(
        command,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    rate = figures["bytes"] / 1e6 / figures["cpu"]
    print(
        f"{name}: {figures['bytes'] / 1e6:.1f} MB, {figures['cpu']:.2f} s CPU, {figures['wall']:.2f} s wall, {rate:.1f} MB/s",
        flush=True,
    )
    return figures | {"rate": rate}


def differing(name: str, folder: Path) -> tuple[int, int]:
    """(documents compared, documents whose ids differ from ours), on what the peer encoded."""
    lengths = np.fromfile(folder / f"{name}.lengths", np.int64)
    our_lengths = np.fromfile(folder / "ours.lengths", np.int64)[: len(lengths)]
    ids, our_ids = (np.fromfile(folder / f"{who}.ids", np.uint32) for who in (name, "ours"))
    if np.array_equal(lengths, our_lengths) and np.array_equal(ids, our_ids[: len(ids)]):
        return len(lengths), 0
    ends, our_ends = np.cumsum(lengths), np.cumsum(our_lengths)
    pairs = zip(ends - lengths, ends, our_ends - our_lengths, our_ends, strict=True)
    return len(lengths), sum(not np.array_equal(ids[a:b], our_ids[c:d]) for a, b, c, d in pairs)


def main(quick: bool) -> None:
    seconds = 5.0 if quick else 15.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = [measure("ours", float("inf"), folder) for _ in range(3)]
        rates = {peer: measure(peer, seconds, folder)["rate"] for peer in ("tokenizers", "tiktoken")}
        compared = {peer: differing(peer, folder) for peer in rates}
    our_rate = statistics.median(run["rate"] for run in runs)
    print(
        json.dumps(
            {
                "bench": "tokenizer",
                "unit": "MB/s per core",
                "ours": round(our_rate, 1),
                "peer": round(rates["tokenizers"], 2),
                "peer_name": "tokenizers",
                "ratio": round(our_rate / rates["tokenizers"], 1),
                "same_output": all(count == 0 for _, count in compared.values()),
                "tiktoken": round(rates["tiktoken"], 2),
                "ratio_tiktoken": round(our_rate / rates["tiktoken"], 1),
                "documents_compared": {peer: count for peer, (count, _) in compared.items()},
                "documents_differing": {peer: count for peer, (_, count) in compared.items()},
                "ours_runs": [round(run["rate"], 1) for run in runs],
                "reload_cpu_seconds_charged": round(runs[-1]["reload_cpu"], 3),
                "quick": quick,
                "versions": {
                    package: version(package)
                    for package in ("gigatoken", "tokenizers", "tiktoken", "awkward", "pyarrow")
                },
            }
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", choices=sorted(MAKERS))
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.seconds, arguments.folder)
    else:
        main(arguments.quick)
