"""Connected components by union-find, in memory: edges -> the least node of each node's component.

Source: Tarjan and van Leeuwen 1984, "Worst-case analysis of set union algorithms" (path halving; the lesser root stays).
"""

import numba
import numpy as np


def stars(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges int64 [m] -> (node, least node of its component), int64 [k] each: every node that is not the least of its own, ascending."""
    nodes, ends = np.unique(np.concatenate([u, v]), return_inverse=True)
    roots = _roots(ends[: len(u)], ends[len(u) :], len(nodes))
    others = np.flatnonzero(roots != np.arange(len(nodes)))
    return nodes[others], nodes[roots[others]]


@numba.njit(cache=True)
def _roots(u, v, count):  # type: ignore[no-untyped-def]
    parent = np.arange(count)
    for edge in range(len(u)):
        a, b = _root(parent, u[edge]), _root(parent, v[edge])
        if a < b:
            parent[b] = a
        else:
            parent[a] = b
    for node in range(count):
        parent[node] = _root(parent, node)
    return parent


@numba.njit(cache=True)
def _root(parent, node):  # type: ignore[no-untyped-def]
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node
