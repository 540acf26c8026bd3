"""How fast does the loader give verified batches, and does a step ever wait for one? OLMo-core's loader on the same shards, in the same run.

    python bench/loader.py [--quick]

Last line: {"bench": "loader", "unit": "tokens/s on one core", "ours", "peer", "ratio", "same_output", "stalls", "server_limit_mb_per_s",
"lock_open_seconds", "lock_open_mb", ...}. Tokens by CPU seconds of a process on one core, after a first batch; files in the page cache, instances
of 4,096 tokens in random order, 512 a batch, from 1,024 files (256 with --quick). Each is run three times, in turns; the least CPU time counts.

ours: `trainplane.batches.Batches`, order feistel: every block's checksum is verified every time it is read, rows are hashed for the ledger.
peer: `NumpyFSLDataLoader` of OLMo-core 3.0.0 as it comes (no checksums, no hashes), in .bench/olmo_core, else in this environment.
same_output: the first batches of both in the order `olmo-core` hold the same tokens. with_filter: both with OLMo 2's instance filter on.
stalls: steps after the first of a 2 M tokens/s consumer (it sleeps for the step, as one that waits for a GPU) that asked for a batch before it
was read, from the server of `range_server.py` on the other core, 30 ms before each answer; `longest_wait_ms` is what any of them waited, for the
processor too. `stalls_checksums_unkept`: the same with a checksum GET for every block, as in a lock of 4T tokens from more files than are kept.
server_limit: what a bare socket with 64 requests in flight gets from that server without the wait.
"""

import argparse
import hashlib
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import measuring
import numpy as np

LENGTH, BATCH, SEED, VOCAB, EOS = 4096, 512, 34521, 100_278, 100_257
SHARD_TOKENS = 1 << 17  # many files, so that a batch touches most of them, as in a large mix
COMPARED_BATCHES = 3
EPOCHS, TURNS = 4, 3
TOKENS_PER_SECOND = 2_000_000
DELAY_MS = 30
DEPTH = 4
LOCK_TOKENS, LOCK_SHARDS = 4 * 10**12, 40_000
PEER_ENVIRONMENT = measuring.ROOT / ".bench/olmo_core/bin/python"
FILTER_INSTANCES = 64


def write_data(folder: Path, num_shards: int) -> None:
    """Shards of `SHARD_TOKENS` random tokens, with checksums, and their lock."""
    from triplane import mixture, tokens

    rows = []
    for number in range(num_shards):
        ids = np.random.default_rng(number).integers(0, EOS, SHARD_TOKENS, np.uint32)
        offsets = np.arange(0, SHARD_TOKENS + 1, 2048)
        count = len(offsets) - 1
        with tokens.ShardWriter(folder, f"part-{number:05d}", EOS) as writer:
            writer.add(ids, offsets, ["d"] * count, ["s"] * count, range(1, count + 1))
            held = writer.close().num_tokens
        name = f"part-{number:05d}"
        rows.append(
            mixture.MixShard("web", f"{name}.npy", f"{name}.xxh3", None, None, None, held, held // LENGTH, "0" * 64)
        )
    total = sum(row.num_instances for row in rows) * LENGTH
    lock = mixture.plan("bench", LENGTH, total, {"web": 1.0}, rows, 0, "0" * 64, VOCAB, EOS)
    (folder / "lock.json").write_bytes(lock.to_bytes())


def ours(folder: str, order: str = "feistel", instance_filter: bool = False, root: str | None = None) -> Any:
    """Our loader of the data in `folder`, read from `root`."""
    from trainplane.batches import Batches
    from triplane import mixture

    lock = mixture.load(f"{folder}/lock.json")
    return Batches(root or folder, lock, SEED, BATCH, instance_filter, order=order)


def tokens_per_second(batches: Iterator[np.ndarray]) -> float:
    """Tokens a CPU second of all batches but the first, which warms up."""
    next(batches)
    cpu, num_tokens = time.process_time(), 0
    for tokens in batches:
        num_tokens += tokens.size
    return num_tokens / (time.process_time() - cpu)


def digests(batches: Iterator[np.ndarray]) -> list[str]:
    return [hashlib.sha256(tokens.astype("<u4").tobytes()).hexdigest() for tokens in islice(batches, COMPARED_BATCHES)]


def read_ours(folder: str) -> dict[str, Any]:
    """Four epochs in our order, with and without the filter, and the first batches in OLMo-core's."""
    made, filtered, replayed = ours(folder), ours(folder, instance_filter=True), ours(folder, "olmo-core")
    stop = EPOCHS * made.lock.num_instances // BATCH
    return {
        "speed": tokens_per_second(made.at(position).tokens_BT for position in range(stop)),
        "with_filter": tokens_per_second(filtered.at(position).tokens_BT for position in range(stop)),
        "digests": digests(replayed.at(position).tokens_BT for position in range(stop)),
        "tokens": (stop - 1) * BATCH * LENGTH,
    }


def read_peer(folder: str) -> dict[str, Any]:
    """One epoch of OLMo-core's loader, its first batches, and what its filter costs for some instances."""
    from olmo_core.data import DataCollator, NumpyFSLDataset, TokenizerConfig
    from olmo_core.data.data_loader import NumpyDataLoaderBase

    names = sorted(str(path) for path in Path(folder).glob("part-*.npy"))
    tokenizer = TokenizerConfig.dolma2()

    def loader(**more: Any) -> tuple[Any, Any]:
        dataset = NumpyFSLDataset(
            *names,
            sequence_length=LENGTH,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            vocab_size=tokenizer.vocab_size,
            dtype=np.uint32,
            **more,
        )
        made = NumpyDataLoaderBase.wrap_numpy_dataset(
            dataset,
            global_batch_size=BATCH * LENGTH,
            collator=DataCollator(pad_token_id=tokenizer.pad_token_id),
            work_dir=folder,
            seed=SEED,
        )
        made.reshuffle(1, in_memory=True)
        return dataset, made

    def batches() -> Iterator[np.ndarray]:
        return (batch["input_ids"].numpy() for batch in loader()[1])

    return {"speed": tokens_per_second(batches()), "digests": digests(batches()), "with_filter": peer_filter(loader)}


def peer_filter(loader: Callable[..., tuple[Any, Any]]) -> float:
    """Tokens a CPU second of instances read with the filter on."""
    from olmo_core.data.numpy_dataset import InstanceFilterConfig

    dataset, _ = loader(instance_filter_config=InstanceFilterConfig())
    dataset[0]
    cpu = time.process_time()
    for number in range(1, FILTER_INSTANCES + 1):
        dataset[number * 17 % len(dataset)]
    return FILTER_INSTANCES * LENGTH / (time.process_time() - cpu)


def read_remote(folder: str, port: str, steps: str, keeps: str) -> dict[str, Any]:
    """A consumer of 2 M tokens/s -> how many steps after the first found their batch unread, and the longest that one waited."""
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    from triplane.blocks import BlockReader

    made = ours(folder, root=f"s3://{Path(folder).name}")
    if keeps == "0":
        made._rows._blocks = BlockReader(kept_pages=0)
    read_at, at = {}, made.at

    def noted(position: int) -> Any:
        batch = at(position)
        read_at[position] = time.perf_counter()
        return batch

    made.at = noted
    asked_at, waits, cpu = [], [], time.process_time()
    loader = made.ahead(0, int(steps) + 1, DEPTH)
    for _ in range(int(steps) + 1):
        asked_at.append(time.perf_counter())
        next(loader)
        waits.append(time.perf_counter() - asked_at[-1])
        time.sleep(BATCH * LENGTH / TOKENS_PER_SECOND)
    loader.close()
    stalls = sum(read_at[position] > asked_at[position] for position in range(1, int(steps) + 1))
    busy = (time.process_time() - cpu) / (int(steps) + 1)
    return {"stalls": stalls, "first_wait": waits[0], "longest_wait": max(waits[1:]), "cpu_per_step": busy}


def read_lock(path: str) -> dict[str, float]:
    """Opens a lock and finds a batch of it -> seconds, and memory above what the imports took."""
    from triplane import mixture

    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    lock = mixture.load(path)
    opened = time.perf_counter() - start
    order = mixture.Order(lock, 0)
    order.locate(order.batch(400_000, 2048))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": opened, "mb": (peak - before) / 1024, "tokens": lock.num_tokens, "shards": len(lock.shards)}


def write_lock(path: Path) -> None:
    """4T tokens in 40,000 shards of 100 M, of seven sources."""
    from triplane import mixture

    def row(number: int) -> mixture.MixShard:
        name = f"tokens/source-{number * 7 // LOCK_SHARDS}@0123456789ab/part-{number:05d}-{number:012x}"
        held = LOCK_TOKENS // LOCK_SHARDS + LENGTH + number
        files = (f"{name}.npy", f"{name}.xxh3", None, None, f"{name}.csv.gz")
        return mixture.MixShard(name[7:15], *files, held, held // LENGTH, f"{number:064x}")

    rows = [row(number) for number in range(LOCK_SHARDS)]
    shares = dict.fromkeys(sorted({one.source for one in rows}), 1 / 7)
    lock = mixture.plan("big", LENGTH, LOCK_TOKENS, shares, rows, 0, "0" * 64, VOCAB, EOS)
    path.write_bytes(lock.to_bytes())


@contextmanager
def server(folder: Path, delay_ms: float) -> Iterator[str]:
    """The range server on the first core -> its port."""
    script = Path(__file__).with_name("range_server.py")
    cores = sorted(os.sched_getaffinity(0))
    process = subprocess.Popen(
        [sys.executable, script, folder.parent, str(delay_ms)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {cores[0]}),
    )
    assert process.stdin and process.stdout
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(30)


def server_limit(folder: Path, requests: int = 4096, in_flight: int = 64) -> float:
    """MB/s that the server gives one socket for ranges of 16 KiB, without the wait."""
    with server(folder, 0) as port, socket.create_connection(("127.0.0.1", int(port)), 10) as client:
        asked = b"GET /%b/part-00000.npy HTTP/1.1\r\nRange: bytes=%d-%d\r\n\r\n"
        received, start = 0, time.perf_counter()
        for _ in range(requests // in_flight):
            lows = [n % (SHARD_TOKENS * 4 // 16384) * 16384 for n in range(in_flight)]
            client.sendall(b"".join(asked % (folder.name.encode(), low, low + 16383) for low in lows))
            wanted = received + in_flight * 16384
            while received < wanted:  # heads are counted too: a quarter of a per cent
                received += len(client.recv(1 << 20))
        return received / (time.perf_counter() - start) / 1e6


def child(folder: Path, *what: str, python: Path | str = sys.executable) -> dict[str, Any]:
    """One part of this script, in a process of its own on the last core."""
    return measuring.child([python, __file__, "--part", *what], folder)


def best(runs: list[dict[str, Any]], figure: str) -> int:
    return round(max(run[figure] for run in runs))


def compare(folder: Path, num_shards: int, steps: int) -> dict[str, Any]:
    """All figures, from data written below `folder`."""
    data = folder / "data"
    data.mkdir()
    write_data(data, num_shards)
    write_lock(folder / "big.json")
    peer_python = PEER_ENVIRONMENT if PEER_ENVIRONMENT.exists() else Path(sys.executable)
    mine, theirs = [], []
    for _ in range(TURNS):
        mine.append(child(folder, "ours", str(data)))
        theirs.append(child(folder, "peer", str(data), python=peer_python))
    lock = child(folder, "lock", str(folder / "big.json"))
    limit = server_limit(data)
    with server(data, DELAY_MS) as port:
        kept = child(folder, "remote", str(data), port, str(steps), "1")
        unkept = child(folder, "remote", str(data), port, str(steps), "0")
    speed, peer_speed = best(mine, "speed"), best(theirs, "speed")
    return {
        "bench": "loader",
        "unit": "tokens/s on one core",
        "ours": speed,
        "peer": peer_speed,
        "ratio": round(speed / peer_speed, 2),
        "same_output": all(one["digests"] == mine[0]["digests"] for one in mine + theirs),
        "with_filter": {"ours": best(mine, "with_filter"), "peer": best(theirs, "with_filter")},
        "tokens": mine[0]["tokens"],
        "steps": steps,
        "stalls": kept["stalls"],
        "stalls_checksums_unkept": unkept["stalls"],
        "longest_wait_ms": round(1000 * max(kept["longest_wait"], unkept["longest_wait"]), 2),
        "first_wait_s": [round(kept["first_wait"], 2), round(unkept["first_wait"], 2)],
        "loader_cpu_s_per_step": [round(kept["cpu_per_step"], 3), round(unkept["cpu_per_step"], 3)],
        "needed_mb_per_s": TOKENS_PER_SECOND * 4 / 1e6,
        "server_limit_mb_per_s": round(limit),
        "injected_ms": DELAY_MS,
        "lock_open_seconds": round(lock["seconds"], 2),
        "lock_open_mb": round(lock["mb"]),
        "lock_shards": lock["shards"],
        "versions": measuring.versions("ai2-olmo-core", "torch", python=peer_python),
        "load": os.getloadavg()[0],
    }


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "ours": read_ours,
    "peer": read_peer,
    "remote": read_remote,
    "lock": read_lock,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", nargs="+")
    asked = parser.parse_args()
    if asked.part:
        print(json.dumps(PARTS[asked.part[0]](*asked.part[1:])))
        return
    with tempfile.TemporaryDirectory(prefix="bench-loader-") as folder:
        print(json.dumps(compare(Path(folder), 256 if asked.quick else 1024, 10 if asked.quick else 40)))


if __name__ == "__main__":
    main()
