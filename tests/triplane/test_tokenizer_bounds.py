"""No input makes the tokenizer superlinear, memory stays flat on ever new words, and forks and threads are safe."""

import json
import multiprocessing
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from triplane import tokenizer as module
from triplane.tokenizer import Tokenizer, train

ROOT = Path(__file__).parents[2]
MiB = 2**20
# Encodes words of eight random letters, 4 MiB at a time, and prints resident MiB after each.
NEW_WORDS = """
import json, sys
import numpy as np, pyarrow as pa
from triplane.tokenizer import Tokenizer
path, reload_after, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
tokenizer = Tokenizer(open(path, "rb").read(), path, reload_after_bytes=reload_after)
random, seen = np.random.default_rng(0), []
for _ in range(rounds):
    words = random.integers(97, 123, (2**22 // 9, 9), np.uint8)
    words[:, -1] = 32
    offsets = np.arange(0, words.size + 1, 9 * 1000, np.int64)
    tokenizer.encode(pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(words)))
    seen.append(int(open("/proc/self/statm").read().split()[1]) * 4096 // 2**20)
print(json.dumps([seen, tokenizer.reloads]))
"""


@pytest.fixture(scope="module")
def path(shared: Path) -> Path:
    return shared / "data/tokenizer/allenai_dolma2.json"


@pytest.fixture(scope="module")
def small() -> bytes:
    return train(["the cat sat on the mat and the cat ran\n" * 50], 320)


def seconds(tokenizer: Tokenizer, text: str) -> float:
    start = time.process_time()
    tokenizer.encode([text])
    return time.process_time() - start


@pytest.mark.parametrize("unit", ["a", " ", "🙂", "e\u0301\u0302", "|||IP_ADDRESS|||"])
def test_time_is_linear_in_the_length_of_a_run(path: Path, unit: str) -> None:
    tokenizer = Tokenizer.load(path)
    count = 4_000_000 // len(unit.encode())
    quarter = seconds(tokenizer, unit * (count // 4))
    assert seconds(tokenizer, unit * count) < 10 * max(quarter, 0.05)  # 16 times if it were quadratic
    ids, _ = tokenizer.encode([unit * 5000])
    assert ids.tolist() == tokenizer._reference.encode(unit * 5000).ids


def resident(path: Path, reload_after: int, rounds: int) -> tuple[list[int], int]:
    command = [sys.executable, "-c", NEW_WORDS, str(path), str(reload_after), str(rounds)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    seen, reloads = json.loads(done.stdout)
    return seen, reloads


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
def test_memory_is_flat_on_ever_new_words(path: Path) -> None:
    # Reloading every 8 MiB shows over 28 MiB what every 512 MiB, or 512 MiB of growth, shows over 2 GB.
    seen, reloads = resident(path, 8 * MiB, 7)
    assert reloads >= 3
    assert max(seen[4:]) <= max(seen[:4]) + 32
    never, reloads = resident(path, 10**12, 4)
    assert reloads == 0 and never[-1] - never[0] > 64  # what it would do without


def test_the_encoder_is_reloaded_after_a_number_of_bytes(small: bytes) -> None:
    tokenizer = Tokenizer(small, "small", reload_after_bytes=100)
    texts = ["the cat sat on the mat " * 2] * 10  # 46 bytes each
    want = tokenizer.encode(texts[:1])[0].tolist()
    before = tokenizer.reloads
    for text in texts:
        assert tokenizer.encode([text])[0].tolist() == want
    assert tokenizer.reloads - before == 5
    before = tokenizer.reloads
    tokenizer.encode(["one document over the limit " * 10])
    assert tokenizer.reloads == before + 1


def test_the_encoder_is_reloaded_when_memory_grew(small: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(small, "small")
    now = [0]
    monkeypatch.setattr(module, "_resident_bytes", lambda: now[0])
    tokenizer.reload()
    tokenizer.encode(["the cat"])
    now[0] = module.RELOAD_AFTER_GROWTH_BYTES
    tokenizer.encode(["the cat"])
    assert tokenizer.reloads == 1
    now[0] += 1
    tokenizer.encode(["the cat"])
    tokenizer.encode(["the cat"])
    assert tokenizer.reloads == 2


def _encode_in_child(tokenizer: Tokenizer, pipe: "multiprocessing.connection.Connection") -> None:
    pipe.send(tokenizer.encode(["forked text " * 100_000])[0].tolist())


def test_a_forked_worker_encodes(path: Path) -> None:
    tokenizer = Tokenizer.load(path)
    want = tokenizer.encode(["forked text " * 100_000])[0].tolist()
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_encode_in_child, args=(tokenizer, theirs))
    child.start()
    assert ours.poll(60) and ours.recv() == want
    child.join(60)
    assert child.exitcode == 0


def test_threads_share_one_tokenizer(small: bytes) -> None:
    tokenizer = Tokenizer(small, "small", reload_after_bytes=1000)
    want = tokenizer.encode(["the cat ran " * 20])[0]
    wrong: list[np.ndarray] = []

    def work() -> None:
        for _ in range(50):
            got = tokenizer.encode(["the cat ran " * 20])[0]
            if not np.array_equal(got, want):
                wrong.append(got)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and tokenizer.reloads > 10


def test_encoding_starts_no_threads(path: Path) -> None:
    program = (
        "import sys; from triplane.tokenizer import Tokenizer; t = Tokenizer.load(sys.argv[1]);"
        "import os; count = lambda: len(os.listdir('/proc/self/task')); before = count();"
        "t.encode(['many words of text ' * 100_000] * 4); print(count() - before)"
    )
    command = [sys.executable, "-c", program, str(path)]
    environment = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert int(done.stdout) == 0
