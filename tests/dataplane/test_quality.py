"""Quality classifiers on real documents: better than chance, at chance when labels are shuffled, scored as the tagger and the library do."""

import dataclasses
import random
from pathlib import Path

import fasttext
import numpy as np
import pytest

from dataplane import calibration, documents, fasttext_training, labelled, quality
from dataplane.taggers import fasttext as tagger
from triplane import artifact, hashing, recipe
from triplane.errors import Refused, UsageError

RECIPE = """
name: edited
seed: 1124
positives:
  label: hq
  sources:
    - {{name: books, documents: {corpus}/books/part-00000.jsonl.zst, sample: 30}}
    - {{name: web, documents: {corpus}/web, sample: 200}}
negatives:
  label: cc
  sources:
    - {{name: web_noisy, documents: {corpus}/web_noisy, sample: 160}}
    - {{name: defects, documents: {corpus}/defects/part-00000.jsonl.zst, sample: 90}}
validation_fraction: 0.4
min_documents_per_class: 100
training: {{dim: 8, word_ngrams: 2, buckets: 20_000, epochs: 8, learning_rate: 1.0, min_count: 1}}
"""
RECIPES = Path(__file__).parents[2] / "jobs" / "recipes" / "quality"


def parsed(shared: Path, *overrides: str) -> quality.QualityRecipe:
    text = RECIPE.format(corpus=shared / "data" / "corpus")
    return recipe.parse(text, quality.QualityRecipe, "edited.yaml", overrides)


@pytest.fixture(scope="module")
def examples(shared: Path) -> labelled.Examples:
    return quality.gather(parsed(shared))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def classifier(shared: Path, root: str) -> quality.Classifier:
    return quality.train(parsed(shared), root)


def test_edited_text_is_told_from_noise(classifier: quality.Classifier) -> None:
    report = classifier.evaluation
    assert report["positives"] > 70 and report["negatives"] > 70
    assert report["roc_auc"] > 0.8  # 0.874 (standard error 0.027) when this was written
    assert report["roc_auc"] - 5 * report["roc_auc_standard_error"] > 0.5
    assert report["average_precision"] > 0.75
    assert report["brier"] < 0.2  # always saying one half gives 0.25
    recalls = [row["recall"] for row in report["thresholds"]]
    assert recalls == sorted(recalls, reverse=True)


def test_shuffled_labels_are_at_chance(examples: labelled.Examples, shared: Path, tmp_path: Path) -> None:
    labels = [example.label for example in examples.examples]
    random.Random(5).shuffle(labels)
    shuffled = labelled.Examples(
        tuple(dataclasses.replace(e, label=label) for e, label in zip(examples.examples, labels, strict=True)), {}
    )
    lines = (labelled.training_line(example) for example in shuffled.side(is_held_out=False))
    path = fasttext_training.train(lines, quality.settings(parsed(shared).training), tmp_path)
    held_out = shuffled.side(is_held_out=True)
    scores = quality.score(str(path), hashing.sha256_file(path), "hq", [example.line for example in held_out])
    is_positive = np.array([example.label == "hq" for example in held_out])
    report = calibration.evaluate(scores, is_positive, ())
    assert abs(report["roc_auc"] - 0.5) < 3 * report["roc_auc_standard_error"]


def test_the_report_is_of_the_librarys_own_predictions(
    classifier: quality.Classifier, root: str, examples: labelled.Examples
) -> None:
    table = quality.held_out_scores(root, classifier.reference)
    held_out = examples.side(is_held_out=True)
    assert table["id"].to_pylist() == [example.id for example in held_out]
    assert table["is_positive"].to_pylist() == [example.label == "hq" for example in held_out]
    assert table["score"].to_numpy() == pytest.approx(library(classifier.model, held_out), abs=1e-6)


def library(model: str, examples: list[labelled.Example]) -> list[float]:
    """P(hq) as DCLM computes it from the library's likeliest label."""
    loaded = fasttext.load_model(model)
    answers = [loaded.predict(example.line) for example in examples]
    return [p[0] if label[0] == "__label__hq" else 1 - p[0] for label, p in answers]


def test_a_model_the_kernel_leaves_to_the_library_is_scored_alike(
    examples: labelled.Examples, shared: Path, tmp_path: Path
) -> None:
    some = examples.side(is_held_out=False)[:40]
    settings = quality.settings(parsed(shared, "training.word_ngrams=3", "training.epochs=1").training)
    path = fasttext_training.train(map(labelled.training_line, some), settings, tmp_path)
    scores = quality.score(str(path), hashing.sha256_file(path), "hq", [example.line for example in some])
    assert scores == pytest.approx(library(str(path), some), abs=1e-9)


def test_a_tagging_recipe_names_the_model_and_its_hash(classifier: quality.Classifier, root: str) -> None:
    params = tagger.Params(model=classifier.model, sha256=classifier.sha256, label=classifier.label)
    batch = documents.make_batch([0, 1], ["a", "b"], ["The committee met\nand agreed.", "click click click"])
    scores = tagger.QUALITY.tag(batch, params).column("quality_score").to_pylist()
    assert all(0 < score < 1 for score in scores)
    with pytest.raises(Refused, match="the recipe says"):
        tagger.QUALITY.tag(batch, params.model_copy(update={"sha256": "0" * 64}))
    with pytest.raises(UsageError, match="no label spam"):
        quality.score(classifier.model, classifier.sha256, "spam", ["text"])


def test_trained_again_it_is_the_same_artifact_byte_for_byte(
    classifier: quality.Classifier, root: str, shared: Path, tmp_path: Path
) -> None:
    assert quality.train(parsed(shared), root) == classifier
    again = quality.train(parsed(shared), str(tmp_path))
    assert (again.reference, again.sha256, again.evaluation) == (
        classifier.reference,
        classifier.sha256,
        classifier.evaluation,
    )
    manifests = [artifact.load(where, classifier.reference) for where in (root, str(tmp_path))]
    assert manifests[0] == manifests[1]
    assert artifact.verify(artifact.artifact_url(root, classifier.reference)) == []


@pytest.mark.parametrize("change", ["seed=2", "training.epochs=3", "positives.sources.1.sample=150"])
def test_what_changes_the_model_changes_its_name(
    classifier: quality.Classifier, root: str, shared: Path, change: str
) -> None:
    assert quality.plan(parsed(shared, change), root)["classifier"] != classifier.reference


def test_thresholds_may_be_asked_for_later(classifier: quality.Classifier, root: str) -> None:
    (row,) = quality.load(root, "edited", (0.5,)).evaluation["thresholds"]
    assert row == classifier.evaluation["thresholds"][quality.THRESHOLDS.index(0.5)]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("min_documents_per_class=5000", "class hq has .* usable documents, at least 5000 are needed"),
        ("negatives.label=hq", "both classes have the label hq"),
        ("negatives.sources.0.name=web", "source web is named 2 times"),
        ("validation_fraction=0.000001", "has no document for validation: change validation_fraction"),
        ("validation_fraction=0.999999", "has no document for training: change validation_fraction"),
        ("positives={sources: []}", "key 'positives.label' is missing"),
        ("positives.sources.0.sample=0", "sample"),
    ],
)
def test_a_mistake_in_the_recipe_is_one_sentence(shared: Path, override: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        quality.gather(parsed(shared, override))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_published_recipes_are_valid(path: Path) -> None:
    assert quality.checked(recipe.load(path, quality.QualityRecipe)).name in {"quality", "math"}
    assert "not public here" in path.read_text() or path.stem != "math_classifier"
