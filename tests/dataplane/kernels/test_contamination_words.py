"""Words as decontamination folds them, against the same on strings."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dataplane.documents import string_buffers
from dataplane.kernels import contamination_words


def _load_reference() -> ModuleType:
    path = Path(__file__).parents[1] / "contamination_reference.py"
    spec = importlib.util.spec_from_file_location("contamination_reference", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = _load_reference().words

TEXTS = st.text(
    st.sampled_from("aBé9,.'’-_ \n\t½ǅİß北々カ한क्\u200b\u00ad$\U0001d538") | st.characters(codec="utf-8"), max_size=60
)


@given(st.lists(TEXTS, max_size=5))
@example(["0\U000e0100", "\U000e0100", "a\U000e0041b", "a\U00032400b", "a\U000e01f0b", "a\U0010ffffb"])
def test_equals_words_of_strings(texts: list[str]) -> None:
    offsets, data = string_buffers(pa.array(["x 1", *texts], pa.large_string()))
    folded = contamination_words.fold(offsets, data)
    of_hash: dict[int, str] = {}
    for document, text in enumerate(["x 1", *texts]):
        a, b = folded.first[document : document + 2]
        expected = reference(text)
        assert b - a == len(expected)
        for w, word in zip(range(a, b), expected, strict=True):
            assert of_hash.setdefault(int(folded.hash[w]), word) == word
            piece = text.encode()[folded.start[w] : folded.end[w]].decode()
            assert reference(piece) == [word]
    assert len(set(of_hash.values())) == len(of_hash)


@pytest.mark.parametrize(
    ("one", "other"),
    [("$50,000", "50000"), ("It's 2.50!", "its 250"), ("half-hour", "half hour"), ("北京", "北 京"), ("CAFÉ", "café")],
)
def test_edits_that_do_not_count(one: str, other: str) -> None:
    folded = [
        contamination_words.fold(*string_buffers(pa.array([text], pa.large_string()))).hash.tolist()
        for text in (one, other)
    ]
    assert folded[0] == folded[1]
