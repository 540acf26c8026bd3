"""Quality classifiers: train one from a recipe, and say how far its scores can be trusted.

Labelled samples of documents -> artifact `classifier/{name}@{version}`: a fastText `.bin`, and the scores of the documents held out, from
which `report` computes every figure. A tagging recipe names the model's file and sha256. Sources: Li et al. 2024 (DCLM), arXiv
2406.11794, section 4.4; Lu et al. 2024 (MathCoder2), arXiv 2410.08196, section 2.1.
"""

import io
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata as installed
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from dataplane import calibration, documents, fasttext_training, labelled
from dataplane.labelled import NAME, ClassRecipe, Example, Examples
from dataplane.taggers import fasttext
from triplane import artifact, hashing, storage
from triplane.errors import Corrupt, UsageError
from triplane.recipe import Strict, resolved

VERSION = 1
KIND = "classifier"
MODEL, SCORES = "model", "scores"
THRESHOLDS = (0.01, 0.02, 0.05, *(tenth / 10 for tenth in range(1, 10)), 0.95, 0.98, 0.99)
LIBRARY = "fasttext-numpy2-wheel"


class TrainingRecipe(Strict):
    """fastText's supervised settings. One thread always, so that the same recipe gives the same bytes."""

    dim: int = Field(ge=1)
    word_ngrams: int = Field(ge=1)
    buckets: int = Field(ge=0)  # rows for word n-grams; the file has about (buckets + words) * dim * 4 bytes
    epochs: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    min_count: int = Field(ge=1)  # a rarer word has no row of its own


class QualityRecipe(Strict):
    """A classifier of two classes; its score is the probability of `positives.label`."""

    name: str = NAME
    seed: int = Field(ge=0)
    positives: ClassRecipe
    negatives: ClassRecipe
    validation_fraction: float = Field(gt=0, lt=1)
    min_documents_per_class: int = Field(ge=2)
    training: TrainingRecipe


@dataclass(frozen=True)
class Classifier:
    """A committed classifier. model: URL of its `.bin`; sha256: what a tagging recipe states beside it."""

    reference: str
    model: str
    sha256: str
    label: str
    counts: dict[str, dict[str, int]]
    evaluation: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "classifier": self.reference, "model": self.model, "sha256": self.sha256, "label": self.label,
            "sources": self.counts, "evaluation": self.evaluation,
        }  # fmt: skip


def checked(recipe: QualityRecipe) -> QualityRecipe:
    """The recipe. UsageError when the classes share a label or a source's name is used twice."""
    if recipe.positives.label == recipe.negatives.label:
        raise UsageError(f"both classes have the label {recipe.positives.label}: give each its own")
    names = Counter(source.name for one in (recipe.positives, recipe.negatives) for source in one.sources)
    for name, times in names.items():
        if times > 1:
            raise UsageError(f"source {name} is named {times} times: give each sample its own name")
    return recipe


def gather(recipe: QualityRecipe) -> Examples:
    """The recipe's labelled lines. UsageError for an empty source, or a class with too few documents on a side."""
    recipe = checked(recipe)
    found = labelled.gather((recipe.positives, recipe.negatives), recipe.seed, recipe.validation_fraction)
    by_class = Counter(example.label for example in found.examples)
    by_side = Counter((example.label, example.is_held_out) for example in found.examples)
    for label in (recipe.positives.label, recipe.negatives.label):
        if by_class[label] < recipe.min_documents_per_class:
            raise UsageError(
                f"class {label} has {by_class[label]} usable documents, at least {recipe.min_documents_per_class} are "
                "needed: add sources, sample more, or lower min_documents_per_class"
            )
        if not by_side[label, True] or not by_side[label, False]:
            side = "validation" if not by_side[label, True] else "training"
            raise UsageError(f"class {label} has no document for {side}: change validation_fraction, or add documents")
    return found


def plan(recipe: QualityRecipe, root: str) -> dict[str, Any]:
    """What training would use and where it would go; trains nothing."""
    found = gather(recipe)
    sides = Counter((example.label, "validation" if example.is_held_out else "training") for example in found.examples)
    return {
        "recipe": resolved(recipe),
        "classifier": _draft(root, recipe, found).reference,
        "sources": found.counts,
        "documents": {f"{label}/{side}": count for (label, side), count in sorted(sides.items())},
    }


def train(recipe: QualityRecipe, root: str) -> Classifier:
    """Trains, scores the documents held out and commits; a classifier of the same recipe and texts is left as it is.

    Raises UsageError as `gather`, TriplaneError when fastText's training fails, LostRace.
    """
    found = gather(recipe)
    draft = _draft(root, recipe, found)
    if artifact.committed(draft) is None:
        with tempfile.TemporaryDirectory() as folder:
            _train(draft, recipe, found, Path(folder))
    return load(root, draft.reference)


def _draft(root: str, recipe: QualityRecipe, found: Examples) -> artifact.Draft:
    texts = hashing.identity([[one.label, one.line, one.is_held_out] for one in found.examples])
    return artifact.begin(
        root,
        KIND,
        recipe.name,
        inputs={"texts": texts},
        recipe=resolved(recipe),
        stage_versions={"classifier": VERSION},
    )


def _train(draft: artifact.Draft, recipe: QualityRecipe, found: Examples, folder: Path) -> None:
    lines = (labelled.training_line(example) for example in found.side(is_held_out=False))
    path = fasttext_training.train(lines, settings(recipe.training), folder)
    held_out = found.side(is_held_out=True)
    label = recipe.positives.label
    model = draft.put_file(path, MODEL, ".bin")
    table = _parquet(held_out, score(str(path), model.sha256, label, [one.line for one in held_out]), label)
    draft.record(MODEL, [model], {"training": len(found.examples) - len(held_out)})
    draft.record(SCORES, [draft.put_bytes(table, SCORES, ".parquet", rows=len(held_out))], {})
    draft.commit(
        {
            "labels": [recipe.positives.label, recipe.negatives.label],
            "label": label,
            "model": model.name,
            "sha256": model.sha256,
            "sources": found.counts,
            "library": f"{LIBRARY} {installed.version(LIBRARY)}",
        }
    )


def score(model: str, sha256: str, label: str, lines: Sequence[str]) -> np.ndarray:
    """What the tagger `fasttext_quality` writes for each line -> float64 [n]. Raises Refused (sha256), UsageError (label), Corrupt."""
    batch = documents.make_batch(np.arange(len(lines)), [str(row) for row in range(len(lines))], lines)
    columns = fasttext.QUALITY.tag(batch, fasttext.Params(model=model, sha256=sha256, label=label))
    return columns.column("quality_score").to_numpy()


def settings(training: TrainingRecipe) -> dict[str, Any]:
    """The recipe's settings under the library's names."""
    return {
        "dim": training.dim,
        "wordNgrams": training.word_ngrams,
        "bucket": training.buckets,
        "epoch": training.epochs,
        "lr": training.learning_rate,
        "minCount": training.min_count,
        "loss": "softmax",
    }


def _parquet(held_out: Sequence[Example], scores: np.ndarray, label: str) -> bytes:
    columns = {
        "source": pa.array([one.source for one in held_out], pa.string()),
        "id": pa.array([one.id for one in held_out], pa.string()),
        "is_positive": pa.array([one.label == label for one in held_out], pa.bool_()),
        "score": pa.array(scores, pa.float64()),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()


def held_out_scores(root: str, reference: str) -> pa.Table:
    """Columns source, id, is_positive, score of the documents held out. Raises NotFound, Corrupt, UsageError."""
    manifest = _manifest(root, reference)
    (entry,) = (file for record in manifest.records if record.shard == SCORES for file in record.files)
    data = artifact.read(artifact.artifact_url(root, manifest.reference), entry)
    return pq.read_table(pa.BufferReader(data))


def load(root: str, reference: str, thresholds: Sequence[float] = THRESHOLDS) -> Classifier:
    """A committed classifier by name, name@version or full reference, evaluated on what was held out.

    Raises NotFound, Corrupt, UsageError (reference).
    """
    manifest = _manifest(root, reference)
    table = held_out_scores(root, manifest.reference)
    scores, is_positive = (table[name].to_numpy() for name in ("score", "is_positive"))
    known = manifest.metadata
    return Classifier(
        manifest.reference,
        storage.join(artifact.artifact_url(root, manifest.reference), known["model"]),
        known["sha256"],
        known["label"],
        known["sources"],
        calibration.evaluate(scores, is_positive, thresholds),
    )


def _manifest(root: str, reference: str) -> artifact.Manifest:
    manifest = artifact.load(root, reference if reference.startswith(f"{KIND}/") else f"{KIND}/{reference}")
    missing = {"label", "model", "sha256", "sources"} - manifest.metadata.keys()
    if missing:
        raise Corrupt(f"{manifest.reference} at {root} does not say its {', '.join(sorted(missing))}: train it again")
    return manifest
