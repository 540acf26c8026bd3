"""What does a checkpoint cost the training that goes on? Ours to an S3 server at 50 MB/s, torch DCP's `async_save` to a local folder, in one run.

One process trains a small OLMo 2 with one thread; the server (moto behind a proxy that holds writes to 50 MB/s) is pinned to the other core.
Rounds alternate: steps without a checkpoint, one copy of the state into memory that is there (`copy`: the floor), a save, and steps while it
uploads. `ours` and `peer` are the seconds a save holds the step up (median); `stall_over_copy_ms` is what ours adds to the copy; `step_ratio` is
the median step while uploading over the median step without (wall; `step_ratio_cpu`: of the training thread's CPU time, which a busy
neighbour hardly moves). The same output: what each wrote is read back and is, bit for bit, the state when it was saved. The last line
is one JSON object.

    python bench/checkpoint.py [--quick]
"""

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import measuring

MB_PER_SECOND = 50
PIECE = 64 << 10
PEER_NAME = "torch.distributed.checkpoint.async_save, local folder"
STEPS = 12  # at least, of each kind a round
VOCABULARY, SEQUENCE, ROWS = 16384, 64, 2


async def serve(listen: int, to: int) -> None:
    """Passes bytes on to port `to`; those that come in at `MB_PER_SECOND` at most, over all connections."""
    free_at = 0.0

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limited: bool) -> None:
        nonlocal free_at
        try:
            while data := await reader.read(PIECE):
                if limited:
                    free_at = max(free_at, time.monotonic()) + len(data) / (MB_PER_SECOND * 1e6)
                    await asyncio.sleep(free_at - time.monotonic())
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", to)
        await asyncio.gather(pump(reader, to_server, True), pump(from_server, writer, False))

    async with await asyncio.start_server(handle, "127.0.0.1", listen, limit=PIECE) as server:
        await server.serve_forever()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def other_core() -> set[int]:
    """The last core this process may use, for the server."""
    return {max(os.sched_getaffinity(0))}


@contextmanager
def store() -> Iterator[str]:
    """A bucket behind the proxy; the environment names it."""
    import boto3

    inner, outer = free_port(), free_port()
    moto = Path(sys.executable).parent / "moto_server"
    commands = [[str(moto), "-p", str(inner)], [sys.executable, __file__, "--serve", str(outer), str(inner)]]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen(command, **quiet) for command in commands]
    try:
        for process in processes:
            os.sched_setaffinity(process.pid, other_core())
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{outer}",
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for port in (inner, outer):
            wait_for(port)
        boto3.client("s3").create_bucket(Bucket="bench")
        yield "s3://bench/root"
    finally:
        for process in processes:
            process.terminate()
            process.wait(30)


def wait_for(port: int) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


class Training:
    """A model that trains on tokens of its own; `step` gives (wall, CPU of this thread) seconds."""

    def __init__(self, layers: int) -> None:
        import torch

        from trainplane import optim
        from triplane.lm.model import ModelConfig, Olmo2, init_weights

        torch.manual_seed(0)
        config = ModelConfig(
            VOCABULARY, 256, 768, layers, 4, 4, max_position_embeddings=SEQUENCE, eos_token_id=0, pad_token_id=1
        )
        self.model = Olmo2(config)
        init_weights(self.model, 0)
        self.optimizer = optim.adamw(self.model, optim.AdamWSettings(0.9, 0.95, 1e-8, 0.1, False, True))
        optim.set_lr(self.optimizer, 1e-4)
        self.tokens = torch.randint(VOCABULARY, (ROWS, SEQUENCE + 1))

    def step(self) -> tuple[float, float]:
        import torch

        wall, cpu = time.perf_counter(), time.thread_time()
        logits = self.model(self.tokens[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.tokens[:, 1:].flatten()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - wall, time.thread_time() - cpu

    def tensors(self) -> dict[str, Any]:
        from trainplane import checkpoint

        return checkpoint.tensors_of(self.model, self.optimizer)


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def rounds(training: Training, count: int, save: Callable[[int], None], busy: Callable[[], bool]) -> dict[str, Any]:
    """Alternates steps without a save, a copy, a save, steps while it goes on. The first save, which makes what later ones reuse, is apart."""
    import torch

    held = {name: torch.empty_like(tensor) for name, tensor in training.tensors().items()}
    found: dict[str, list[Any]] = {"alone": [], "during": [], "copy": [], "stall": [], "steps_during": []}
    for number in range(count):
        found["alone"] += [training.step() for _ in range(STEPS)]
        tensors = training.tensors()
        copies = [timed(lambda: [held[name].copy_(tensor) for name, tensor in tensors.items()]) for _ in range(3)]  # noqa: B023
        found["copy"].append(statistics.median(copies))
        found["stall"].append(timed(lambda: save(number)))  # noqa: B023
        during = []
        while busy():
            during.append(training.step())
        found["during"] += during[:-1]  # the last one ended after the upload
        found["steps_during"].append(len(during))
    return found


def summary(found: dict[str, Any]) -> dict[str, float]:
    wall, cpu = ([statistics.median(step[i] for step in found[kind]) for kind in ("alone", "during")] for i in (0, 1))
    return {
        "stall": statistics.median(found["stall"][1:]),
        "first_stall": found["stall"][0],
        "copy": statistics.median(found["copy"][1:]),
        "step_seconds": wall[0],
        "step_ratio": wall[1] / wall[0],
        "step_ratio_cpu": cpu[1] / cpu[0],
        "steps_during": sum(found["steps_during"]),
    }


def ours(training: Training, count: int, root: str) -> tuple[dict[str, float], bool]:
    """Our saver to the store -> its figures, and whether the last checkpoint is the state when it was saved."""
    from trainplane import checkpoint
    from trainplane.checkpoint_writer import THREAD_NAME, Saver
    from trainplane.loop import TrainState
    from triplane import artifact

    run = artifact.begin(root, "run", "bench", inputs={}, recipe={}, stage_versions={}, version="v")
    saver = Saver(run, training.model, training.optimizer, {"model_config": training.model.config.to_dict()})
    expected: dict[str, Any] = {}
    saves: list[int] = []

    def save(number: int) -> None:
        saver.save(TrainState(number + 1, number + 1), [])
        saves.append(number)

    def busy() -> bool:
        if expected.get("at") != len(saves):
            expected.update({"at": len(saves), "tensors": {k: v.clone() for k, v in training.tensors().items()}})
        return any(thread.name == THREAD_NAME for thread in threading.enumerate())

    found = rounds(training, count, save, busy)
    saver.wait()
    fresh = Training(len(training.model.layers))
    fresh.step()
    checkpoint.load(checkpoint.draft(run, count).url, fresh.model, fresh.optimizer)
    return summary(found), equal(fresh.tensors(), expected["tensors"])


def peer(training: Training, count: int, folder: Path) -> tuple[dict[str, float], bool]:
    """The same with torch's own, which needs a process group, and writes to a folder."""
    import torch
    import torch.distributed as dist
    from torch.distributed import checkpoint as dcp

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    futures: list[Any] = []
    expected: dict[str, Any] = {}

    def save(number: int) -> None:
        futures.append(dcp.async_save(training.tensors(), checkpoint_id=str(folder / str(number))))

    def busy() -> bool:
        if expected.get("at") != len(futures):
            expected.update({"at": len(futures), "tensors": {k: v.clone() for k, v in training.tensors().items()}})
        return not futures[-1].done()

    found = rounds(training, count, save, busy)
    futures[-1].result()
    read = {name: torch.zeros_like(tensor) for name, tensor in training.tensors().items()}
    dcp.load(read, checkpoint_id=str(folder / str(count - 1)))
    dist.destroy_process_group()
    return summary(found), equal(read, expected["tensors"])


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    import torch

    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def main(quick: bool) -> None:
    import torch

    torch.set_num_threads(1)
    count, layers = (4, 6) if quick else (8, 12)
    training = Training(layers)
    for _ in range(5):
        training.step()
    with tempfile.TemporaryDirectory() as scratch:
        with store() as root:
            mine, mine_equal = ours(training, count, root)
        theirs, their_equal = peer(training, count, Path(scratch))
        shutil.rmtree(scratch, ignore_errors=True)
    state_mb = sum(tensor.nbytes for tensor in training.tensors().values()) / 1e6
    print(
        json.dumps(
            {
                "bench": "checkpoint",
                "unit": "s a save holds the step up",
                "ours": mine["stall"],
                "peer": theirs["stall"],
                "peer_name": PEER_NAME,
                "ratio": theirs["stall"] / mine["stall"],
                "same_output": mine_equal and their_equal,
                "state_mb": round(state_mb, 1),
                "upload_mb_per_s": MB_PER_SECOND,
                "stall_over_copy_ms": 1000 * (mine["stall"] - mine["copy"]),
                "step_ratio": mine["step_ratio"],
                "ours_detail": mine,
                "peer_detail": theirs,
                "load_average": os.getloadavg()[0],
            }
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="four saves of a smaller state")
    parser.add_argument("--serve", nargs=2, type=int, metavar=("LISTEN", "TO"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.update(measuring.ONE_CORE)
    if arguments.serve:
        asyncio.run(serve(*arguments.serve))
    else:
        main(arguments.quick)
