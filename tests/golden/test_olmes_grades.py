"""Our graders against what olmes's own give for the same texts: 550 pairs, made once by running its functions."""

import json
from pathlib import Path
from typing import Any

import pytest

from triplane.lm.verifiers import numeric, overlap, patterns


@pytest.fixture(scope="module")
def grades() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parent / "olmes_grades.json").read_text())
    return found


def test_drop(grades: dict[str, Any]) -> None:
    for text, golds, match, f1 in grades["drop"]:
        assert (overlap.drop_match(text, golds), overlap.drop_f1(text, golds)) == (match, f1), text
    assert sum(0 < f1 < 1 for *_, f1 in grades["drop"]) > 20


def test_squad(grades: dict[str, Any]) -> None:
    for text, answers, match, f1 in grades["squad"]:
        assert overlap.squad_match(text, answers) == match, text
        assert overlap.squad_f1(text, answers) == pytest.approx(f1, abs=1e-15), text
    assert sum(0 < f1 < 1 for *_, f1 in grades["squad"]) > 20


def test_shapes(grades: dict[str, Any]) -> None:
    for text, pattern, extracted in grades["pattern"]:
        assert patterns.extract(text, pattern) == extracted, text
    assert len({pattern for _, pattern, _ in grades["pattern"]}) == 9


def test_numbers(grades: dict[str, Any]) -> None:
    for text, extracted in grades["last_number"]:
        assert numeric.last_number(text) == extracted, text
