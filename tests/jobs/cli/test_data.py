"""`triplane data`: what it prints, and one clear sentence with the right exit code for each mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from jobs.cli import app
from triplane import vocabulary

RECIPE = """
name: cli
seed: 5
tokenizer: {folder}/tokenizer.json
sequence_length_tokens: 8
shard_tokens: 1M
held_out_fraction: 0.0
sources:
  - name: notes
    documents: {folder}/notes
    format: dolma
    licence: CC0-1.0
    taggers: [lengths, text_hash, ngram_repetition]
    rules: [{{reason: short, column: words, op: "<", value: 5}}]
    exact_dedup: true
mixes:
  - {{name: cli-mix, tokens: 64, shares: {{notes: 1.0}}}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    texts = [f"note {number} about water and stone" for number in range(20)] + [
        "too short",
        "note 3 about water and stone",
    ]
    (folder / "notes").mkdir()
    lines = [json.dumps({"id": str(number), "text": text}) for number, text in enumerate(texts)]
    (folder / "notes" / "part-00000.jsonl").write_text("\n".join([*lines, "broken"]) + "\n")
    (folder / "tokenizer.json").write_bytes(vocabulary.train(texts, 300))
    (folder / "cli.yaml").write_text(RECIPE.format(folder=folder))
    return folder / "cli.yaml"


def triplane(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def built(recipe: Path) -> tuple[Path, dict]:
    """A build by the real command in a process of its own."""
    root = recipe.parent / "root"
    environment = os.environ | {"TRIPLANE_SPARK_MASTER": "local[2]", "TRIPLANE_LOG": str(recipe.parent / "log.jsonl")}
    command = [sys.executable, "-m", "jobs.cli", "data", "build", str(recipe), "--root", str(root), "--json"]
    command[1:3] = ["-c", "from jobs.cli import app; app()"]
    done = subprocess.run(command, cwd=recipe.parent, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in recipe.parent.iterdir()) == [
        "cli.yaml",
        "log.jsonl",
        "notes",
        "root",
        "tokenizer.json",
    ]
    assert [line.split(":")[0] for line in done.stderr.splitlines() if ", took " in line] == [
        "ingest",
        "tag",
        "select",
        "tokenize",
        "shuffle",
    ]
    return root, json.loads(done.stdout)


def test_build_reports_its_artifacts_and_the_funnel(built: tuple[Path, dict]) -> None:
    root, result = built
    fates = {(row["fate"], row["reason"]): row["documents"] for row in result["funnel"]}
    assert fates == {
        ("in", ""): 23,
        ("kept", ""): 20,
        ("dropped", "short"): 1,
        ("dropped", "exact_duplicate"): 1,
        ("quarantined", "malformed_json"): 1,
    }
    assert result["mix_tokens"] == {"cli-mix": {"notes": 64}}
    for reference in (result["selection"], result["tokens"]["notes"], result["mixes"]["cli-mix"]):
        assert (root / reference / "manifest.json").is_file()


def test_funnel_as_json_and_as_a_table(built: tuple[Path, dict]) -> None:
    root, result = built
    report = json.loads(triplane("data", "funnel", "--root", root, "--json").stdout)
    assert report["rows"] == result["funnel"] and report["selection"] == result["selection"]
    assert [row["documents"] for row in report["all"]] == [row["documents"] for row in report["rows"]]
    version = result["selection"].removeprefix("selection/")
    table = triplane("data", "funnel", "--root", root, "--name", version).stdout
    assert "dropped: exact_duplicate" in table and table.startswith(result["selection"])


def test_funnel_is_drawn(built: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = triplane("data", "funnel", "--root", built[0], "--figure", tmp_path / "funnel.svg")
    assert done.exit_code == 0 and "exact duplicate" in (tmp_path / "funnel.svg").read_text()
    wrong = triplane("data", "funnel", "--root", built[0], "--figure", tmp_path / "funnel.png")
    assert wrong.exit_code == 2 and "is no SVG file: name it FILE.svg" in wrong.stderr
    monkeypatch.setitem(sys.modules, "jobs.funnel_figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "jobs.funnel_figure")
    monkeypatch.delattr(sys.modules["jobs"], "funnel_figure", raising=False)
    absent = triplane("data", "funnel", "--root", built[0], "--figure", tmp_path / "funnel.svg")
    assert absent.exit_code == 2 and "drawing needs matplotlib, which is not installed" in absent.stderr


def test_try_shows_what_a_rule_does(recipe: Path) -> None:
    found = json.loads(triplane("data", "try", "short", "--recipe", recipe, "--json").stdout)
    assert (found["source"], found["sampled"], found["kept"], found["dropped"]) == ("notes", 22, 21, {"short": 1})
    assert found["dropped_documents"][0]["excerpt"] == "too short" and len(found["kept_documents"]) == 5
    text = triplane("data", "try", "words < 5", "--documents", recipe.parent / "notes", "--show", 1).stdout
    assert (
        "22 of 22 documents seen; kept 21, dropped 1 dropped" in text
        and "dropped  part-00000.jsonl:21 20  (words 2)" in text
    )
    for arguments, sentence in (
        (["words < 5"], "give either --recipe or --documents"),
        (["wrods < 5", "--recipe", recipe], "column wrods is unknown: did you mean words?"),
        (["short", "--recipe", recipe, "--source", "nots"], "source nots is unknown: did you mean notes?"),
    ):
        wrong = triplane("data", "try", *arguments)
        assert wrong.exit_code == 2 and sentence in wrong.stderr


def test_diff_of_a_build_with_itself_is_nothing(built: tuple[Path, dict]) -> None:
    name = built[1]["selection"]
    same = json.loads(triplane("data", "diff", name, "cli", "--root", built[0], "--json").stdout)
    assert (same["first"], same["second"], same["unchanged"], same["changes"]) == (name, name, 23, [])
    missing = triplane("data", "diff", name, "cil", "--root", built[0])
    assert missing.exit_code == 1 and "cil" in missing.stderr


def test_the_same_command_again_is_quick_and_says_the_same(built: tuple[Path, dict], recipe: Path) -> None:
    again = triplane("data", "build", recipe, "--root", built[0], "--json")
    assert again.exit_code == 0 and json.loads(again.stdout) == built[1] | {"stages": []}  # nothing ran


def test_dry_run_prints_the_resolved_recipe_and_writes_nothing(recipe: Path, tmp_path: Path) -> None:
    plan = json.loads(
        triplane("data", "build", recipe, "seed=6", "--root", tmp_path / "root", "--dry-run", "--json").stdout
    )
    assert plan["recipe"]["seed"] == 6 and plan["recipe"]["mixes"][0]["max_repetitions"] == 4.0
    stored = (recipe.parent / "notes" / "part-00000.jsonl").stat().st_size
    assert plan["sources"]["notes"] == {
        "files": 1,
        "shards": 1,
        "stored_bytes": stored,
        "estimated_tokens": round(stored * 0.95 / 4.2),
    }
    text = triplane("data", "build", recipe, "--root", tmp_path / "root", "--dry-run").stdout
    assert "# notes: 1 files, 1 shards, " in text and not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("override", "code", "sentence"),
    [
        ("sede=6", 2, "unknown key 'sede': did you mean 'seed'?"),
        ("tokenizer=/absent/t.json", 2, "no tokenizer at /absent/t.json"),
        ("sources.0.documents=/absent", 2, "/absent holds no document files"),
        ("sources.0.rules.0.column=wrods", 2, "column wrods is unknown: did you mean words?"),
        ("mixes.0.shares={notes: 0.5}", 2, "mix cli-mix: shares sum to 0.5: make them sum to 1"),
        ("sources.0.format=parquet", 2, "format"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    recipe: Path, tmp_path: Path, override: str, code: int, sentence: str
) -> None:
    done = triplane("data", "build", recipe, override, "--root", tmp_path / "root")
    assert done.exit_code == code and sentence in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "root").exists()


def test_a_missing_recipe_and_a_root_without_builds(recipe: Path, tmp_path: Path) -> None:
    done = triplane("data", "build", recipe.with_name("cil.yaml"), "--root", tmp_path)
    assert done.exit_code == 2 and f"did you mean {recipe}" in done.stderr
    done = triplane("data", "funnel", "--root", tmp_path)
    assert done.exit_code == 1 and "holds no build: run `triplane data build RECIPE" in done.stderr


def test_without_java_one_sentence_and_exit_code_1(recipe: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "JAVA_HOME"} | {"PATH": str(tmp_path)}
    command = [
        sys.executable,
        "-c",
        "from jobs.cli import app; app()",
        "data",
        "build",
        str(recipe),
        "--root",
        str(tmp_path / "root"),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr == "error: Spark needs Java 17 or newer and none was found: install one or set JAVA_HOME\n"
