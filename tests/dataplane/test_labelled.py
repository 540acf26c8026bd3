"""Labelled samples: nested, repeatable, no text on both sides, and lines that fastText reads as the scorer does."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane import labelled
from dataplane.labelled import ClassRecipe, Example, SampleRecipe
from triplane.errors import UsageError


def write(path: Path, texts: list[str]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": str(row), "text": text}) + "\n" for row, text in enumerate(texts)))
    return str(path.parent)


def one_class(label: str, location: str, sample: int | None) -> ClassRecipe:
    return ClassRecipe(label=label, sources=(SampleRecipe(name=f"{label}-source", documents=location, sample=sample),))


def gathered(folder: Path, sample: int | None = None, seed: int = 1) -> labelled.Examples:
    good = write(folder / "good" / "a.jsonl", [f"good text {number}" for number in range(200)])
    bad = write(folder / "bad" / "a.jsonl", [f"bad text {number}" for number in range(200)])
    return labelled.gather([one_class("hq", good, sample), one_class("cc", bad, sample)], seed, 0.25)


def test_a_sample_is_nested_repeatable_and_split_by_the_text(tmp_path: Path) -> None:
    every, some = gathered(tmp_path), gathered(tmp_path, sample=50)
    assert some == gathered(tmp_path, sample=50)
    assert some.counts["hq-source"] == {"read": 200, "sampled": 50, "used": 50}
    assert set(some.examples) < set(every.examples)  # with the same side and order
    assert 60 < len(every.side(is_held_out=True)) < 140
    assert len(every.side(True)) + len(every.side(False)) == 400
    assert {e.line for e in some.examples} != {e.line for e in gathered(tmp_path, sample=50, seed=2).examples}


def test_lines_are_in_an_order_that_mixes_the_classes(tmp_path: Path) -> None:
    labels = [example.label for example in gathered(tmp_path).examples]
    changes = sum(a != b for a, b in itertools.pairwise(labels))
    assert 160 < changes < 240  # sorted by class it would be 1


def test_repeated_contested_and_empty_texts_are_counted_and_not_used(tmp_path: Path) -> None:
    good = write(tmp_path / "good" / "a.jsonl", ["twice", " twice\n", "in both", "", " \n"])
    bad = write(tmp_path / "bad" / "a.jsonl", ["in\nboth", "only here"])
    found = labelled.gather([one_class("hq", good, None), one_class("cc", bad, None)], 1, 0.5)
    assert {(e.label, e.line, e.id) for e in found.examples} == {("hq", "twice", "0"), ("cc", "only here", "1")} or {
        (e.label, e.line, e.id) for e in found.examples
    } == {("hq", "twice", "1"), ("cc", "only here", "1")}
    assert found.counts == {
        "hq-source": {"read": 5, "sampled": 5, "used": 1},
        "cc-source": {"read": 2, "sampled": 2, "used": 1},
    }


def test_a_source_without_documents_is_one_sentence(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty" / "a.jsonl", [])
    with pytest.raises(UsageError, match=r"source hq-source at .*empty has no documents: check the location"):
        labelled.gather([one_class("hq", empty, 5)], 1, 0.5)
    with pytest.raises(UsageError, match="absent holds no document files"):
        labelled.gather([one_class("hq", str(tmp_path / "absent"), 5)], 1, 0.5)


def test_a_line_is_what_dclm_scores() -> None:
    assert (
        labelled.normalised("\u00a0 first line\r\nsecond\u2028third \x1cfourth\n\n")
        == "first line second third  fourth"
    )


def test_training_sees_what_the_scorer_sees() -> None:
    line = "a __label__evil b\tc\x00d </s> never read"
    assert labelled.training_line(Example("hq", "s", "0", line, False, 0.5)) == "__label__hq a b c d\n"


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=80))
def test_a_training_line_is_one_line_with_one_label(text: str) -> None:
    line = labelled.training_line(Example("hq", "s", "0", labelled.normalised(text), False, 0.5))
    assert (
        line.count("\n") == 1
        and line.startswith("__label__hq ")
        and line.count("__label__") == 1 + sum("__label__" in word for word in line.split(" ")[1:])
    )
    assert not any(word.startswith("__label__") or word == "</s>" for word in line[:-1].split(" ")[1:])
