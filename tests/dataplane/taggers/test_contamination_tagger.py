"""Contamination inside `tag`: a rule drops, an edit cuts, a changed index is refused, and workers change no byte."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataplane import build, contamination_build, contamination_index, documents, edits, spark
from dataplane.recipe import BuildRecipe
from dataplane.taggers import contamination
from triplane import artifact, storage
from triplane.errors import NotFound, Refused
from triplane.progress import Progress

QUESTION = "Entry number 5 of the eval asks how many stones lie under the old bridge of that island"


def write_index(folder: Path, questions: list[str]) -> dict[str, Any]:
    rows = [("quiz", "test", str(n), question, "seven", "") for n, question in enumerate(questions)]
    columns = [pa.array(column) for column in zip(*rows, strict=True)]
    items = pa.Table.from_arrays(columns, schema=contamination_build.ITEM_SCHEMA)
    data = contamination_index.to_bytes(contamination_build.build(items, "0" * 64))
    path = folder / f"{len(questions)}.index"
    path.write_bytes(data)
    return {"index": str(path), "sha256": hashlib.sha256(data).hexdigest()}


def test_hits_scores_and_spans(tmp_path: Path) -> None:
    params = contamination.Params(**write_index(tmp_path, [QUESTION]), presets=["strict", "flan"])
    text = f"Before. {QUESTION.upper()}? Seven. After."
    tagged = contamination.TAGGER.tag(documents.make_batch([0, 1], ["a", "b"], ["clean text", text]), params)
    assert tagged.schema == contamination.TAGGER.columns(params)
    assert tagged.column("contamination_strict").to_pylist() == [0.0, pytest.approx(1.0)]
    [none, hits] = tagged.column("contamination_hits").to_pylist()
    assert none == [] and [(hit["preset"], hit["task"], hit["item"]) for hit in hits] == [
        ("strict", "quiz", "0"),
        ("flan", "quiz", "0"),
    ]
    [_, cut] = edits.applied(
        pa.array(["clean text", text], pa.large_string()), tagged.column("contamination_spans")
    ).to_pylist()
    assert cut == "Before. . After."


def test_a_whole_set_in_one_document_is_found_whole(tmp_path: Path) -> None:
    """A copy of a benchmark's file is one document, and an item that is not among its hits would pass for clean."""
    questions = [" ".join(f"w{n}x{i}" for i in range(12)) for n in range(1200)]
    params = contamination.Params(**write_index(tmp_path, questions), presets=["strict"])
    tagged = contamination.TAGGER.tag(documents.make_batch([0], ["a"], ["\n".join(questions)]), params)
    [hits] = tagged.column("contamination_hits").to_pylist()
    assert {hit["item"] for hit in hits} == {str(n) for n in range(1200)}


def test_a_changed_or_missing_index_is_refused(tmp_path: Path) -> None:
    given = write_index(tmp_path, [QUESTION])
    batch = documents.make_batch([0], ["a"], ["text"])
    with pytest.raises(Refused, match="sha256"):
        contamination.TAGGER.tag(batch, contamination.Params(**given | {"sha256": "1" * 64}, presets=["strict"]))
    with pytest.raises(NotFound):
        contamination.TAGGER.tag(
            batch, contamination.Params(**given | {"index": f"{tmp_path}/none"}, presets=["strict"])
        )
    with pytest.raises(ValueError, match="preset strikt: name each once"):
        contamination.Params(**given, presets=["strikt"])


def overrides(sources: Path, folder: Path) -> list[str]:
    """Two documents of each source are items; `prose` drops them, `notes` cuts them out."""
    texts = {}
    for name in ("prose", "notes"):
        lines = (sources / name / "part-00000.jsonl").read_text().splitlines()
        texts[name] = [json.loads(lines[number])["text"] for number in (7, 9)]
    given = write_index(folder, [*texts["prose"], *texts["notes"]])
    params = f"{{index: {given['index']}, sha256: {given['sha256']}, presets: [strict]}}"
    tagger = f"{{name: contamination, params: {params}}}"
    return [
        f"sources.0.taggers=[lengths, text_hash, ngram_repetition, {tagger}]",
        "sources.0.rules=[contamination]",
        f"sources.1.taggers=[text_hash, {{name: edited, params: {{edits: [{tagger}], taggers: [lengths, ngram_repetition]}}}}]",
        "sources.1.rules=[]",
    ]


def attributes(root: str, source: str) -> pa.Table:
    manifest = artifact.load(root, f"attributes/{source}")
    url = artifact.artifact_url(root, manifest.reference)
    return pa.concat_tables([pq.read_table(pa.BufferReader(artifact.read(url, file))) for file in manifest.files])


def test_a_build_drops_or_cuts_and_workers_change_no_byte(
    session: Any,
    make_recipe: Callable[..., BuildRecipe],
    sources: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, root = make_recipe(*overrides(sources, tmp_path)), str(tmp_path / "root")
    result = build.run(recipe, root, Progress())
    prose, notes = attributes(root, "prose"), attributes(root, "notes")
    scores = prose.column("contamination_strict").to_pylist()
    flagged = [number for number, score in enumerate(scores) if score]
    dropped = {(row.source, row.reason): row.documents for row in result.funnel if row.fate == "dropped"}
    # Every sentence of the fixture takes its words from one list, so others are like the two that are items.
    assert {7, 9} <= set(flagged) and min(scores[7], scores[9]) > 0.5
    assert dropped["prose", "contaminated"] == len(flagged) < 60
    spans, tokens = notes.column("contamination_spans").to_pylist(), notes.column("token_count").to_pylist()
    assert spans[7] and spans[9] and tokens[7] < 5 < max(t for t in tokens if t)
    monkeypatch.setattr(spark, "parallelism", lambda _: 1)
    other = str(tmp_path / "other")
    build.run(recipe, other, Progress())
    names = [name for name in storage.list_names(root) if name.startswith(("attributes/", "selection/", "tokens/"))]
    assert names and all(
        storage.read(storage.join(root, name)) == storage.read(storage.join(other, name)) for name in names
    )
