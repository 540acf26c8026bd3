"""What is written through the buffer is what numpy joins; the sidecar has the digest of every block; bad positions are refused."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from triplane import block_writer
from triplane.block_writer import BLOCK_BYTES, BlockWriter
from triplane.errors import UsageError
from triplane.tokens import ShardWriter

PIECES = st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 9_000)), max_size=12)


def written(
    folder: Path, calls: list[list[tuple[int, int]]], values: np.ndarray, tail: list[int]
) -> tuple[bytes, bytes]:
    with ExitStack() as stack:
        writer = BlockWriter(stack, folder / "data", folder / "digests", values.dtype.str)
        for pieces in calls:
            starts = np.array([start for start, _ in pieces], np.int64)
            writer.write(values, starts, starts + [length for _, length in pieces], np.array(tail))
        writer.finish()
    return (folder / "data").read_bytes(), (folder / "digests").read_bytes()


@given(calls=st.lists(PIECES, max_size=3), tail=st.sampled_from([[], [7]]), dtype=st.sampled_from(["<u4", "|u1"]))
def test_equal_to_joining_the_pieces(calls: list[list[tuple[int, int]]], tail: list[int], dtype: str) -> None:
    values = np.arange(40_000).astype(dtype)
    expected = [np.append(values[a : a + n], tail).astype(dtype) for pieces in calls for a, n in pieces]
    data = np.concatenate([values[:0], *expected]).tobytes()
    with tempfile.TemporaryDirectory() as folder:
        found, digests = written(Path(folder), calls, values, tail)
    assert found == data
    blocks = [data[i : i + BLOCK_BYTES] for i in range(0, len(data), BLOCK_BYTES)]
    assert np.frombuffer(digests, "<u8").tolist() == [xxh3_64_intdigest(block) for block in blocks]


def test_a_tail_that_meets_a_full_buffer_is_not_lost(tmp_path: Path) -> None:
    size = block_writer.BUFFER_BYTES // 4
    values = np.zeros(size, np.uint32)
    found, digests = written(tmp_path, [[(0, size), (0, size - 1), (0, 3)]], values, [9])
    data = np.frombuffer(found, np.uint32)
    assert np.flatnonzero(data == 9).tolist() == [size, 2 * size, 2 * size + 4] and len(digests) == 8 * (2 * 64 + 1)


def test_pieces_are_the_documents_in_their_new_order(tmp_path: Path) -> None:
    ids, order = np.arange(10, dtype=np.uint32), np.array([2, 0, 1])
    starts, ends = np.array([0, 4, 4]), np.array([4, 4, 10])
    with ShardWriter(tmp_path, "part", 99, with_mask=True) as writer:
        names = ["c", "a", "b"]
        writer.add_pieces(ids, starts[order], ends[order], names, ["s"] * 3, [3, 1, 2], ids != 4)
        files = writer.close()
    assert files.mask is not None
    expected = [4, 5, 6, 7, 8, 9, 99, 0, 1, 2, 3, 99, 99]
    assert np.fromfile(files.tokens, "<u4").tolist() == expected
    assert np.fromfile(files.mask, np.bool_).tolist() == [False] + [True] * 12


@pytest.mark.parametrize(("starts", "ends"), [([-1], [2]), ([3], [2]), ([0], [11]), ([0], [1, 2])])
def test_pieces_outside_what_was_given_are_refused(tmp_path: Path, starts: list[int], ends: list[int]) -> None:
    with ShardWriter(tmp_path, "part", 99) as writer, pytest.raises(UsageError, match=r"shard part\.npy"):
        writer.add_pieces(np.arange(10), np.array(starts), np.array(ends), ["a"], ["s"], [1])
