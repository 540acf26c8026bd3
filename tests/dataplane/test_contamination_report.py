"""From a build's attributes to the report, the record that scores are read against, and the page."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataplane import build, contamination_artifact, contamination_build, contamination_report
from dataplane.recipe import BuildRecipe
from jobs import contamination_page
from triplane import artifact, contamination_status
from triplane.errors import Corrupt, NotFound, Refused
from triplane.progress import Progress


def export(root: str, folder: Path, rows: list[tuple[str, ...]], name: str = "items") -> str:
    columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    path = folder / "items.parquet"
    pq.write_table(pa.Table.from_arrays(columns, schema=contamination_build.ITEM_SCHEMA), path)
    draft = artifact.begin(root, "eval_items", name, inputs={"n": str(len(rows))}, recipe={}, stage_versions={})
    draft.record("quiz", [draft.put_file(path, "quiz", ".parquet", rows=len(rows))], {})
    return draft.commit({}).reference


def test_from_items_to_a_status(
    session: Any, make_recipe: Callable[..., BuildRecipe], sources: Path, tmp_path: Path
) -> None:
    root = str(tmp_path / "root")
    text = json.loads((sources / "prose" / "part-00001.jsonl").read_text().splitlines()[3])["text"]
    clean = "nobody ever wrote this <b>question</b> about thirteen purple elephants and their trumpets in any document"
    items = export(root, tmp_path, [("quiz", "test", "a", text, "", ""), ("quiz", "test", "b", clean, "", "")])
    assert contamination_status.status(root, "quiz", ["a"]).status == "unknown"
    made = contamination_artifact.make(root, items)
    assert contamination_artifact.make(root, items) == made
    tagger = (
        f"{{name: contamination, params: {{index: {made.url}, sha256: {made.sha256}, presets: [paragraph, strict]}}}}"
    )
    build.run(make_recipe(f"sources.0.taggers=[lengths, text_hash, ngram_repetition, {tagger}]"), root, Progress())
    report = contamination_report.report(root, items, None, "paragraph")
    [hit] = report.hits
    assert (hit["task"], hit["item"], hit["document"], hit["score"]) == ("quiz", "a", "part-00001.jsonl:3", 1.0)
    assert text.removesuffix(".") in hit["match"] and hit["source"] == "prose"
    said = contamination_report.summary(report)
    assert said["tasks"] == {"quiz": {"items": 2, "contaminated": 1}}
    assert said["sources"] == {"prose": {"documents": 120, "contaminated": 1}}
    reference = contamination_report.commit(root, report)
    assert contamination_report.commit(root, report) == reference
    statuses = [
        contamination_status.status(root, task, ids)
        for task, ids in (("quiz", "ab"), ("quiz", "b"), ("quiz", "c"), ("x", "a"))
    ]
    assert [one.status for one in statuses] == ["contaminated", "clean", "unknown", "unknown"]
    assert statuses[0].to_json() == {
        "status": "contaminated",
        "items": ["a"],
        "report": reference,
        "preset": "paragraph",
        "unsearched": 0,
    }
    page = contamination_page.html(report)
    assert page.count('class="hit"') == 1 and "part-00001.jsonl:3" in page and "<mark>" in page
    assert "http" not in page.replace("http-equiv", "") and "<b>question" not in page
    other = export(root, tmp_path, [("quiz", "test", "b", clean, "", "")], "others")
    with pytest.raises(Refused, match="name the items that its index was made of"):
        contamination_report.report(root, other, None, "strict")
    with pytest.raises(Refused, match="preset tulu"):
        contamination_report.report(root, items, ["prose"], "tulu")
    with pytest.raises(NotFound):
        contamination_report.report(root, items, ["nothing"], "strict")


def test_a_set_that_fails_to_load_stops_the_index(tmp_path: Path) -> None:
    root = str(tmp_path)
    with pytest.raises(NotFound):
        contamination_artifact.make(root, "eval_items/items")
    for name, data in (("empty", b""), ("text", b"not Parquet")):
        draft = artifact.begin(root, "eval_items", name, inputs={}, recipe={}, stage_versions={})
        draft.record("quiz", [draft.put_bytes(data, "quiz", ".parquet")], {})
        with pytest.raises(Corrupt, match="no Parquet file of evaluation items"):
            contamination_artifact.make(root, draft.commit({}).reference)
    export(root, tmp_path, [("quiz", "test", "a", "", "", "")], "wordless")
    with pytest.raises(Corrupt, match="none has 4 different words"):
        contamination_artifact.make(root, "eval_items/wordless")
    assert artifact.references(root, "contamination_index") == []
