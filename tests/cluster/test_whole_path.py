"""The whole path on a cluster: a build on two Spark workers, training submitted to Ray on two nodes, a watcher that scores each checkpoint; all
that they share is an S3 server. And what is left behind, searched for the credentials that all of it used.

The commands are those of docs/guide/cluster.md.
"""

import gzip
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import zstandard

from jobs.local_cluster import processes, record
from tests.jobs.local_cluster import canaries, listening
from tests.training_fixtures import RECIPE, merged
from trainplane import run as runs
from triplane import artifact, storage, vocabulary
from triplane.tokenizer import Tokenizer

TRIPLANE = str(Path(sys.executable).parent / "triplane")
ROOT = "s3://triplane/root"
CANARIES = {
    "AWS_ACCESS_KEY_ID": "AKIACANARY7Q2WXMPLE4",
    "AWS_SECRET_ACCESS_KEY": "canary-Zk3/vT9+qLw0pXs8RmYb2NcHd6FgJeUa1o",
    "AWS_SESSION_TOKEN": "canary-session-IQoJb3JpZ2luX2VjEPz7mQ4x",
}
SOURCES = ("notes", "sums")
SHARDS, DOCUMENTS = 4, 60
WORDS = "water stone river light count number seven nine tree bird cloud house".split()
CHECKPOINTS = (3072, 6144, 9216)  # tokens seen


def document(source: str, rng: random.Random) -> str:
    if source == "notes":
        return " ".join(rng.choice(WORDS) for _ in range(40))
    pairs = [(rng.randrange(20), rng.randrange(20)) for _ in range(8)]
    return " ".join(f"{a} + {b} = {a + b}." for a, b in pairs)


def store_documents(root: str) -> Tokenizer:
    """Eight shards of documents, and a vocabulary of them."""
    rng, texts = random.Random(0), []
    for source in SOURCES:
        for shard in range(SHARDS):
            rows = [
                {"id": f"{source}-{shard}-{n}", "text": document(source, rng), "source": source}
                for n in range(DOCUMENTS)
            ]
            texts += [row["text"] for row in rows]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            storage.put(f"{root}/documents/{source}/part-{shard:05d}.jsonl", lines.encode())
    storage.put(f"{root}/tokenizer.json", vocabulary.train(texts, 400))
    return Tokenizer.load(f"{root}/tokenizer.json")


def build_recipe() -> dict[str, Any]:
    taggers = {
        "taggers": ["lengths", "text_hash", "ngram_repetition"],
        "rules": ["ngram_repetition"],
        "exact_dedup": True,
    }
    sources = [
        {"name": name, "documents": f"{ROOT}/documents/{name}", "format": "dolma", "licence": "CC0-1.0", **taggers}
        for name in SOURCES
    ]
    return {
        "name": "whole",
        "seed": 1,
        "tokenizer": f"{ROOT}/tokenizer.json",
        "sequence_length_tokens": 48,
        "shard_tokens": 1_000_000,
        "held_out_fraction": 0.1,
        "sources": sources,
        "mixes": [{"name": "whole", "tokens": 12_000, "shares": dict.fromkeys(SOURCES, 0.5)}],
    }


def run_recipe(tokenizer: Tokenizer) -> dict[str, Any]:
    changes = {
        "name": "whole",
        "data.mix": "mix/whole",
        "model.vocab_size": -(-tokenizer.vocab_size // 64) * 64,
        "model.eos_token_id": tokenizer.eos_id,
        "model.pad_token_id": tokenizer.eos_id,
        "stop_tokens": CHECKPOINTS[-1],
        "runtime.checkpoint_every_tokens": CHECKPOINTS[0],
        "runtime.num_workers": 2,
    }
    return merged(RECIPE, changes)


@dataclass
class Walk:
    """What the commands were given and what they said."""

    folder: Path
    environment: dict[str, str]
    said: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)
    beyond_loopback: list[listening.Listener] = field(default_factory=list)
    commands: set[str] = field(default_factory=set)

    def triplane(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [TRIPLANE, *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=400, env=self.environment, cwd=self.folder
        )
        self.said[name] = done
        assert done.returncode == 0, f"{name}: {done.stderr[-6000:]}"
        return done

    @property
    def cluster(self) -> record.Record:
        standing = record.read(self.folder / "cluster")
        assert standing is not None
        return standing

    def look_around(self) -> None:
        """Notes who of the cluster listens beyond loopback at this moment, and every command line."""
        pids = processes.members(self.cluster.id, self.cluster.processes)
        self.beyond_loopback += [one for one in listening.of(list(pids)) if not one.is_loopback]
        for pid in pids:
            try:
                self.commands.add(Path(f"/proc/{pid}/cmdline").read_text())
            except OSError:
                continue


def exported(text: str) -> dict[str, str]:
    """What a shell makes of the lines of `triplane cluster env`, of those without a default."""
    lines = [line.removeprefix("export ").partition("=") for line in text.splitlines() if ":-" not in line]
    return {name: value.strip("'") for name, _, value in lines}


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """The whole path, walked once."""
    folder = tmp_path_factory.mktemp("whole")
    own = {"XDG_STATE_HOME": "state", "XDG_CACHE_HOME": "cache", "TRIPLANE_LOG": "log.jsonl"}
    base = {**os.environ, **CANARIES, **{name: str(folder / value) for name, value in own.items()}}
    path = Walk(folder, base)
    with pytest.MonkeyPatch.context() as patch:
        try:
            path.triplane("up", "cluster", "up", "--workers", "2")
            use = {**CANARIES, **exported(path.triplane("env", "cluster", "env").stdout)}
            path.environment = {**base, **use}
            for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", *CANARIES):
                patch.setenv(name, use[name])
            walk(path)
            yield path
        finally:
            subprocess.run([TRIPLANE, "cluster", "down"], cwd=folder, check=True, capture_output=True, timeout=100)


def walk(path: Walk) -> None:
    tokenizer = store_documents(ROOT)
    for name, recipe in (("build", build_recipe()), ("train", run_recipe(tokenizer))):
        (path.folder / f"{name}.yaml").write_text(json.dumps(recipe))
    where = ["--root", ROOT, "--to"]
    path.triplane("data", "submit", "data", "build.yaml", *where, path.cluster.spark)
    path.triplane("train", "submit", "train", "train.yaml", *where, path.cluster.ray, "--name", "whole", "--no-wait")
    end = time.monotonic() + 120
    while not storage.folders(f"{ROOT}/run"):
        path.look_around()
        assert time.monotonic() < end, path.triplane("logs", "jobs", "logs", "whole", "--to", path.cluster.ray).stdout
        time.sleep(0.5)
    path.look_around()
    path.triplane(
        "watch",
        "eval",
        "watch",
        "whole",
        "--suite",
        "held_out_bits_per_byte",
        "--root",
        ROOT,
        "--interval",
        "1",
        "--json",
    )
    path.triplane("logs", "jobs", "logs", "whole", "--follow", "--to", path.cluster.ray)
    path.triplane("jobs", "jobs", "list", "--to", path.cluster.ray, "--json")


def task_ends(path: Walk) -> list[dict[str, Any]]:
    """Spark's own record of every task."""
    events = [file for file in (path.folder / "cluster/logs/spark-events").rglob("events_*") if file.is_file()]
    lines = [json.loads(line) for file in events for line in file.read_text().splitlines()]
    return [event for event in lines if event["Event"] == "SparkListenerTaskEnd"]


def test_the_build_ran_on_both_spark_workers(walked: Walk) -> None:
    ends = task_ends(walked)
    assert {event["Task Info"]["Executor ID"] for event in ends} == {"0", "1"}
    assert {event["Task End Reason"]["Reason"] for event in ends} == {"Success"}
    built = artifact.references(ROOT, "mix")
    assert [reference.split("@")[0] for reference in built] == ["mix/whole"]
    rows = json.loads(walked.triplane("funnel", "data", "funnel", "--root", ROOT, "--json").stdout)
    rows = rows["rows"] if isinstance(rows, dict) else rows
    for source in SOURCES:
        of_source = [row for row in rows if row["source"] == source]
        into = sum(row["documents"] for row in of_source if row["fate"] == "in")
        assert into == sum(row["documents"] for row in of_source if row["fate"] != "in") == SHARDS * DOCUMENTS


def test_the_run_trained_on_both_ray_nodes_and_finished(walked: Walk) -> None:
    (job,) = json.loads(walked.said["jobs"].stdout)
    assert (job["id"], job["status"], job["exit_code"]) == ("whole", "succeeded", 0)
    result = runs.result(ROOT, "run/whole")
    assert [row["step"] for row in result.ledger] == list(range(1, 25))
    assert {row["world_size"] for row in result.ledger} == {2}
    assert result.ledger[-1]["loss"] < result.ledger[0]["loss"] - 1
    assert result.checkpoint_url in walked.said["logs"].stdout


def test_the_watcher_scored_every_checkpoint_and_they_become_better(walked: Walk) -> None:
    said = json.loads(walked.said["watch"].stdout)
    assert said["finished"] and said["checkpoints"] == len(CHECKPOINTS) and said["lag_tokens"] == 0
    assert [one["tokens"] for one in said["new"]] == list(CHECKPOINTS)
    bits = [one["scores"]["held_out_bits_per_byte"]["value"] for one in said["new"]]
    assert bits[0] > bits[1] > bits[2] > 0
    assert len(artifact.references(ROOT, "evaluation")) == len(CHECKPOINTS) and storage.exists(said["report"])


def test_every_artifact_verifies(walked: Walk) -> None:
    urls = [artifact.artifact_url(ROOT, one) for kind in artifact.KINDS for one in artifact.references(ROOT, kind)]
    assert len(urls) > 12
    assert [problem for url in urls for problem in artifact.verify(url)] == []


def produced(path: Walk) -> Iterator[tuple[str, bytes]]:
    """Everything that the path has left: files of the cluster and of the commands, objects, what was printed, what Ray tells of its jobs."""
    secret = [path.folder / "cluster" / "ray-token", path.folder / "cluster" / "spark-conf" / "spark-defaults.conf"]
    yield from canaries.files(path.folder, but=secret)
    yield from canaries.objects(ROOT)
    for name, done in path.said.items():
        yield f"output of {name}", (done.stdout + done.stderr).encode()
    yield from ((f"command {command[:40]!r}", command.encode()) for command in path.commands)
    headers = {"Authorization": f"Bearer {secret[0].read_text()}"}
    for name in ("api/jobs/", "nodes?view=summary", "api/v0/tasks?detail=true", "api/v0/actors?detail=true"):
        request = urllib.request.Request(f"{path.cluster.ray}/{name}", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            yield name, answer.read()


def test_no_credential_is_left_anywhere(walked: Walk) -> None:
    """Not the ones all of it used, nor the cluster's own beside the files that are for them."""
    conf = dict(
        line.split(" ", 1)
        for line in (walked.folder / "cluster/spark-conf/spark-defaults.conf").read_text().splitlines()
    )
    own = {
        "Ray's token": (walked.folder / "cluster/ray-token").read_text(),
        "Spark's secret": conf["spark.authenticate.secret"],
    }
    contents = list(produced(walked))
    kinds = (
        "cluster.json",
        ".zst",
        ".parquet",
        "spark-master.log",
        "events_1",
        "raylet",
        "job-driver-whole",
        "log.jsonl",
        "state/",
        "api/jobs/",
    )
    assert [kind for kind in kinds if not any(kind in where for where, _ in contents)] == [] and len(contents) > 150
    assert canaries.found_in(contents, CANARIES | own) == []


@pytest.mark.parametrize("wrap", [lambda raw: raw, gzip.compress, zstandard.ZstdCompressor().compress])
def test_the_search_finds_one_that_is_planted(walked: Walk, wrap: Any) -> None:
    """The control: in a log, and in an object, compressed or not."""
    secret = CANARIES["AWS_SECRET_ACCESS_KEY"]
    planted = walked.folder / "cluster" / "logs" / "planted"
    planted.write_bytes(wrap(b"x" * 99 + secret.encode() + b"x" * 99))
    storage.put(f"{ROOT}/planted", planted.read_bytes())
    try:
        assert canaries.found_in(produced(walked), CANARIES) == [
            f"{planted}: AWS_SECRET_ACCESS_KEY",
            f"{ROOT}/planted: AWS_SECRET_ACCESS_KEY",
        ]
    finally:
        planted.unlink()
        storage.delete(f"{ROOT}/planted")


def test_nothing_listened_beyond_loopback_while_it_worked(walked: Walk) -> None:
    assert any("job_supervisor" in one or "ray::" in one for one in walked.commands)
    assert any("jobs.train" in one for one in walked.commands)
    assert any("RayTrainWorker" in one for one in walked.commands)
    assert walked.beyond_loopback == []


def test_one_that_listens_beyond_loopback_is_seen(walked: Walk) -> None:
    """The control: a store as PyTorch makes it, in a process of the cluster's."""
    store = "dist.TCPStore('127.0.0.1', 0, 1, True, wait_for_workers=False)"
    program = f"import torch.distributed as dist; store = {store}; print(store.port, flush=True); input()"
    environment = os.environ | {processes.MARK: walked.cluster.id}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as planted:
        try:
            assert planted.stdout is not None
            port = int(planted.stdout.readline())
            seen = Walk(walked.folder, walked.environment)
            seen.look_around()
        finally:
            planted.kill()
    assert [(one.port, one.pid) for one in seen.beyond_loopback] == [(port, planted.pid)]
