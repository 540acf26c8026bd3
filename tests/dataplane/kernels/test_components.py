"""Union-find gives each node the least node that it is linked to."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dataplane.kernels import components


def slow(edges: list[tuple[int, int]]) -> dict[int, int]:
    """Least nodes handed along edges until nothing changes."""
    least = {node: node for edge in edges for node in edge}
    while True:
        before = dict(least)
        for u, v in edges:
            least[u] = least[v] = min(least[u], least[v])
        if least == before:
            return {node: low for node, low in least.items() if node != low}


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=30), st.integers(0, 2**58))
def test_every_node_is_given_the_least_of_its_component(edges: list[tuple[int, int]], offset: int) -> None:
    moved = [(u * 7 + offset, v * 7 + offset) for u, v in edges]
    u, v = (np.array([edge[side] for edge in moved], np.int64) for side in (0, 1))
    node, least = components.stars(u, v)
    assert dict(zip(node.tolist(), least.tolist(), strict=True)) == slow(moved)
    assert (np.diff(node) > 0).all()


def test_a_long_path_ends_at_its_least_node() -> None:
    u = np.arange(1, 100_001)
    node, least = components.stars(u, u - 1)
    assert len(node) == 100_000 and not least.any()
