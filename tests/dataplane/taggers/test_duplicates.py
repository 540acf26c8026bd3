"""Text hash and MinHash columns: what a join on them finds."""

import numpy as np
import pytest
import xxhash

from dataplane import documents
from dataplane.taggers.table import TAGGERS
from triplane.errors import TriplaneError
from triplane.recipe import Strict

MINHASH = {"bands": 14, "rows": 8, "shingle_words": 5, "seed": 7}


def batch(texts: list[str]) -> documents.Batch:
    return documents.make_batch(range(len(texts)), ["x"] * len(texts), texts)


def test_text_hash_is_xxh3_128_in_two_halves() -> None:
    texts = ["", "a", "ä" * 1000, "a"]
    rows = TAGGERS["text_hash"].tag(batch(texts), TAGGERS["text_hash"].params()).to_pylist()
    for text, row in zip(texts, rows, strict=True):
        halves = [int(np.int64(row[name]).view(np.uint64)) for name in ("text_hash_high", "text_hash_low")]
        assert halves[0] << 64 | halves[1] == xxhash.xxh3_128_intdigest(text.encode())
    assert rows[1] == rows[3] != rows[0]


def test_minhash_bands_are_lists_and_empty_without_words() -> None:
    one = TAGGERS["minhash"]
    words = [f"word{i}" for i in range(300)]
    texts = [" ".join(words), "", " ".join([*words[:-1], "other"]), "unlike all the others in every word", "!?"]
    columns = one.tag(batch(texts), one.params(**MINHASH))
    assert columns.schema == one.columns(None)
    bands = columns["minhash_bands"].to_pylist()
    assert [len(row) for row in bands] == [14, 0, 14, 14, 0]
    assert len(set(bands[0]) & set(bands[2])) >= 10 and not set(bands[0]) & set(bands[3])
    assert columns["minhash_shingles"].to_pylist() == [296, 0, 296, 3, 0]
    assert one.tag(batch([]), one.params(**MINHASH)).num_rows == 0


def test_numbers_as_zero_are_asked_for() -> None:
    one, texts = TAGGERS["minhash"], ["add 12 to 3 and then 44", "add 1 to 2 and then 3"]
    kept, zero = (
        one.tag(batch(texts), one.params(**MINHASH, **more)).to_pylist() for more in ({}, {"numbers": "zero"})
    )
    assert zero[0] == zero[1] and kept[0] != kept[1]


def test_minhash_has_no_hidden_defaults() -> None:
    with pytest.raises((ValueError, TriplaneError)):
        TAGGERS["minhash"].params(bands=14)
    assert issubclass(TAGGERS["minhash"].params, Strict)
