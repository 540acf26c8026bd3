"""`triplane data quality`: what it prints and writes, and one clear sentence with exit code 2 for each mistake."""

import csv
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from jobs.cli import app

GOOD = "the committee measured the sample and published a careful account of what it found".split()
BAD = "click here to win cheap prize deals buy now subscribe today free best".split()
RECIPE = """
name: tiny
seed: 3
positives:
  label: hq
  sources: [{{name: good, documents: {folder}/good, sample: null}}]
negatives:
  label: cc
  sources: [{{name: bad, documents: {folder}/bad, sample: 80}}]
validation_fraction: 0.3
min_documents_per_class: 50
training: {{dim: 8, word_ngrams: 2, buckets: 1000, epochs: 5, learning_rate: 1.0, min_count: 1}}
"""


def triplane(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["data", "quality", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quality")
    for name, words in (("good", GOOD), ("bad", BAD)):
        (folder / name).mkdir()
        texts = [" ".join(words[(number * k + 3) % len(words)] for k in range(5 + number)) for number in range(90)]
        lines = [json.dumps({"id": f"{name}-{number}", "text": text}) for number, text in enumerate(texts)]
        (folder / name / "a.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "empty").mkdir()
    (folder / "empty" / "a.jsonl").write_text("")
    (folder / "tiny.yaml").write_text(RECIPE.format(folder=folder))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def root(recipe: Path) -> Path:
    return recipe.parent / "root"


@pytest.fixture(scope="module")
def trained(recipe: Path, root: Path) -> dict:
    done = triplane("train", recipe, "--root", root, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_train_reports_the_model_and_its_hash(trained: dict, root: Path) -> None:
    assert Path(trained["model"]).parent == root / trained["classifier"]
    assert Path(trained["model"]).name == f"model-{trained['sha256'][:12]}.bin"
    assert trained["sources"]["bad"] == {"read": 90, "sampled": 80, "used": 80}
    assert trained["evaluation"]["roc_auc"] > 0.99  # the classes share no word


def test_the_same_command_again_says_the_same(trained: dict, recipe: Path, root: Path) -> None:
    assert json.loads(triplane("train", recipe, "--root", root, "--json").stdout) == trained


def test_report_writes_a_page_that_needs_nothing_else(trained: dict, root: Path, tmp_path: Path) -> None:
    done = triplane("report", "tiny", "--root", root, "--out", tmp_path / "report")
    assert done.exit_code == 0, done.stderr
    assert f"sha256 {trained['sha256']}" in done.stdout and "ROC-AUC 1.0000" in done.stdout
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<svg") == 1 and trained["classifier"] in page
    assert "<script" not in page and "src=" not in page
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == trained
    with (tmp_path / "report" / "thresholds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["recall"]) for row in rows] == [row["recall"] for row in trained["evaluation"]["thresholds"]]
    assert len((tmp_path / "report" / "reliability.csv").read_text().splitlines()) == 11


def test_report_at_chosen_thresholds_and_of_a_version(trained: dict, root: Path) -> None:
    version = trained["classifier"].removeprefix("classifier/")
    done = triplane("report", version, "--root", root, "--threshold", 0.5, "--threshold", 0.25, "--json")
    assert [row["threshold"] for row in json.loads(done.stdout)["evaluation"]["thresholds"]] == [0.25, 0.5]


def test_without_matplotlib_one_sentence_and_exit_code_2(
    trained: dict, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "jobs.quality_page", raising=False)
    monkeypatch.delattr("jobs.quality_page", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = triplane("report", "tiny", "--root", root, "--out", tmp_path / "report")
    assert done.exit_code == 2 and "drawn with matplotlib, which is absent" in done.stderr
    assert triplane("report", "tiny", "--root", root).exit_code == 0


def test_dry_run_trains_nothing(trained: dict, recipe: Path, tmp_path: Path) -> None:
    done = triplane("train", recipe, "--root", tmp_path / "root", "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert plan["classifier"] == trained["classifier"] and sum(plan["documents"].values()) == 170
    text = triplane("train", recipe, "--root", tmp_path / "root", "--dry-run").stdout
    assert "# bad: 90 documents read, 80 sampled, 80 used" in text and not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("min_documents_per_class=85", "class cc has 80 usable documents, at least 85 are needed"),
        ("negatives.sources.0.documents={folder}/empty", "source bad at {folder}/empty has no documents"),
        ("negatives.sources.0.documents={folder}/absent", "{folder}/absent holds no document files"),
        ("positives={{sources: []}}", "key 'positives.label' is missing: add it"),
        ("negatives.sources=[]", "negatives.sources"),
        ("training.epoch=5", "unknown key 'training.epoch': did you mean 'epochs'?"),
        ("training.learning_rate=-1", "learning_rate"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    recipe: Path, tmp_path: Path, override: str, sentence: str
) -> None:
    done = triplane("train", recipe, override.format(folder=recipe.parent), "--root", tmp_path / "root")
    assert done.exit_code == 2 and sentence.format(folder=recipe.parent) in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "root").exists()


def test_a_classifier_that_is_not_there(trained: dict, root: Path) -> None:
    done = triplane("report", "tini", "--root", root)
    assert done.exit_code == 1 and "did you mean tiny?" in done.stderr
