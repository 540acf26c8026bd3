"""Clusters of near duplicates: the connected components of documents that share a MinHash band, and who survives in each.

Candidates (node, within, preference, minhash_bands) -> the nodes to drop. A node is a document as one bigint, its document shard's number
above its row, so the least node of a cluster is its first document. Each bucket (within, band, hash) gives star edges to its least node, never
pairs; large-star and small-star steps alternate until nothing changes and leave every cluster as a star around its least node, whatever the
partitions. Between rounds edges lie in Parquet objects, so that no plan grows and no edge comes to the driver.

Source: Kiveris, Lattanzi, Mirrokni, Rastogi, Vassilvitskii 2014, "Connected components in MapReduce and beyond", algorithms 1 and 2.
"""

import functools
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataplane import spark, spark_worker
from triplane import artifact, hashing, storage

ROW_BITS = 32
NODE = f"(shiftleft(CAST(shard AS bigint), {ROW_BITS}) + row)"
PART_ROWS = 1_000_000  # documents to a part of the edges: most have no near duplicate, so a part is far smaller
EDGES = {"u": "bigint", "v": "bigint"}

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
STAR_EDGES = """
    WITH bands AS (SELECT within, node, posexplode(minhash_bands) AS (band, hash) FROM {candidates}),
    buckets AS (SELECT node, min(node) OVER (PARTITION BY within, band, hash) AS first FROM bands)
    SELECT DISTINCT node AS u, first AS v FROM buckets WHERE node <> first"""
OTHERS = """
    WITH members AS (SELECT u AS node, v AS cluster FROM {stars} UNION ALL SELECT DISTINCT v, v FROM {stars}),
    survivors AS (
        SELECT cluster, max(struct(preference, -members.node AS earliest)).earliest AS earliest
        FROM members JOIN {candidates} AS candidates ON members.node = candidates.node GROUP BY cluster)
    SELECT node AS u, -earliest AS v FROM members JOIN survivors USING (cluster) WHERE node <> -earliest"""


@dataclass(frozen=True)
class Edges:
    """Edges in Parquet objects (URL, bytes); `checksum` depends on which edges there are and not on their order."""

    objects: tuple[tuple[str, int], ...]
    rows: int
    checksum: int


@dataclass(frozen=True)
class Store:
    """Where the edges between rounds lie: in an artifact's folder, apart for each attempt. What a crash leaves, `triplane gc` removes."""

    draft: artifact.Draft
    attempt: str
    num_parts: int

    def put(self, frame: Any, stem: str) -> Edges:
        """Writes a frame (u, v)."""
        part = f"CAST(pmod(xxhash64(u), {self.num_parts}) AS int) AS shard"
        write = functools.partial(_write_part, self.draft, f"near-{self.attempt}/{stem}")
        placed = frame.selectExpr(part, "u AS row", "v")
        results = spark.write_by_shard(placed, write, self.num_parts, self.num_parts * PART_ROWS)
        objects = tuple((storage.join(self.draft.url, result["name"]), int(result["bytes"])) for result in results)
        checksum = functools.reduce(lambda left, right: left ^ right, (int(r["checksum"]) for r in results), 0)
        return Edges(objects, sum(int(result["rows"]) for result in results), checksum)


@dataclass(frozen=True)
class Clusters:
    """`dropped`: u is a document to drop, v the survivor of its cluster."""

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


def store(draft: artifact.Draft, num_rows: int) -> Store:
    """A place for the edges among `num_rows` documents."""
    return Store(draft, uuid.uuid4().hex[:12], 1 + num_rows // PART_ROWS)


def frame(session: Any, edges: Edges) -> Any:
    """A DataFrame (u, v)."""
    return spark.read_objects(session, edges.objects, EDGES).select("u", "v")


def remove(edges: Edges) -> None:
    """Deletes what `put` wrote."""
    for url, _ in edges.objects:
        storage.delete(url)


def find(session: Any, candidates: Any, place: Store, by_preference: bool) -> Clusters:
    """Clusters of a DataFrame (node bigint, within string, preference double, minhash_bands array<bigint>). `remove` what it returns after use.

    The survivor has the highest preference, null and NaN lowest; of equals, and without `by_preference`, it is the least node.
    """
    edges = place.put(session.sql(STAR_EDGES, candidates=candidates), "stars")
    stars, rounds = components(session, edges, place)
    if not stars.rows:
        return Clusters(stars, 0, rounds)
    counted = spark.collect(session.sql("SELECT count(DISTINCT v) AS n FROM {stars}", stars=frame(session, stars)))
    if not by_preference:
        return Clusters(stars, int(counted[0]["n"]), rounds)
    dropped = place.put(session.sql(OTHERS, stars=frame(session, stars), candidates=_ordered(candidates)), "dropped")
    remove(stars)
    return Clusters(dropped, int(counted[0]["n"]), rounds)


def components(session: Any, edges: Edges, place: Store) -> tuple[Edges, int]:
    """Edges u > v -> an edge from each node of a component to its least node, and the rounds that took. Takes `edges` away."""
    rounds, stable = 0, edges.rows == 0
    while not stable:
        rounds += 1
        large = session.sql(LARGE_STAR, edges=frame(session, edges))
        after = place.put(session.sql(SMALL_STAR, edges=large), f"round-{rounds:03d}")
        stable = (after.rows, after.checksum) == (edges.rows, edges.checksum)
        remove(edges)
        edges = after
    return edges, rounds


def _ordered(candidates: Any) -> Any:
    """NaN would be the greatest preference: it becomes null, which is the lowest."""
    return candidates.selectExpr("node", "nanvl(preference, CAST(NULL AS double)) AS preference")


def _write_part(draft: artifact.Draft, stem: str, number: int, rows: pa.Table) -> dict[str, Any]:
    table = pa.table([rows.column("row").combine_chunks(), rows.column("v").combine_chunks()], list(EDGES))
    with tempfile.TemporaryDirectory(prefix="triplane-") as folder:
        path = Path(folder) / "edges.parquet"
        spark_worker.write_parquet(table, path)
        entry = draft.put_file(path, f"{stem}/part-{number:05d}", ".parquet", rows=table.num_rows)
    return {"name": entry.name, "bytes": entry.bytes, "rows": table.num_rows, "checksum": checksum(table)}


def checksum(table: pa.Table) -> int:
    """An xor over the edges' hashes, the same in any order and any division into parts."""
    u, v = (table.column(name).to_numpy().view(np.uint64) for name in EDGES)
    return int(np.bitwise_xor.reduce(hashing.u64(1, hashing.u64(0, u) + v), initial=np.uint64(0)))
