"""Words and lines are Python's: `str.split`, `str.splitlines`, for every character there is."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from dataplane import documents
from dataplane.kernels import words

SPACES = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2005\u200a\u2028\u2029\u202f\u205f\u3000"
TEXTS = st.lists(
    st.sampled_from(["a", "bcdefghi", "é", "中", "😀", "\u200b", "\u2010", "\u3001", *SPACES])
    | st.characters(codec="utf-8"),
    max_size=60,
)


def check(texts: list[str]) -> None:
    offsets, data = documents.string_buffers(pa.array(texts, pa.large_string()))
    found = words.split(offsets, data)
    assert found.lines.tolist() == [len(text.splitlines()) for text in texts]
    for document, text in enumerate(texts):
        numbers = range(found.first[document], found.first[document + 1])
        assert [bytes(data[found.start[w] : found.end[w]]).decode() for w in numbers] == text.split()
        lines = [line.split() for line in text.splitlines() if line.split()]
        begins = [w - found.first[document] for w in numbers if found.begins_line[w]]
        assert begins == np.cumsum([0, *map(len, lines)])[:-1].tolist() if lines else begins == []


@given(st.lists(TEXTS.map("".join), max_size=5))
def test_words_and_lines_are_those_of_python(texts: list[str]) -> None:
    check(texts)


def test_every_character_alone_and_between_letters() -> None:
    everything = [chr(code) for code in range(0x3100) if not 0xD800 <= code < 0xE000]
    check([f"a{character}b" for character in everything])
    check(everything)


def test_more_words_than_expected_of_so_many_bytes() -> None:
    check(["a " * 10_000, "b\r\n" * 10_000])


def test_real_text(shared: Path) -> None:
    for source in ("code", "web_noisy", "arxiv_latex"):
        [batch] = documents.read(documents.shards(str(shared / "data/corpus" / source / "part-00003.jsonl.zst"))[0])
        check(batch.text.to_pylist())
