"""kill -9 of an actor, of the driver, of both while a suite is answered: every item is committed once, and the scores are those of one process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from evalplane import cluster, run, shards
from evalplane.task import Suite, load_suite
from triplane import artifact, vocabulary
from triplane.lm.export import to_huggingface
from triplane.lm.model import ModelConfig, Olmo2, init_weights
from triplane.tokenizer import Tokenizer

SHARD_ITEMS = 4
DRIVER = """
import sys
from evalplane import cluster, run, shards
from evalplane.task import load_suite

shards.of_task.__defaults__ = ({size},)
suite = load_suite("demo", ["arithmetic.data.path=[{items}]", "held_out_bits_per_byte.data.path=[{documents}]"])
with cluster.pool(2, "cpu") as pool:
    print(pool.pids(), flush=True)
    run.evaluate({model!r}, suite, {root!r}, answer=pool.answer)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is slow enough to be met at work, and 120 items and 120 documents for it."""
    folder = tmp_path_factory.mktemp("data")
    text = "Question: what is 1+2?\nAnswer: 3, said the quick brown fox to the lazy dog. "
    tokenizer = Tokenizer(vocabulary.train([text] * 20, 300), "a test's")
    eos = tokenizer.eos_id
    config = ModelConfig(tokenizer.vocab_size, 256, 512, 4, 4, 4, 256, eos_token_id=eos, pad_token_id=eos)
    for seed in (0, 1):
        model = Olmo2(config)
        init_weights(model, seed)
        to_huggingface(model, folder / f"model{seed}", tokenizer.json_bytes)
    items = [{"id": f"a{i}", "question": f"what is {i}+{i}?\n", "answer": str(i + i)} for i in range(120)]
    documents = [{"id": f"d{i}", "text": f"{i} " + text * 2, "source": "web"} for i in range(120)]
    for name, rows in (("items.jsonl", items), ("documents.jsonl", documents)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module", autouse=True)
def sigterm_is_left_alone() -> Iterator[None]:
    """A pool starts Ray in this process, which would put a handler of its own in place."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before


def suite(data: Path) -> Suite:
    paths = f"held_out_bits_per_byte.data.path=[{data}/documents.jsonl]"
    return load_suite("demo", [f"arithmetic.data.path=[{data}/items.jsonl]", paths])


@pytest.fixture(scope="module")
def undisturbed(data: Path) -> run.Evaluation:
    """By this process alone, in shards of the usual size."""
    return run.evaluate(str(data / "model0"), suite(data), str(data / "whole"))


def start(data: Path, root: Path) -> subprocess.Popen[str]:
    script = DRIVER.format(
        size=SHARD_ITEMS,
        items=data / "items.jsonl",
        documents=data / "documents.jsonl",
        model=str(data / "model0"),
        root=str(root),
    )
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def records(root: Path) -> int:
    return len(list(root.glob("evaluation/*/records/*.json")))


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def kill(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        wait_for(lambda pid=pid: is_gone(pid), f"{pid} survived SIGKILL")  # type: ignore[misc]


def check(root: Path, undisturbed: run.Evaluation) -> None:
    """Committed, every item once, and the same scores."""
    (reference,) = artifact.references(str(root), "evaluation")
    made = run.Evaluation(f"{root}/{reference}", artifact.load(str(root), reference))
    assert artifact.verify(made.url) == []
    for task, prefix in (("arithmetic", "a"), ("held_out_bits_per_byte", "d")):
        found = made.items(task)
        assert Counter(found["id"].to_pylist()) == Counter({f"{prefix}{i}": 1 for i in range(120)})
        assert found["id"].to_pylist() == undisturbed.items(task)["id"].to_pylist()
    assert made.manifest.metadata["counters"] == undisturbed.manifest.metadata["counters"]
    bits, expected = (one.scores["held_out_bits_per_byte"]["value"] for one in (made, undisturbed))
    assert bits == pytest.approx(expected, rel=1e-6)
    assert made.items("arithmetic")["answer"].equals(undisturbed.items("arithmetic")["answer"])
    assert made.scores["arithmetic"] == undisturbed.scores["arithmetic"]


@pytest.mark.parametrize("victims", ["actor", "driver", "both"])
def test_kill_9_loses_and_doubles_nothing(
    victims: str, data: Path, undisturbed: run.Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    process = start(data, root)
    assert process.stdout is not None
    actors = json.loads(process.stdout.readline())
    wait_for(lambda: records(root) >= 3, "no shard was committed")
    wanted = {"actor": actors[:1], "driver": [process.pid], "both": [actors[0], process.pid]}[victims]
    kill(wanted)
    before = records(root)
    assert 3 <= before < 60, "it was killed in the middle"
    if victims != "actor":
        process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL
        assert artifact.references(str(root), "evaluation") == []
        for pid in actors:
            wait_for(lambda pid=pid: is_gone(pid), f"actor {pid} outlived its driver")  # type: ignore[misc]
    if victims == "driver":  # what is left may be answered by anybody
        monkeypatch.setattr(shards.of_task, "__defaults__", (SHARD_ITEMS,))
        run.evaluate(str(data / "model0"), suite(data), str(root))
    else:
        process = process if victims == "actor" else start(data, root)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    check(root, undisturbed)


@pytest.fixture
def no_ray_left() -> Iterator[None]:
    yield
    ray.shutdown()


def test_actors_stay_swap_weights_and_keep_what_was_tokenized(
    no_ray_left: None, data: Path, undisturbed: run.Evaluation, tmp_path: Path
) -> None:
    with cluster.pool(1, "cpu") as pool:
        pids = pool.pids()
        first = run.evaluate(str(data / "model0"), suite(data), str(tmp_path), answer=pool.answer)
        tokenized = pool.tokenized_requests()
        second = run.evaluate(str(data / "model1"), suite(data), str(tmp_path), answer=pool.answer)
        assert (pool.pids(), pool.tokenized_requests(), pool.replaced) == (pids, tokenized, 0) and tokenized[0] >= 240
    assert first.manifest.metadata["scores"] == undisturbed.manifest.metadata["scores"]
    alone = run.evaluate(str(data / "model1"), suite(data), str(tmp_path / "alone"))
    assert second.manifest.metadata["scores"] == alone.manifest.metadata["scores"] != first.manifest.metadata["scores"]
