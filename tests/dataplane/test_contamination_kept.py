"""What a selection kept of the items that were found: dropped, cut and held-out ones were not trained on; positions behind another edit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataplane import build, contamination_artifact, contamination_build, contamination_report
from dataplane.recipe import BuildRecipe
from triplane import artifact, contamination_status
from triplane.contamination_status import pair
from triplane.progress import Progress

QUESTIONS = [
    "How many old stone bridges cross the river between the northern island and the harbour of the town?",
    "Which of the seven sailors counted every lighthouse that they had passed since the first morning at sea?",
    "Why does the blue lantern above the baker's door burn longer than the red one beside the empty mill?",
]
PLAIN = "Nothing in this text was ever asked by anybody, and it goes on about the weather of late autumn."
# Lines without a terminal mark, which c4_lines cuts; they stand before the questions, so that every later position moves.
TEXTS = [
    f"Menu | Näxt | Home\nThe guide says this. {QUESTIONS[0]} There are nine.",
    PLAIN,
    f"Log in\nShare this page\n{QUESTIONS[1]} It was the youngest one.",
    f"{PLAIN} Later it was said again.",
]
ROWS = [("quiz", "test", f"q{n}", question, "", "") for n, question in enumerate(QUESTIONS)]
TWIN = ("quiz", "test", "twin", QUESTIONS[0].upper(), "", "")


@pytest.fixture
def items(tmp_path: Path) -> str:
    """Three questions; a fourth has the words of the first."""
    columns = [pa.array(column, pa.string()) for column in zip(*ROWS, TWIN, strict=True)]
    path = tmp_path / "items.parquet"
    pq.write_table(pa.Table.from_arrays(columns, schema=contamination_build.ITEM_SCHEMA), path)
    draft = artifact.begin(str(tmp_path / "root"), "eval_items", "quiz", inputs={}, recipe={}, stage_versions={})
    draft.record("quiz", [draft.put_file(path, "quiz", ".parquet", rows=4)], {})
    return draft.commit({}).reference


@pytest.fixture
def make(items: str, tmp_path: Path, make_recipe: Callable[..., BuildRecipe]) -> Callable[[str, str], BuildRecipe]:
    """make(edits of `prose`, its rules) -> a recipe over `TEXTS`."""
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = [json.dumps({"id": f"d{n}", "text": text}) for n, text in enumerate(TEXTS)]
    (folder / "part-00000.jsonl").write_text("".join(line + "\n" for line in lines))
    made = contamination_artifact.make(str(tmp_path / "root"), items)
    tagger = f"{{name: contamination, params: {{index: {made.url}, sha256: {made.sha256}, presets: [strict]}}}}"

    def with_(taggers: str, rules: str) -> BuildRecipe:
        return make_recipe(
            f"sources.0.documents={folder}", f"sources.0.taggers=[text_hash, {taggers.replace('TAGGER', tagger)}]",
            f"sources.0.rules={rules}", "mixes=[]", "held_out_fraction=0.0",
        )  # fmt: skip

    return with_


AFTER_LINES = "{name: edited, params: {edits: [c4_lines], taggers: [lengths, ngram_repetition, TAGGER]}}"
CUT = "{name: edited, params: {edits: [c4_lines, TAGGER], taggers: [lengths, ngram_repetition]}}"
PLAINLY = "lengths, ngram_repetition, TAGGER"


def kept(report: contamination_report.Report, result: build.BuildResult) -> dict[str, set[str]]:
    return report.kept[pair(result.selection, result.attributes["prose"])]


def test_a_selection_that_drops_keeps_nothing_and_one_that_does_not_keeps_all(
    session: Any, make: Callable[[str, str], BuildRecipe], items: str, tmp_path: Path
) -> None:
    """Two selections of the same attributes: one report tells them apart, and so does the status of what was trained on either."""
    root = str(tmp_path / "root")
    open_, strict = (build.run(make(PLAINLY, rules), root, Progress()) for rules in ("[]", "[contamination]"))
    assert open_.attributes == strict.attributes and open_.selection != strict.selection
    report = contamination_report.report(root, items, ["prose"], "strict")
    everything = {"quiz": {"q0", "q1", "twin"}}  # the index has one of two items with the same words
    assert report.found == everything == kept(report, open_)
    assert kept(report, strict) == {}
    assert contamination_report.summary(report)["tasks"]["quiz"] == {"items": 4, "contaminated": 3}
    assert {open_.selection, strict.selection} <= set(report.parents)
    contamination_report.commit(root, report)
    known = contamination_status.reports(root)
    statuses = [
        contamination_status.of_training(known, "quiz", ids, [pair(one.selection, one.attributes["prose"])])
        for one in (open_, strict)
        for ids in (["q0", "twin", "q2"], ["q2"])
    ]
    assert [(one.status, one.items) for one in statuses] == [
        ("contaminated", ("q0", "twin")), ("clean", ()), ("clean", ()), ("clean", ()),
    ]  # fmt: skip


@pytest.mark.parametrize(("taggers", "is_kept"), [(AFTER_LINES, True), (CUT, False)], ids=["behind_an_edit", "cut"])
def test_positions_point_into_the_text_that_was_read(
    taggers: str, is_kept: bool, session: Any, make: Callable[[str, str], BuildRecipe], items: str, tmp_path: Path
) -> None:
    root = str(tmp_path / "root")
    result = build.run(make(taggers, "[]"), root, Progress())
    report = contamination_report.report(root, items, ["prose"], "strict")
    assert {hit["item"]: hit["match"] for hit in report.hits} == {
        f"q{n}": question.rstrip("?") for n, question in enumerate(QUESTIONS[:2])
    }
    befores = {hit["item"]: hit["before"] for hit in report.hits}
    assert befores == {"q0": "The guide says this. ", "q1": ""}  # and not the lines that were cut
    assert kept(report, result) == ({"quiz": {"q0", "q1", "twin"}} if is_kept else {})
    # The control: the same positions in the text as it was stored say something else.
    url = artifact.artifact_url(root, result.attributes["prose"])
    manifest = artifact.load(root, result.attributes["prose"])
    table = pq.read_table(pa.BufferReader(artifact.read(url, manifest.files[0])))
    [hit] = table["contamination_hits"].to_pylist()[0]
    assert TEXTS[0].encode()[hit["start"] : hit["end"]].decode(errors="replace") != QUESTIONS[0].rstrip("?")
