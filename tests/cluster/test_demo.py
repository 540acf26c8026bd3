"""The demo, whole and unchanged, on a real S3 server; and the control that shows what its arithmetic claim rests on."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dataplane.recipe import MixRecipe
from jobs import demo
from jobs.demo_claims import accuracy_rise
from trainplane import run as runs
from triplane import artifact, recipe, storage
from triplane.progress import Progress

TRIPLANE = str(Path(sys.executable).parent / "triplane")


def run_demo(root: str) -> dict[str, Any]:
    done = subprocess.run([TRIPLANE, "demo", "--root", root, "--json"], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"report: {root}/report.html" in done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def root(s3_endpoint: str) -> str:
    import boto3

    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket="demo")
    return "s3://demo/root"


@pytest.fixture(scope="module")
def first(root: str) -> dict[str, Any]:
    return run_demo(root)


def test_every_claim_holds(first: dict[str, Any]) -> None:
    assert [claim["text"] for claim in first["claims"] if not claim["holds"]] == []
    assert len(first["claims"]) == 4
    assert [score["checkpoint"] for score in first["scores"]] == ["pretrained", "order 1", "order 2", "order 3", "soup"]
    assert {score["items"] for score in first["scores"]} == {256}


def test_the_report_is_one_self_contained_page(first: dict[str, Any], root: str) -> None:
    page = storage.read(f"{root}/report.html").decode()
    assert page.startswith("<!doctype html>") and page.count("<svg") >= 4
    assert re.findall(r'(?:src|href)="(?!#)[^"]*"|url\((?!#)', page) == []


def test_every_artifact_verifies(first: dict[str, Any], root: str) -> None:
    by_kind = {kind: artifact.references(root, kind) for kind in artifact.KINDS}
    found = {kind: len(references) for kind, references in by_kind.items() if references}
    made = {"corpus": 1, "documents": 3, "tokenizer": 1, "attributes": 3, "selection": 1, "tokens": 3, "heldout": 3}
    assert found == made | {"mix": 2, "run": 4, "checkpoint": 1, "evaluation": 5}
    urls = [artifact.artifact_url(root, reference) for references in by_kind.values() for reference in references]
    assert [problem for url in urls for problem in artifact.verify(url)] == []


def test_the_same_command_again_makes_nothing_new(first: dict[str, Any], root: str) -> None:
    before = storage.list_names(root)
    second = run_demo(root)
    assert storage.list_names(root) == before
    assert [stage["resumed"] for stage in first["stages"]] == [False] * 7
    assert [stage["resumed"] for stage in second["stages"]] == [True] * 7
    assert {**second, "stages": None} == {**first, "stages": None}


def test_without_the_math_source_nothing_rises(first: dict[str, Any], root: str, tmp_path: Path) -> None:
    """The control: the same anneal on a mix without arithmetic. What the demo claims comes from the source, not from annealing."""
    control = subprocess.run([sys.executable, __file__, root], capture_output=True, text=True, timeout=600)
    assert control.returncode == 0, control.stderr[-4000:]
    rise = json.loads(control.stdout.splitlines()[-1])
    assert rise["control"]["low"] <= 0
    assert rise["order 1"]["low"] > 0


def measure_control(root: str) -> dict[str, dict[str, float]]:
    """Anneals on code and prose alone from the demo's pretrained checkpoint -> rise in accuracy, beside that of the first order."""
    with Progress() as progress:
        before = frozenset(reference for kind in artifact.KINDS for reference in artifact.references(root, kind))
        walk = demo.Demo(root, 0, progress, before)
        corpus, tokenizer = demo.make_corpus(walk), artifact.load(root, "tokenizer/demo")
        control = recipe.parse(
            "{name: demo-control, tokens: 460_800, shares: {code: 0.4, prose: 0.6}}", MixRecipe, "control"
        )
        built = demo.build.run(
            demo.build_recipe(walk, corpus, tokenizer).model_copy(update={"mixes": (control,)}), root, progress
        )
        pretrained = artifact.load(root, "run/demo-pretrain")
        made = demo.anneal_recipe(built.mixes["demo-control"], pretrained.reference, 0).model_copy(
            update={"name": "demo-control"}
        )
        run = demo.cluster.train(made, root, progress=progress)
        suite = demo.demo_suite(demo.items_url(walk, corpus), list(built.heldout.values()))
        checkpoints = {
            "pretrained": storage.join(
                artifact.artifact_url(root, pretrained.reference), pretrained.metadata["checkpoint"]
            ),
            "control": run.checkpoint_url,
            "order 1": runs.result(root, "run/demo-anneal-1").checkpoint_url,
        }
        scored = {
            name: demo.scored(name, demo.evaluation.evaluate(url, suite, root)) for name, url in checkpoints.items()
        }
    rises = {name: accuracy_rise(one, scored["pretrained"]) for name, one in scored.items()}
    return {name: {"mean": rise.mean, "low": rise.low, "high": rise.high} for name, rise in rises.items()}


if __name__ == "__main__":
    print(json.dumps(measure_control(sys.argv[1])))
