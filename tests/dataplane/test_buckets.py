"""Keys with equal hashes meet, in whatever pieces they come, and each bucket is a star around its least node."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dataplane import buckets

KEYS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 2**63, 2**64 - 1]), st.integers(0, 30), st.just(7)))


def columns(rows: list[tuple[int, ...]], width: int = 4) -> np.ndarray:
    return np.array(rows, np.uint64).reshape(-1, width).T


def slow(rows: list[tuple[int, ...]]) -> set[tuple[int, int]]:
    """Each node of a bucket to the least of it."""
    return {
        (node, least)
        for high, low, node, _ in rows
        for least in [min(other[2] for other in rows if other[:2] == (high, low))]
        if node != least
    }


@given(KEYS, st.integers(1, 5), st.integers(1, 9))
def test_edges_are_the_same_in_any_parts_and_pieces(rows: list[tuple[int, ...]], num_parts: int, size: int) -> None:
    parts: dict[int, list[bytes]] = {}
    for start in range(0, len(rows), size):
        for part, piece in buckets.by_hash(columns(rows[start : start + size]), num_parts):
            assert 0 <= part < num_parts and len(piece) > 0
            parts.setdefault(part, []).append(piece)
    found = [buckets.edges(buckets.joined(pieces, 4)) for pieces in parts.values()]
    of_parts = [set(zip(*part[:2].tolist(), strict=True)) for part in found]
    assert set().union(*of_parts) == slow(rows)
    assert all(len(pairs) == part.shape[1] for pairs, part in zip(of_parts, found, strict=True))  # none twice
    assert all((part[2:] == 7).all() for part in found)


def test_hashes_that_collide_when_mixed_stay_apart() -> None:
    """The quick test for what occurs twice looks at one mixed hash; the exact one at both halves."""
    mixed = buckets._mixed(columns([(1, 0, 0, 0), (2, 0, 0, 0)]))
    low = int(mixed[0] ^ mixed[1])
    keys = columns([(1, 0, 10, 0), (2, low, 20, 0), (2, low, 30, 0)])
    assert len(set(buckets._mixed(keys).tolist())) == 1
    assert buckets.edges(keys)[:2].T.tolist() == [[30, 20]]


def test_a_node_is_its_shard_and_its_row() -> None:
    nodes = buckets.nodes(3, np.array([0, 5]))
    assert nodes.tolist() == [3 << 32, (3 << 32) + 5] and buckets.shards(nodes).tolist() == [3, 3]
