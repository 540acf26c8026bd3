"""Dolmino Mix 1124 from end to end: stand-ins out of the shared corpus, classifiers trained here, documents to mix locks by one command."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dataplane import catalogue, documents, quality, recipe
from dataplane.taggers import fasttext
from jobs import train
from tests.dataplane.taggers.test_fineweb_edu import save_model
from triplane import artifact, mixture, storage, tokens
from triplane.errors import UsageError
from triplane.recipe import load

RECIPES = Path(train.__file__).parent / "recipes"
MIX = RECIPES / "mixes" / "dolmino_mix_1124.yaml"
LENGTH = 256
PARTS = {
    "dclm_high_quality": "web", "flan": "defects", "stack_exchange": "qa", "pes2o": "academic", "wikipedia_wikibooks": "encyclopedia",
    "tulu_math": "math_qa", "dolmino_synth_math": "math_qa", "tinygsm_mind_problem_solving": "math_qa", "tinygsm_mind_two_students": "math_qa",
    "mathcoder2_books": "math_web", "metamath_owm": "math_proofs", "codesearchnet_owm": "code", "gsm8k_train": "math_qa",
}  # fmt: skip


def stand_in(corpus: Path, source: str) -> Path:
    """One file of the corpus for each source; five of them share the four parts of math_qa."""
    same = [name for name, folder in PARTS.items() if folder == PARTS[source]]
    return corpus / PARTS[source] / f"part-{min(same.index(source), 3) if len(same) > 1 else 0:05d}.jsonl.zst"


def edu_model(folder: Path) -> dict[str, Any]:
    """A classifier of random weights, its output moved so that texts lie on both sides of 2."""
    import torch
    from transformers import BertForSequenceClassification

    save_model(folder)
    model = BertForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.bias += 2.0
    model.save_pretrained(folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return {"model": str(folder), "sha256": digest, "max_tokens": 32}


def classifiers(corpus: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Parameters of the three taggers whose models the recipe does not pin."""
    found = {"fineweb_edu": edu_model(folder / "edu")}
    for tagger, name in (("fasttext_quality", "quality"), ("fasttext_math", "math")):
        parsed = load(RECIPES / "quality" / f"{name}_classifier.yaml", quality.QualityRecipe, ["training.epochs=3"])
        text = json.dumps(parsed.model_dump(mode="json")).replace("../shared/data/corpus", str(corpus))
        trained = quality.train(quality.QualityRecipe.model_validate_json(text), str(folder / "classifiers"))
        found[tagger] = {"model": trained.model, "sha256": trained.sha256, "label": trained.label}
    return found


def overrides(shared: Path, models: dict[str, dict[str, Any]]) -> list[str]:
    one = catalogue.load(MIX).mixes[0].model_dump(mode="json", exclude_none=True)
    mixes = [{**one, "tokens": None}, {**one, "name": "scaled", "tokens": 200_000}]
    return [
        f"tokenizer={shared}/data/tokenizer/allenai_dolma2.json",
        f"sequence_length_tokens={LENGTH}",
        f"mixes={json.dumps(mixes)}",
        *(f"stand_ins.{name}={stand_in(shared / 'data/corpus', name)}" for name in PARTS),
        *(f"models.{name}={json.dumps(params)}" for name, params in models.items()),
        "sources.1.taggers=[lengths, ngram_repetition, text_hash]",
        "sources.1.exact_dedup=true",
    ]


def build(root: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from jobs.cli import app; app()", "data", "build", str(MIX), "--json"]
    environment = os.environ | {"TRIPLANE_SPARK_MASTER": "local[2]", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*command, "--root", str(root), *arguments], env=environment, capture_output=True, text=True, timeout=300
    )


def table(root: str, reference: str, source: str = "") -> list[dict[str, Any]]:
    """The rows of an artifact's Parquet files; of a selection, one source's."""
    manifest = artifact.load(root, reference)
    url = artifact.artifact_url(root, reference)
    records = [record for record in manifest.records if source in ("", record.counts.get("source"))]
    names = [storage.local_path(storage.join(url, record.files[0].name)) for record in records]
    return [row for name in names for row in pq.read_table(name).to_pylist()]


@pytest.fixture(scope="module")
def models(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return classifiers(shared / "data/corpus", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def built(
    shared: Path, models: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Any]]:
    """(root, what the command reports)."""
    root = tmp_path_factory.mktemp("dolmino")
    done = build(root, overrides(shared, models))
    assert done.returncode == 0, done.stderr
    return str(root), json.loads(done.stdout)


def test_the_funnel_adds_up_to_the_tokens(built: tuple[str, dict[str, Any]]) -> None:
    root, result = built
    assert set(result["tokens"]) == set(PARTS)
    for source in PARTS:
        rows = [row for row in result["funnel"] if row["source"] == source]
        for unit in ("documents", "bytes", "tokens"):
            came, went = (sum(row[unit] for row in rows if (row["fate"] == "in") == is_in) for is_in in (True, False))
            assert came == went > 0, (source, unit)
        kept = next(row for row in rows if row["fate"] == "kept")
        made = artifact.load(root, result["tokens"][source])
        assert made.metadata["num_tokens"] == kept["tokens"] + kept["documents"]
        names = [entry.id for shard in tokens.shards(root, made) for entry in tokens.provenance(shard)]
        assert len(names) == kept["documents"] == made.metadata["num_documents"]


def test_the_lock_takes_what_was_planned(built: tuple[str, dict[str, Any]], shared: Path) -> None:
    """Of each source what table 13 says, within one instance."""
    root, result = built
    percents = catalogue.load(MIX).mixes[0].source_percent or {}
    whole, scaled = (artifact.load(root, result["mixes"][name]) for name in ("dolmino-mix-1124-50b-paper-table13", "scaled"))  # fmt: skip
    assert set(whole.metadata["sources"]) == set(PARTS) == set(percents)
    for source, counts in whole.metadata["sources"].items():
        available = artifact.load(root, result["tokens"][source]).metadata["num_tokens"]
        assert 0 <= available - counts["available_tokens"] < LENGTH  # one shard, its tail shorter than an instance
        asked = percents[source] / 100 * counts["available_tokens"]
        assert counts["asked_tokens"] == pytest.approx(asked)
        assert abs(counts["realised_tokens"] - asked) <= LENGTH and counts["realised_tokens"] >= LENGTH
        assert abs(counts["realised_tokens"] - counts["planned_tokens"]) <= LENGTH
        assert counts["realised_tokens"] == result["mix_tokens"][whole.name][source]
    lock = mixture.load(storage.join(artifact.artifact_url(root, scaled.reference), scaled.metadata["lock"]))
    assert lock.num_tokens == 200_000 // LENGTH * LENGTH
    total = sum(counts["asked_tokens"] for counts in scaled.metadata["sources"].values())
    for source in lock.sources:
        share = scaled.metadata["sources"][source.name]["asked_tokens"] / total
        assert source.num_taken * LENGTH == pytest.approx(share * 200_000, abs=2 * LENGTH)


def test_the_web_passes_both_classifiers(built: tuple[str, dict[str, Any]]) -> None:
    """Each document is scored by the second only where the first keeps it."""
    root, result = built
    attributes = table(root, result["attributes"]["dclm_high_quality"])
    decided = table(root, result["selection"], "dclm_high_quality")
    expected = []
    for row in attributes:
        likely = row["ngram_repeat_times"] < 32 and row["quality_score"] >= fasttext.DOLMINO
        assert (row["fineweb_edu_score"] is None) == (not likely)
        expected.append(likely and row["fineweb_edu_score"] >= 2.0)
    assert [row["decision"] == "keep" for row in decided] == expected
    reasons = Counter(row["reason"] for row in decided)
    assert reasons["dclm_quality"] > 0 and reasons["fineweb_edu"] > 0 and reasons[None] > 0
    for source in ("mathcoder2_books", "metamath_owm", "codesearchnet_owm"):
        scores = [row["math_score"] for row in table(root, result["attributes"][source])]
        kept = [row["decision"] == "keep" for row in table(root, result["selection"], source)]
        assert kept == [score is not None and score >= 0.5 for score in scores]


def test_the_defects_are_decided_right(built: tuple[str, dict[str, Any]], shared: Path) -> None:
    root, result = built
    labels, groups = [], []
    for batch in documents.read(documents.shards(str(stand_in(shared / "data/corpus", "flan")))[0], metadata=True):
        assert batch.metadata is not None
        found = dict(zip(batch.rows.tolist(), map(json.loads, batch.metadata.to_pylist()), strict=True))
        for row in range(len(labels), len(labels) + batch.num_records):
            labels.append(found[row]["defect"] if row in found else "quarantined")
            groups.append(json.loads(found[row]["defect_detail"]).get("group") if row in found else None)
    decided = table(root, result["selection"], "flan")
    reasons = Counter((label, row["reason"]) for label, row in zip(labels, decided, strict=True))
    assert reasons["ngram_repeat", "ngram_repeat"] == 39 and reasons["ngram_repeat_symbols", "ngram_repeat"] == 4
    assert reasons["ngram_repeat_below_32", None] == 13 and reasons["none", None] == 60
    assert reasons["exact_duplicate", None] == 25 and reasons["exact_duplicate", "exact_duplicate"] == 64 - 25
    rows = zip(labels, groups, decided, strict=True)
    kept = {group for label, group, row in rows if label == "exact_duplicate" and row["reason"] is None}
    assert len(kept) == 25
    totals = Counter(label for label, _ in reasons.elements())
    assert (totals["ngram_repeat"], totals["ngram_repeat_below_32"], totals["none"]) == (39, 13, 60)
    assert reasons["empty_text", "empty"] == 1 and totals["quarantined"] == 6  # three are white space; lone surrogates


def test_a_build_without_its_models_is_refused(shared: Path, models: dict[str, dict[str, Any]]) -> None:
    without = [one for one in overrides(shared, models) if not one.startswith("models.")]
    with pytest.raises(UsageError, match=r"set models\.fasttext_quality=\{model: \.\.\., sha256: \.\.\., label: "):
        recipe.checked(catalogue.load(MIX, without))
    recipe.checked(catalogue.load(MIX, overrides(shared, models)))
