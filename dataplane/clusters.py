"""Clusters of near duplicates: the connected components of documents that share a MinHash band, and who survives in each.

Star edges (u, v and their preferences; `duplicates.py` finds them) -> edges from each document to drop to the survivor of its cluster. Up to
`SETTLED_EDGES` one task joins them in memory; more than that, large-star and small-star steps in Spark SQL alternate until nothing changes and leave
every cluster as a star around its least node, whatever the partitions. Both give the same. Edges lie in Parquet objects, so that no plan grows and no
edge comes to the driver.

Source: Kiveris, Lattanzi, Mirrokni, Rastogi, Vassilvitskii 2014, "Connected components in MapReduce and beyond", algorithms 1 and 2.
"""

import functools
import tempfile
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataplane import spark, spark_worker
from dataplane.kernels import components as kernel
from triplane import artifact, hashing, storage

SETTLED_EDGES = 4_000_000  # 0.4 GB while they are joined
PART_ROWS = 1_000_000  # edges to a part
EDGES = {"u": "bigint", "v": "bigint"}
PREFERRED = {**EDGES, "of_u": "bigint", "of_v": "bigint"}
NO_PREFERENCE = -(2**63)

# Edges are u > v. No dialect but `least`, so that a test can run the steps on another engine. What LARGE_STAR gives twice, SMALL_STAR gives once.
LARGE_STAR = """
    WITH sides AS (
        SELECT CASE WHEN side = 0 THEN u ELSE v END AS a, CASE WHEN side = 0 THEN v ELSE u END AS b
        FROM {edges} CROSS JOIN (SELECT 0 AS side UNION ALL SELECT 1 AS side) AS both),
    stars AS (SELECT a, b, least(a, min(b) OVER (PARTITION BY a)) AS least_node FROM sides)
    SELECT b AS u, least_node AS v FROM stars WHERE b > a"""
SMALL_STAR = """
    WITH stars AS (SELECT u, v, min(v) OVER (PARTITION BY u) AS least_node FROM {edges})
    SELECT v AS u, least_node AS v FROM stars WHERE v <> least_node
    UNION SELECT u, least_node AS v FROM stars"""
OTHERS = """
    WITH members AS (SELECT u AS node, v AS cluster FROM {stars} UNION ALL SELECT DISTINCT v, v FROM {stars}),
    preferences AS (SELECT u AS node, of_u AS preference FROM {edges} UNION SELECT v, of_v FROM {edges}),
    survivors AS (
        SELECT cluster, max(struct(preference, -members.node AS earliest)).earliest AS earliest
        FROM members JOIN preferences ON members.node = preferences.node GROUP BY cluster)
    SELECT node AS u, -earliest AS v FROM members JOIN survivors USING (cluster) WHERE node <> -earliest"""


@dataclass(frozen=True)
class Edges:
    """Edges in Parquet objects (URL, bytes); `checksum` depends on which edges there are and not on their order."""

    objects: tuple[tuple[str, int], ...]
    rows: int
    checksum: int


@dataclass(frozen=True)
class Store:
    """Where edges lie while they are needed: in an artifact's folder, apart for each attempt. What a kill leaves, `triplane gc` removes."""

    draft: artifact.Draft
    attempt: str

    def put(self, frame: Any, stem: str, num_rows: int) -> Edges:
        """Writes a frame (u, v) of about `num_rows`."""
        num_parts = 1 + num_rows // PART_ROWS
        part = f"CAST(pmod(xxhash64(u), {num_parts}) AS int) AS shard"
        write = functools.partial(_write_part, self, stem)
        placed = frame.selectExpr(part, "u AS row", "v")
        return self.edges(spark.write_by_shard(placed, write, num_parts, num_rows))

    def clear(self) -> None:
        """Deletes what is left of this attempt."""
        folder = storage.join(self.draft.url, f"near-{self.attempt}")
        for name in storage.list_names(folder):
            storage.delete(storage.join(folder, name))

    def edges(self, results: Iterable[dict[str, Any]]) -> Edges:
        """What calls of `put_table` in workers gave, as one set of edges."""
        results = list(results)
        objects = tuple((storage.join(self.draft.url, one["name"]), int(one["bytes"])) for one in results)
        sums = (int(one["checksum"]) for one in results)
        return Edges(
            objects,
            sum(int(one["rows"]) for one in results),
            functools.reduce(lambda left, right: left ^ right, sums, 0),
        )

    def put_table(self, table: pa.Table, stem: str, number: int) -> dict[str, Any]:
        """Writes one part, in a worker; the result says what."""
        with tempfile.TemporaryDirectory(prefix="triplane-") as folder:
            path = Path(folder) / "edges.parquet"
            spark_worker.write_parquet(table, path)
            name = f"near-{self.attempt}/{stem}/part-{number:05d}"
            entry = self.draft.put_file(path, name, ".parquet", rows=table.num_rows)
        return {"name": entry.name, "bytes": entry.bytes, "rows": table.num_rows, "checksum": checksum(table)}


@dataclass(frozen=True)
class Clusters:
    """`dropped`: u is a document to drop, v the survivor of its cluster. rounds: of SQL; 0 when one task settled them."""

    dropped: Edges
    num_clusters: int
    rounds: int

    def to_json(self) -> dict[str, int]:
        """For the selection's metadata: documents in clusters, clusters, rounds until stable."""
        return {
            "documents": self.dropped.rows + self.num_clusters,
            "clusters": self.num_clusters,
            "rounds": self.rounds,
        }


def store(draft: artifact.Draft) -> Store:
    """A place for edges."""
    return Store(draft, uuid.uuid4().hex[:12])


def frame(session: Any, edges: Edges, columns: dict[str, str] = EDGES) -> Any:
    """A DataFrame (u, v), or of `PREFERRED`."""
    return spark.read_objects(session, edges.objects, columns).select(*columns)


def remove(edges: Edges) -> None:
    """Deletes what was put."""
    for url, _ in edges.objects:
        storage.delete(url)


def find(session: Any, edges: Edges, place: Store, settled_edges: int = SETTLED_EDGES) -> Clusters:
    """Clusters of star edges (`PREFERRED`), which are taken away. `remove` what it returns after use.

    The survivor has the highest preference, `NO_PREFERENCE` lowest; of equals it is the least node.
    """
    if not edges.rows:
        return Clusters(edges, 0, 0)
    if edges.rows <= settled_edges:
        task = {"objects": [url for url, _ in edges.objects]}
        found = spark.map_shards(session, functools.partial(_settle, place), [task], [1])[0]
        remove(edges)
        return Clusters(place.edges([found]), int(found["clusters"]), 0)
    stars, rounds = components(session, edges, place)
    counted = spark.collect(session.sql("SELECT count(DISTINCT v) AS n FROM {stars}", stars=frame(session, stars)))
    others = session.sql(OTHERS, stars=frame(session, stars), edges=frame(session, edges, PREFERRED))
    dropped = place.put(others, "dropped", stars.rows)
    remove(stars)
    remove(edges)
    return Clusters(dropped, int(counted[0]["n"]), rounds)


def components(session: Any, edges: Edges, place: Store) -> tuple[Edges, int]:
    """Edges u > v -> an edge from each node of a component to its least node, and the rounds that took."""
    rounds, standing = 0, edges
    while True:
        rounds += 1
        large = session.sql(LARGE_STAR, edges=frame(session, standing))
        after = place.put(session.sql(SMALL_STAR, edges=large), f"round-{rounds:03d}", standing.rows)
        stable = (after.rows, after.checksum) == (standing.rows, standing.checksum)
        if rounds > 1:
            remove(standing)
        standing = after
        if stable:
            return standing, rounds


def survivors(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Edges (`PREFERRED`) in memory -> (document to drop, survivor of its cluster), int64 [k] each, ascending."""
    u, v, of_u, of_v = (table.column(name).to_numpy() for name in PREFERRED)
    node, least = kernel.stars(u, v)
    firsts = np.unique(least)
    member, cluster = np.concatenate([node, firsts]), np.concatenate([least, firsts])
    ends, position = np.unique(np.concatenate([u, v]), return_index=True)
    preference = np.concatenate([of_u, of_v])[position][np.searchsorted(ends, member)]
    order = np.lexsort((member, ~preference, cluster))  # ~ turns the order of integers round, the lowest too
    member, cluster = member[order], cluster[order]
    is_best = np.ones(len(member), bool)
    is_best[1:] = cluster[1:] != cluster[:-1]
    best = member[is_best][np.cumsum(is_best) - 1] if len(member) else member
    dropped = np.flatnonzero(member != best)
    dropped = dropped[np.argsort(member[dropped])]
    return member[dropped], best[dropped]


def _settle(place: Store, task: dict[str, Any]) -> dict[str, Any]:
    """The drops of all edges, as one part."""
    tables = [pq.read_table(pa.BufferReader(storage.read(url))) for url in task["objects"]]
    dropped, survivor = survivors(pa.concat_tables(tables))
    written = place.put_table(pa.table([dropped, survivor], list(EDGES)), "dropped", 0)
    return {**written, "clusters": len(np.unique(survivor))}


def _write_part(place: Store, stem: str, number: int, rows: pa.Table) -> dict[str, Any]:
    table = pa.table([rows.column("row").combine_chunks(), rows.column("v").combine_chunks()], list(EDGES))
    return place.put_table(table, stem, number)


def checksum(table: pa.Table) -> int:
    """An xor over the edges' hashes, the same in any order and any division into parts."""
    u, v = (table.column(name).to_numpy().view(np.uint64) for name in EDGES)
    return int(np.bitwise_xor.reduce(hashing.u64(1, hashing.u64(0, u) + v), initial=np.uint64(0)))
