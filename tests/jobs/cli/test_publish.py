"""`triplane publish` as a user runs it."""

import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from jobs.cli import app
from trainplane import run as runs
from triplane import vocabulary


def test_publish_writes_a_folder_and_prints_commands(root: str, make_recipe: Callable, tmp_path: Path) -> None:
    runs.train(make_recipe(), root)
    (tmp_path / "words.json").write_bytes(vocabulary.train(["some words"] * 10, 300))
    arguments = [
        "publish",
        "run/tiny",
        "--root",
        root,
        "--out",
        str(tmp_path / "out"),
        "--repository",
        "me/tiny",
        "--stage",
        "stage1",
    ]
    planned = CliRunner().invoke(app, [*arguments, "--every-checkpoint", "--dry-run", "--json"])
    assert planned.exit_code == 0, planned.output
    assert [one["step"] for one in json.loads(planned.stdout)["publish"]] == [4, 8, 12] and not (
        tmp_path / "out"
    ).exists()
    made = CliRunner().invoke(app, [*arguments, "--tokenizer", str(tmp_path / "words.json")])
    assert made.exit_code == 0, made.output
    assert made.stdout.splitlines()[1:] == [
        "hf repos create me/tiny --exist-ok",
        "hf repos branch create me/tiny stage1-step12-tokens1B --exist-ok",
        f"hf upload me/tiny {tmp_path}/out . --revision stage1-step12-tokens1B",
    ]
    wrong = CliRunner().invoke(app, [*arguments[:-1], "stage9"])
    assert wrong.exit_code == 2 and "stage9" in wrong.stderr
