"""`triplane verify` and `triplane gc`: what they print, their JSON and their exit codes."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from triplane import artifact, artifact_gc, storage


def made(root: str) -> artifact.Draft:
    draft = artifact.begin(root, "documents", "web", inputs={}, recipe={}, stage_versions={})
    draft.record("s", [draft.put_bytes(b"text", "part-00000", ".bin")], {})
    draft.commit({})
    return draft


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.getfixturevalue("s3_root")) if request.param == "s3" else str(tmp_path)


def test_verify_passes_and_fails(root: str) -> None:
    draft = made(root)
    good = run("verify", "documents/web", "--root", root)
    assert (good.exit_code, good.stdout) == (0, f"{draft.url}: every byte is as its manifest says\n")
    assert run("verify", draft.url).exit_code == 0

    (file,) = artifact.load_url(draft.url).files
    storage.put(storage.join(draft.url, file.name), b"tExt")
    bad = run("verify", draft.reference, "--root", root)
    assert bad.exit_code == 1 and bad.stdout.startswith(f"{file.name} has sha256 ")
    report = json.loads(run("verify", draft.reference, "--root", root, "--json").stdout)
    assert report["artifact"] == draft.url and len(report["problems"]) == 1


def test_verify_says_what_is_wrong_with_the_name(tmp_path: Path) -> None:
    made(str(tmp_path))
    missing = run("verify", "documents/wab", "--root", tmp_path)
    assert missing.exit_code == 1 and "did you mean web?" in missing.stderr
    assert run("verify", "web", "--root", tmp_path).exit_code == 2
    assert "does not exist" in run("verify", tmp_path / "nothing").stdout


def test_gc_says_removes_and_spares(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = made(root)
    lost = draft.put_bytes(b"lost", "part-00001", ".bin")
    assert run("gc", "--root", root).stdout == "0 removed\n"  # younger than a day

    two_hours_on = time.time() + 7200
    monkeypatch.setattr(artifact_gc.time, "time", lambda: two_hours_on)
    dry = run("gc", "--root", root, "--older-than", "1h", "--dry-run")
    assert (dry.exit_code, dry.stdout) == (0, f"{draft.reference}/{lost.name}\n1 would be removed\n")
    report = json.loads(run("gc", "--root", root, "--older-than", "1h", "--json").stdout)
    assert report == {"root": root, "dry_run": False, "removed": [f"{draft.reference}/{lost.name}"]}
    assert run("gc", "--root", root, "--older-than", "1h").stdout == "0 removed\n"
    assert artifact.verify(draft.url) == []


def test_gc_needs_a_unit_it_knows(tmp_path: Path) -> None:
    wrong = run("gc", "--root", tmp_path, "--older-than", "1 fortnight")
    assert wrong.exit_code == 2 and "is no number of seconds" in wrong.stderr


def test_verify_of_a_run_reads_its_checkpoints(root: str) -> None:
    run_draft = artifact.begin(root, "run", "small", inputs={}, recipe={}, stage_versions={})
    url = storage.join(run_draft.url, "checkpoints", "tokens-000000000000008")
    saved = artifact.begin(root, "checkpoint", "small", inputs={}, recipe={}, stage_versions={}, url=url)
    entry = saved.put_bytes(b"weights", "model/all", ".safetensors")
    saved.record("checkpoint", [entry], {})
    saved.commit({})
    run_draft.commit({"checkpoint": "checkpoints/tokens-000000000000008"})
    assert run("verify", "run/small", "--root", root).exit_code == 0
    storage.put(storage.join(url, entry.name), b"wEights")
    bad = run("verify", "run/small", "--root", root)
    assert bad.exit_code == 1 and "checkpoints/tokens-000000000000008: model/all-" in bad.stdout
