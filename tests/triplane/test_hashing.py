"""Keys, chances and permutations: fixed values (they name stored data), uniformity, and bijections."""

import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triplane import hashing
from triplane.hashing import Feistel


def test_values_are_those_of_stored_data() -> None:
    """These name artifacts, choose held-out documents and order mixes: a change here changes all that was ever made."""
    assert hashing.document_key("web", "part-0.jsonl.zst", 7) == 0x3EC68972FDEE8C17F770A311ACE7DA0
    assert hashing.identity({"b": [1, 2.5, None], "a": "é"}) == (
        "d764fee2563da33e3d57334755404e635da33c995824b0adfabc4b6e1af4f608"
    )
    assert hashing.u64(1, np.arange(3, dtype=np.uint64)).tolist() == [
        6791897765849424158,
        16860738450190168606,
        13608149317741381227,
    ]
    assert hashing.unit(1, 5) == 0.6924455848746632
    assert Feistel(10, 1).at(np.arange(10)).tolist() == [1, 0, 5, 8, 6, 3, 4, 9, 7, 2]
    assert Feistel(10**12, 1).at(np.arange(3)).tolist() == [600477016035, 593842985294, 476435909255]


def test_document_keys_are_distinct_by_each_part() -> None:
    keys = {hashing.document_key(s, p, r) for s in ("a", "ab") for p in ("c", "bc") for r in range(3)}
    assert len(keys) == 12 and max(keys) > 1 << 64


def test_identity_is_of_the_value_and_not_of_its_spelling() -> None:
    assert hashing.identity({"a": 1, "b": 2}) == hashing.identity({"b": 2, "a": 1})
    assert hashing.identity({"a": (1, 2)}) == hashing.identity({"a": [1, 2]})
    assert hashing.identity({"a": 1}) != hashing.identity({"a": "1"})
    with pytest.raises(ValueError):
        hashing.identity({"a": math.nan})


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert hashing.sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@given(seed=st.integers(0, 2**64 - 1), key=st.integers(0, 2**64 - 1))
def test_one_key_and_many_keys_agree(seed: int, key: int) -> None:
    u = hashing.unit(seed, key)
    assert 0.0 <= u < 1.0
    assert u == hashing.units(seed, np.array([key], np.uint64))[0]


def test_chances_are_uniform_and_independent_of_the_seed() -> None:
    keys = np.arange(100_000, dtype=np.uint64)
    first, second = hashing.units(1, keys), hashing.units(2, keys)
    counts = np.histogram(first, bins=100, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 160  # chi-square, 99 degrees of freedom: p = 1e-4
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.015
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.015


def test_wide_keys_and_strings_are_folded() -> None:
    wide = hashing.document_key("a", "b", 1)
    assert hashing.unit(1, wide) == hashing.unit(1, hashing.fold(wide)) != hashing.unit(1, wide & (2**64 - 1))
    assert hashing.unit(1, "a") != hashing.unit(1, "b")
    with pytest.raises(ValueError, match="128-bit"):
        hashing.unit(1, -1)


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1))
def test_feistel_is_a_bijection(size: int, seed: int) -> None:
    assert np.array_equal(np.sort(Feistel(size, seed).at(np.arange(size))), np.arange(size))


@given(size=st.integers(1, 2**62), seed=st.integers(0, 2**64 - 1), data=st.data())
def test_feistel_stays_in_range_and_is_one_to_one_at_any_size(size: int, seed: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, size - 1), unique=True, max_size=50))
    images = Feistel(size, seed).at(np.array(positions, np.int64))
    assert images.dtype == np.int64
    assert len(set(images.tolist())) == len(positions)
    assert all(0 <= image < size for image in images.tolist())


def test_feistel_at_one_position_is_feistel_at_many() -> None:
    order = Feistel(1_000_003, 9)
    many = order.at(np.arange(1000))
    assert [int(order.at(np.array([i]))[0]) for i in range(0, 1000, 97)] == many[::97].tolist()
    assert not np.array_equal(many, Feistel(1_000_003, 10).at(np.arange(1000)))


@pytest.mark.parametrize("size", [6, 12])
def test_feistel_sends_each_position_everywhere_alike(size: int) -> None:
    """Chi-square of where each position lands over 5,000 seeds, with (size - 1)^2 degrees of freedom."""
    counts = np.zeros((size, size))
    for seed in range(5000):
        counts[np.arange(size), Feistel(size, seed).at(np.arange(size))] += 1
    freedom = (size - 1) ** 2
    assert ((counts - 5000 / size) ** 2 / (5000 / size)).sum() < freedom + 4 * math.sqrt(2 * freedom)


def test_feistel_leaves_no_order() -> None:
    size = 10**9 + 7
    images = Feistel(size, 3).at(np.arange(200_000)) / size
    assert abs(np.corrcoef(np.arange(200_000), images)[0, 1]) < 0.01
    assert abs(np.corrcoef(images[1:], images[:-1])[0, 1]) < 0.01
    counts = np.histogram(images, bins=100, range=(0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 160


def test_feistel_needs_no_memory_for_its_size() -> None:
    started = time.perf_counter()
    order = Feistel(2**62, 1)
    assert time.perf_counter() - started < 1.0
    assert len(set(order.at(np.array([0, 1, 2**62 - 1])).tolist())) == 3


def test_positions_outside_and_wrong_sizes_are_refused() -> None:
    for positions in ([-1], [10]):
        with pytest.raises(IndexError, match=r"not all in \[0, 10\)"):
            Feistel(10, 1).at(np.array(positions))
    for size in (0, -1, 2**62 + 1):
        with pytest.raises(ValueError):
            Feistel(size, 1)
    assert Feistel(10, 1).at(np.array([], np.int64)).size == 0
