"""Duplicates on the labelled defects: every group leaves one, near ones are found as often as the scheme allows, controls stay."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dataplane import documents, ingestion, selection, tagging
from dataplane.kernels import minhash
from dataplane.recipe import BuildRecipe
from triplane import artifact, storage
from triplane.progress import Progress
from triplane.recipe import parse
from triplane.tokenizer import Tokenizer

SCHEME = {"bands": 14, "rows": 8, "shingle_words": 5}
SEEDS = 16
RECIPE = """
name: defects
seed: 1
tokenizer: {tokenizer}
sequence_length_tokens: 16
shard_tokens: 1M
held_out_fraction: 0.0
sources:
  - name: defects
    documents: {documents}
    format: dolma
    licence: by document
    taggers: [text_hash, ngram_repetition, {{name: minhash, params: {{bands: 14, rows: 8, shingle_words: 5, seed: 1}}}}]
    rules: []
    exact_dedup: true
mixes: []
"""


@pytest.fixture(scope="module")
def defects(shared: Path) -> Path:
    return shared / "data" / "corpus" / "defects" / "part-00000.jsonl.zst"


@pytest.fixture(scope="module")
def labelled(defects: Path) -> dict[int, tuple[str, dict[str, Any], str]]:
    """Row -> (defect, its parameters, text)."""
    found = {}
    for batch in documents.read(documents.shards(str(defects))[0], metadata=True):
        assert batch.metadata is not None
        for row, text, raw in zip(batch.rows.tolist(), batch.text.to_pylist(), batch.metadata.to_pylist(), strict=True):
            metadata = json.loads(raw)
            found[row] = (metadata["defect"], json.loads(metadata["defect_detail"]), text)
    return found


def pairs(labelled: dict[int, tuple[str, dict[str, Any], str]]) -> list[tuple[float, int, int]]:
    """(changed fraction in whole percents, row of the original, row of the edited copy)."""
    groups: dict[str, dict[str, tuple[int, dict[str, Any]]]] = defaultdict(dict)
    for row, (defect, detail, _) in labelled.items():
        if defect == "near_duplicate":
            groups[detail["group"]][detail["member"]] = (row, detail)
    return [
        (round(group["edited"][1]["changed_fraction"], 2), group["original"][0], group["edited"][0])
        for group in groups.values()
    ]


def test_groups_leave_one_and_controls_stay(
    session: Any, in_process: Any, tokenizer_json: Path, defects: Path, labelled: Any, tmp_path: Path
) -> None:
    build = parse(RECIPE.format(tokenizer=tokenizer_json, documents=defects), BuildRecipe, "defects.yaml")
    near = parse(
        RECIPE.format(tokenizer=tokenizer_json, documents=defects),
        BuildRecipe,
        "defects.yaml",
        ["sources.0.near_dedup={within: all}"],
    )
    ingested = ingestion.ingest(in_process, str(tmp_path), build, Progress())
    tokenizer = (str(tokenizer_json), Tokenizer.load(tokenizer_json).sha256)
    attributes = tagging.tag(in_process, str(tmp_path), build, ingested, tokenizer, Progress())
    reasons = {}
    for name, one in (("exact", build), ("near", near)):
        selected = selection.select(lambda: session, str(tmp_path), one, attributes, Progress())
        url = storage.join(
            artifact.artifact_url(str(tmp_path), selected.manifest.reference),
            selected.record("defects", 0).files[0].name,
        )
        reasons[name] = pq.read_table(storage.local_path(url)).column("reason").to_pylist()
    members = [row for row, (defect, _, _) in labelled.items() if defect == "exact_duplicate"]
    groups = {labelled[row][1]["group"] for row in members}
    kept = [row for row in members if reasons["exact"][row] is None]
    assert (len(members), len(groups), len(kept)) == (64, 25, 25)
    assert {labelled[row][1]["group"] for row in kept} == groups
    assert all(
        row == min(other for other in members if labelled[other][1]["group"] == labelled[row][1]["group"])
        for row in kept
    )
    controls = [row for row, (defect, _, _) in labelled.items() if defect == "none"]
    assert len(controls) == 60 and {reasons[one][row] for one in ("exact", "near") for row in controls} == {None}
    # what is equal but for case, spacing and punctuation has the same signature: every group leaves one
    normalised = {
        row: detail["group"] for row, (defect, detail, _) in labelled.items() if defect == "normalised_duplicate"
    }
    left = Counter(normalised[row] for row in normalised if reasons["near"][row] is None)
    assert set(left.values()) == {1} and set(left) == set(normalised.values())
    assert (
        Counter(reasons["near"])["near_duplicate"]
        == selected.manifest.metadata["near_dedup"]["documents"] - selected.manifest.metadata["near_dedup"]["clusters"]
    )


def recall(labelled: Any, bands_of: Any) -> dict[float, float]:
    """Changed fraction -> share of (pair, seed) that meet in a band; `bands_of(seed)` gives row -> band hashes."""
    met: dict[float, list[bool]] = defaultdict(list)
    for seed in range(1, SEEDS + 1):
        bands = bands_of(seed)
        for fraction, original, edited in pairs(labelled):
            met[fraction].append(any(a == b for a, b in zip(bands[original], bands[edited], strict=True)))
    return {fraction: float(np.mean(found)) for fraction, found in sorted(met.items())}


def our_bands(rows: list[int], texts: list[str], seed: int) -> dict[int, list[int]]:
    params = minhash.MinhashParams(**SCHEME, seed=seed)
    batch = documents.make_batch(rows, ["x"] * len(rows), texts)
    signatures, _ = minhash.signatures(*batch.text_buffers(), params)
    return dict(zip(rows, minhash.band_hashes(signatures, params).tolist(), strict=True))


def test_recall_by_changed_fraction_is_not_below_datatroves(
    labelled: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Over many hash families, as one family on ten pairs is a toss of a coin; datatrove's words by whitespace, its texts simplified by itself."""
    peer = pytest.importorskip("datatrove.pipeline.dedup.minhash")

    class Whitespace:
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

    monkeypatch.setattr(peer, "load_word_tokenizer", lambda language: Whitespace())
    rows = sorted({row for pair in pairs(labelled) for row in pair[1:]})
    texts = [labelled[row][2] for row in rows]
    first = peer.MinhashDedupSignature(
        str(tmp_path), peer.MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    )
    shingles = {row: first.get_shingles(text) for row, text in zip(rows, texts, strict=True)}

    def their_bands(seed: int) -> dict[int, list[tuple[int, ...]]]:
        config = peer.MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8, seed=seed)
        signer = peer.MinhashDedupSignature(str(tmp_path), config)
        return {row: [tuple(bucket) for bucket in signer.get_signature(values)] for row, values in shingles.items()}

    ours = recall(labelled, lambda seed: our_bands(rows, texts, seed))
    theirs = recall(labelled, their_bands)
    scheme = minhash.MinhashParams(**SCHEME, seed=0)
    expected: dict[float, list[float]] = defaultdict(list)
    for fraction, original, edited in pairs(labelled):
        one, other = (set(shingles[row].ravel().tolist()) for row in (original, edited))
        expected[fraction].append(scheme.share_probability(len(one & other) / len(one | other)))
    for fraction, chances in expected.items():
        limit = 3 * (sum(p * (1 - p) for p in chances) / SEEDS) ** 0.5 / len(chances)
        print(
            f"{fraction:.0%} changed: recall {ours[fraction]:.3f}, datatrove {theirs[fraction]:.3f}, 14 x 8 predicts {np.mean(chances):.3f}"
        )
        assert abs(ours[fraction] - np.mean(chances)) <= limit + 0.01
        assert ours[fraction] >= theirs[fraction] - 2**0.5 * limit - 0.01
    assert list(ours) == [0.05, 0.1, 0.15, 0.2] and ours[0.05] > 0.1


def test_controls_share_no_band_with_anything(labelled: Any) -> None:
    rows = [row for row, (defect, _, text) in labelled.items() if defect in ("none", "near_duplicate")]
    for seed in (1, 2, 3):
        bands = our_bands(rows, [labelled[row][2] for row in rows], seed)
        counts = Counter(band for row in rows for band in bands[row])
        assert all(counts[band] == 1 for row in rows if labelled[row][0] == "none" for band in bands[row])
