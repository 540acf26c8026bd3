"""Clusters of near duplicates are those of union-find, whatever the division into parts, and each keeps one document by a total order."""

import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane import buckets, clusters, duplicates, quantiles, spark
from triplane import artifact, storage

Edge = tuple[int, int]
Candidate = tuple[int, str, float | None, list[int]]


def union_find(edges: Iterable[Edge]) -> dict[int, int]:
    """Node -> least node of its component, of every node that has an edge."""
    parent: dict[int, int] = {}

    def root(node: int) -> int:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for u, v in edges:
        low, high = sorted((root(u), root(v)))
        parent[high] = low
    return {node: root(node) for node in parent}


def stars_of(edges: Iterable[Edge]) -> set[Edge]:
    return {(node, least) for node, least in union_find(edges).items() if node != least}


def by_bands(candidates: Iterable[Candidate]) -> list[Edge]:
    """Every pair that shares a band: what the star edges must connect."""
    rows = list(candidates)
    return [
        (b[0], a[0])
        for i, a in enumerate(rows)
        for b in rows[i + 1 :]
        if a[1] == b[1] and any(x == y for x, y in zip(a[3], b[3], strict=False))
    ]


def run_sql(query: str, edges: set[Edge]) -> set[Edge]:
    """A step on another engine, so that hundreds of graphs take a second."""
    with sqlite3.connect(":memory:") as database:
        database.create_function("least", 2, min, deterministic=True)
        database.execute("CREATE TABLE edges (u INTEGER, v INTEGER)")
        database.executemany("INSERT INTO edges VALUES (?, ?)", sorted(edges))
        found = database.execute(query.format(edges="edges")).fetchall()
    assert all(u > v for u, v in found) and (query == clusters.LARGE_STAR or len(found) == len(set(found)))
    return set(found)


def alternate(
    edges: set[Edge], steps: tuple[str, ...] = (clusters.LARGE_STAR, clusters.SMALL_STAR)
) -> tuple[set[Edge], int]:
    for number in range(1, 100):
        before, after = edges, edges
        for step in steps:
            after = run_sql(step, after)
        if after == before:
            return after, number
        edges = after
    raise AssertionError("not stable after 99 rounds")


GRAPHS = st.sets(st.tuples(st.integers(0, 24), st.integers(0, 24)).filter(lambda edge: edge[0] > edge[1]), max_size=40)


@given(GRAPHS)
@settings(max_examples=150)
def test_alternating_stars_give_the_components_of_union_find(edges: set[Edge]) -> None:
    assert alternate(edges)[0] == stars_of(edges)


@given(GRAPHS)
@settings(max_examples=40)
def test_each_step_alone_keeps_the_components(edges: set[Edge]) -> None:
    for step in (clusters.LARGE_STAR, clusters.SMALL_STAR):
        assert stars_of(run_sql(step, edges)) == stars_of(edges)


def test_one_step_alone_would_not_end_in_stars() -> None:
    """Why there are two: a graph that each of them leaves as it is, though it is no star."""
    fork, chain = {(2, 0), (2, 1)}, {(1, 0), (2, 1)}
    assert run_sql(clusters.LARGE_STAR, fork) == fork != stars_of(fork)
    assert alternate(fork)[0] == stars_of(fork) and alternate(chain)[0] == stars_of(chain)


def test_a_long_path_takes_few_rounds() -> None:
    path = {(n + 1, n) for n in range(300)}
    stars, rounds = alternate(path)
    assert stars == {(n, 0) for n in range(1, 301)} and rounds <= 12


@given(st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 2**62)), unique=True, max_size=20), st.randoms())
def test_checksum_depends_on_the_edges_alone(edges: list[Edge], random: Any) -> None:
    def of(rows: list[Edge]) -> int:
        return clusters.checksum(pa.table([pa.array([row[k] for row in rows], pa.int64()) for k in (0, 1)], ["u", "v"]))

    shuffled = random.sample(edges, len(edges))
    half = len(edges) // 2
    assert of(shuffled) == of(edges) == of(shuffled[:half]) ^ of(shuffled[half:])
    if edges:
        assert of(edges[1:]) != of(edges)
        assert of([(edges[0][1] + 1, edges[0][0]), *edges[1:]]) != of(edges)


@pytest.fixture
def place(tmp_path: Path) -> Callable[[int], clusters.Store]:
    draft = artifact.begin(str(tmp_path), "selection", "near", inputs={}, recipe={}, stage_versions={})
    return lambda number: clusters.Store(draft, f"try{number}")


def stars_put(candidates: list[Candidate], place: clusters.Store, num_parts: int) -> clusters.Edges:
    """The star edges of the candidates in `num_parts` objects, as `duplicates.py` puts them."""
    rows = [
        (("ab".index(within) << 32) + band, value, node, number)
        for node, within, preference, bands in candidates
        for number in [preferred(preference)]
        for band, value in enumerate(bands)
    ]
    keys = np.array(rows, np.int64).reshape(-1, 4).T.view(np.uint64)
    parts: dict[int, list[bytes]] = {}
    for number, piece in buckets.by_hash(keys, num_parts):
        parts.setdefault(number, []).append(piece)
    return place.edges([duplicates._put_stars(place, number, pieces) for number, pieces in parts.items()])


def preferred(preference: float | None) -> int:
    missing = preference is None or np.isnan(preference)
    return clusters.NO_PREFERENCE if missing else int(quantiles.ordered_bits(np.array([preference]))[0])


def found(
    session: Any, candidates: list[Candidate], place: clusters.Store, settled_edges: int = clusters.SETTLED_EDGES
) -> tuple[clusters.Clusters, dict[int, int]]:
    """The clusters, and dropped node -> survivor."""
    edges = stars_put(candidates, place, 3)
    result = clusters.find(session, edges, place, settled_edges)
    rows = spark.collect(clusters.frame(session, result.dropped)) if result.dropped.objects else []
    assert len(rows) == result.dropped.rows
    return result, {row["u"]: row["v"] for row in rows}


def random_candidates(seed: int) -> list[Candidate]:
    """300 documents in two sets, four bands each, so few hashes that there are long chains and documents alone."""
    random = np.random.default_rng(seed)
    nodes = random.permutation(np.arange(300) * 7919 + (np.arange(300) % 5 << buckets.ROW_BITS)).tolist()
    return [
        (
            node,
            "ab"[number % 2],
            random.choice([0.25, 0.5, float("nan")]),
            (random.integers(0, 300, 4) * 4 + np.arange(4)).tolist(),
        )
        for number, node in enumerate(nodes)
    ]


def without_preference(candidates: list[Candidate]) -> list[Candidate]:
    return [(node, within, None, bands) for node, within, _, bands in candidates]


@pytest.mark.parametrize("settled_edges", [0, clusters.SETTLED_EDGES])
def test_sql_and_one_task_find_what_union_find_finds(
    session: Any, place: Callable[[int], clusters.Store], settled_edges: int
) -> None:
    candidates = without_preference(random_candidates(3))
    expected = dict(stars_of(by_bands(candidates)))
    assert 60 < len(expected) < 290 and len(set(expected.values())) > 5
    one, dropped = found(session, candidates, place(5), settled_edges)
    assert dropped == expected
    assert one.num_clusters == len(set(expected.values()))
    assert one.rounds == 0 if settled_edges else 2 <= one.rounds <= 8
    facts = {"documents": len(expected) + one.num_clusters, "clusters": one.num_clusters, "rounds": one.rounds}
    assert one.to_json() == facts


@pytest.mark.parametrize("settled_edges", [0, clusters.SETTLED_EDGES])
def test_the_highest_preference_survives_and_of_equals_the_first(
    session: Any, place: Callable[[int], clusters.Store], settled_edges: int
) -> None:
    candidates = random_candidates(4)
    components = union_find(by_bands(candidates))
    preference = {node: -1.0 if np.isnan(value) else value for node, _, value, _ in candidates}
    members = {least: [node for node, other in components.items() if other == least] for least in components.values()}
    best = {least: min(nodes, key=lambda node: (-preference[node], node)) for least, nodes in members.items()}
    expected = {node: best[least] for node, least in components.items() if node != best[least]}
    assert any(best[least] != least for least in best)
    assert found(session, candidates, place(2), settled_edges)[1] == expected


def test_nothing_alike_is_nothing_dropped_and_nothing_is_left_behind(
    session: Any, place: Callable[[int], clusters.Store], tmp_path: Path
) -> None:
    # equal hashes in different bands, or in different sets, do not meet; no bands (no words), no cluster
    apart: list[Candidate] = [
        (1, "a", None, [5, 6]),
        (2, "a", None, [6, 5]),
        (3, "b", None, [5, 6]),
        (4, "a", None, []),
        (5, "a", None, []),
    ]
    result, dropped = found(session, apart, place(1))
    clusters.remove(result.dropped)
    assert dropped == {} and result.to_json() == {"documents": 0, "clusters": 0, "rounds": 0}
    for settled_edges in (0, clusters.SETTLED_EDGES):
        together, dropped = found(session, [*apart, (9, "a", None, [0, 5])], place(1), settled_edges)
        assert dropped == {9: 2}
        assert len(storage.list_names(str(tmp_path))) == len(together.dropped.objects) == 1
        clusters.remove(together.dropped)
    assert storage.list_names(str(tmp_path)) == []
