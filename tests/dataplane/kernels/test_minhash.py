"""MinHash: equal to a slow reference, a fair estimate of Jaccard similarity, blind to case, punctuation and spacing."""

import dataclasses
import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.kernels.minhash import CHUNK_BYTES, MinhashParams, band_hashes, permutations, signatures

PARAMS = MinhashParams(bands=14, rows=8, shingle_words=5, seed=1)
MASK = (1 << 64) - 1


def sign(texts: list[str], params: MinhashParams = PARAMS) -> tuple[np.ndarray, np.ndarray]:
    array = pa.array(texts, pa.large_string())
    offsets = np.frombuffer(array.buffers()[1], np.int64)[: len(texts) + 1]
    return signatures(offsets, np.frombuffer(array.buffers()[2] or b"", np.uint8), params)


def reference_words(text: str) -> list[bytes]:
    lowered = bytes(b + 32 if 65 <= b <= 90 else b for b in text.encode())
    return re.findall(rb"[0-9a-z\x80-\xff]+", lowered)


def reference_shingles(text: str, width: int, zero_numbers: bool = False) -> list[int]:
    hashes = []
    for word in reference_words(text):
        word = b"0" if zero_numbers and word.isdigit() else word
        h = 14695981039346656037
        for byte in word:
            h = (h ^ byte) * 1099511628211 & MASK
        hashes.append(h)
    width = min(width, len(hashes))
    shingles = []
    for i in range(len(hashes) - width + 1 if hashes else 0):
        h = width
        for word_hash in hashes[i : i + width]:
            h = (h * 0x9E3779B97F4A7C15 + word_hash) & MASK
        h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9 & MASK
        h = (h ^ h >> 27) * 0x94D049BB133111EB & MASK
        shingles.append((h ^ h >> 31) >> 32)
    return shingles


def reference_signature(text: str, params: MinhashParams) -> list[int]:
    shingles = reference_shingles(text, params.shingle_words, params.zero_numbers)
    return [
        min(((int(a) * x + int(b)) & 0xFFFFFFFF for x in shingles), default=0xFFFFFFFF)
        for a, b in zip(*permutations(params), strict=True)
    ]


@given(st.lists(st.text(max_size=80), max_size=4))
def test_equals_the_reference(texts: list[str]) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    signature, num_shingles = sign(texts)
    assert num_shingles.tolist() == [len(reference_shingles(text, 5)) for text in texts]
    assert signature.tolist() == [reference_signature(text, PARAMS) for text in texts]


@given(st.lists(st.text("0123456789 a/:x٣", max_size=60), max_size=4))
def test_numbers_as_zero_equal_the_reference(texts: list[str]) -> None:
    params = dataclasses.replace(PARAMS, zero_numbers=True)
    assert sign(texts, params)[0].tolist() == [reference_signature(text, params) for text in texts]


@pytest.mark.parametrize("between", [" ", "-", "", " é", "\n\n"])
def test_a_long_document_in_chunks_is_the_whole_document(between: str) -> None:
    random = np.random.default_rng(5)
    words = [str(number) for number in random.integers(0, 10**9, 90_000)]
    texts = [between.join(words), "short one", "x" * (CHUNK_BYTES + 5) + " a b c d", " " * (2 * CHUNK_BYTES) + "a b"]
    few = dataclasses.replace(PARAMS, bands=1, rows=2)
    signature, num_shingles = sign(texts, few)
    assert len(texts[0]) > 3 * CHUNK_BYTES
    assert num_shingles.tolist() == [len(reference_shingles(text, 5)) for text in texts]
    assert signature.tolist() == [reference_signature(text, few) for text in texts]


def test_numbers_matter_unless_they_are_zero() -> None:
    texts = [
        "add 12 and 123456789012 to get 7 in the end",
        "add 5 and 1 to get 99 in the end",
        "add 5a and 1 to get 99 in the end",
    ]
    (one, other, word), _ = sign(texts, dataclasses.replace(PARAMS, zero_numbers=True))
    assert one.tolist() == other.tolist() != word.tolist()
    assert sign(texts)[0][0].tolist() != sign(texts)[0][1].tolist()


def test_case_punctuation_and_spacing_do_not_matter() -> None:
    signature, _ = sign(
        [
            "The quick (brown) fox, jumps over it.",
            "the QUICK brown\n\nfox jumps -- over it",
            "the quick brown fox jumps over",
        ]
    )
    assert signature[0].tolist() == signature[1].tolist()
    assert signature[0].tolist() != signature[2].tolist()


@pytest.mark.parametrize("changed", [0.05, 0.2, 0.5])
def test_estimates_jaccard_within_the_binomial_limit(changed: float) -> None:
    random = np.random.default_rng(7)
    params = MinhashParams(bands=64, rows=16, shingle_words=1, seed=3)
    differences = []
    for _ in range(30):
        words = [f"w{n}" for n in random.permutation(4000)[:400]]
        other = [f"x{i}" if random.random() < changed else word for i, word in enumerate(words)]
        signature, _ = sign([" ".join(words), " ".join(other)], params)
        jaccard = len(set(words) & set(other)) / len(set(words) | set(other))
        differences.append(float((signature[0] == signature[1]).mean()) - jaccard)
    limit = (0.25 / 1024) ** 0.5
    assert abs(np.mean(differences)) < 3 * limit / 30**0.5
    assert np.std(differences) < 1.5 * limit


def test_bands_are_equal_exactly_where_their_rows_are() -> None:
    signature = np.arange(2 * 112, dtype=np.uint32).reshape(2, 112)
    signature[1, 8:16] = signature[0, 8:16]
    bands = band_hashes(signature, PARAMS)
    assert (bands[0] == bands[1]).tolist() == [band == 1 for band in range(14)]
    same_rows = band_hashes(np.zeros((1, 112), np.uint32), PARAMS)[0]
    assert len(set(same_rows.tolist())) == 14  # equal rows in different bands do not meet


def test_share_probability() -> None:
    assert PARAMS.share_probability(0.8) == pytest.approx(1 - (1 - 0.8**8) ** 14)
    assert PARAMS.share_probability(0.0) == 0.0
