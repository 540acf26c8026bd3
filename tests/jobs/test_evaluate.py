"""The recipe of a submitted evaluation: strict, and the same as the options of `triplane eval run`."""

import inspect
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs import evaluate
from jobs.cli import eval as evaluation
from triplane.errors import UsageError


def written(folder: Path, text: str) -> Path:
    path = folder / "evaluation.yaml"
    path.write_text(text)
    return path


def test_a_recipe_has_the_options_of_eval_run(tmp_path: Path) -> None:
    recipe = evaluate.load(
        written(tmp_path, "model: run/demo\nsuite: arithmetic\ndata: [a, b]\nworkers: 2\n"), ["limit=3"]
    )
    given = evaluate.options(recipe)
    assert given == {
        "model": "run/demo", "suite": "arithmetic", "limit": 3, "data": ["a", "b"], "tokenizer": None, "device": None, "workers": 2,
        "overrides": [], "allow_contaminated": False, "require_clean": False,
    }  # fmt: skip
    assert {*given, "root", "dry_run", "as_json"} == set(inspect.signature(evaluation.run).parameters)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: m\nsuite: arithmetic\nlimits: 3\n", "evaluation.yaml:3: unknown key 'limits': did you mean 'limit'?"),
        ("model: m\n", "key 'suite' is missing"),
        ("model: m\nsuite: arithmetic\nlimit: 0\n", "evaluation.yaml:3: 'limit' is 0"),
        ("model: m\nsuite: arithmetic\nworkers: two\n", "evaluation.yaml:3: 'workers' is"),
        ("model: m\nsuite: arithmetc\n", "evaluation.yaml: "),
        ("model: m\nsuite: arithmetic\noverrides: [boolq.limit=3]\n", "is not TASK.KEY=VALUE for a task of this suite"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        evaluate.load(written(tmp_path, text))
    assert words in str(caught.value)


def test_the_command_says_what_eval_run_says(tmp_path: Path) -> None:
    recipe = written(tmp_path, f"model: {tmp_path}/nothing\nsuite: arithmetic\n")
    ours = CliRunner().invoke(evaluate.app, [str(recipe), "--root", str(tmp_path / "root"), "--dry-run"])
    theirs = CliRunner().invoke(
        evaluation.app,
        [
            "run",
            "--model",
            f"{tmp_path}/nothing",
            "--suite",
            "arithmetic",
            "--root",
            str(tmp_path / "root"),
            "--dry-run",
        ],
    )
    assert (ours.exit_code, ours.output) == (theirs.exit_code, theirs.output)
    assert ours.exit_code == 1
    assert f"{tmp_path}/nothing" in ours.output
