"""Equal and nearly equal documents of a build: which rows go, by parts of its document shards.

Attributes -> for each part of the shards, an object (u, v): u goes, v stays. Only hashes of kept documents leave a task, in pieces by hash
(`buckets.py`): equal texts first, then bands among what is left, whose clusters `clusters.py` finds; what goes is moved to the part of its shard.
Of equal texts (by 128-bit hash) the first by (source as declared, shard, row) stays: a total order, so the survivor does not depend on tasks.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataplane import buckets, clusters, judgement, quantiles, recipe, spark
from dataplane.tagger import Rule
from triplane import storage

HASHES = ("text_hash_high", "text_hash_low")
PART_ROWS = 1_000_000  # documents to a part, unless one shard has more
BUCKET_KEYS = 4 << 20  # 32 bytes each, and as much again while they are sorted
Drops = dict[int, dict[str, str]]  # part -> reason -> the object (u, v): u goes, v stays
EXACT_COLUMNS, NEAR_COLUMNS, EDGE_COLUMNS = 3, 4, 2


@dataclass(frozen=True)
class Judge:
    """How one source is judged. within: the number of its set of near duplicates; None when it has none."""

    rules: tuple[Rule, ...]
    exact: bool
    within: int | None
    prefer: str | None

    def columns(self, *more: str) -> set[str]:
        return judgement.columns_read(self.rules) | set(more)


@dataclass(frozen=True)
class Shard:
    """One attributes table among all of a build, numbered in declared order."""

    number: int
    name: str
    source: str
    url: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class Parts:
    """The shards in runs of about `PART_ROWS` rows; `firsts`: the number of each run's first shard."""

    shards: tuple[Shard, ...]
    firsts: tuple[int, ...]

    def of(self, shards: np.ndarray) -> np.ndarray:
        """The part of each shard number."""
        return np.searchsorted(np.array(self.firsts), shards, "right") - 1

    def members(self, part: int) -> tuple[Shard, ...]:
        ends = (*self.firsts, len(self.shards))
        return self.shards[ends[part] : ends[part + 1]]

    def tasks(self, drops: Drops) -> list[dict[str, Any]]:
        """One a shard: where it is, and by reason the objects of its part that name rows to drop."""
        return [
            {**asdict(shard), "drops": drops.get(part, {})}
            for part in range(len(self.firsts))
            for shard in self.members(part)
        ]


def parts(shards: Sequence[Shard], part_rows: int = PART_ROWS) -> Parts:
    """Runs of whole shards."""
    firsts, rows = [0], 0
    for shard in shards:
        if rows and rows + shard.rows > part_rows:
            firsts, rows = [*firsts, shard.number], 0
        rows += shard.rows
    return Parts(tuple(shards), tuple(firsts))


def exact(session: Any, place: clusters.Store, judges: dict[str, Judge], all_parts: Parts, bar: Any) -> Drops:
    """The rows with the text of an earlier document."""
    tasks = all_parts.tasks({})
    num_keys = sum(shard.rows for shard in all_parts.shards if judges[shard.source].exact)
    steps = [(1 + num_keys // BUCKET_KEYS, functools.partial(_later, all_parts))]
    emit = functools.partial(_texts, judges, steps[0][0])
    finish = functools.partial(_put_dropped, place, "equal")
    weights = [shard.bytes for shard in all_parts.shards]
    results = spark.exchange(session, tasks, weights, emit, steps, (len(all_parts.firsts), finish), bar)
    return _with_drops({}, recipe.EXACT_DUPLICATE, place, results)


def near(
    session: Any,
    place: clusters.Store,
    judges: dict[str, Judge],
    all_parts: Parts,
    drops: Drops,
    num_bands: int,
    bar: Any,
) -> tuple[clusters.Clusters, Drops]:
    """The clusters among documents that are kept so far, and `drops` with what they drop. num_bands: of a document, at most."""
    num_keys = num_bands * sum(shard.rows for shard in all_parts.shards if judges[shard.source].within is not None)
    num_parts = 1 + num_keys // BUCKET_KEYS
    tasks = all_parts.tasks(drops)
    weights = [shard.bytes for shard in all_parts.shards]
    emit = functools.partial(_bands, judges, num_parts)
    finish = functools.partial(_put_stars, place)
    stars = place.edges(spark.exchange(session, tasks, weights, emit, [], (num_parts, finish), bar))
    found = clusters.find(session, stars, place)
    objects = [{"url": url} for url, _ in found.dropped.objects] if found.dropped.rows else []
    move = functools.partial(_moved, all_parts)
    last = (len(all_parts.firsts), functools.partial(_put_dropped, place, "near"))
    dropped = spark.exchange(session, objects, [size for _, size in found.dropped.objects], move, [], last, bar)
    clusters.remove(found.dropped)
    return found, _with_drops(drops, recipe.NEAR_DUPLICATE, place, dropped)


def read(url: str, columns: Iterable[str]) -> pa.Table:
    """Columns of one attributes table."""
    return pq.read_table(pa.BufferReader(storage.read(url)), columns=sorted(columns))


def dropped_rows(url: str, shard: int, num_rows: int) -> np.ndarray:
    """bool [num_rows]: the rows of a shard that an object of its part names."""
    found = np.zeros(num_rows, bool)
    nodes = read(url, ["u"]).column("u").to_numpy()
    low, high = np.searchsorted(nodes, [shard << buckets.ROW_BITS, (shard + 1) << buckets.ROW_BITS])
    found[nodes[low:high] - (shard << buckets.ROW_BITS)] = True
    return found


def judged(judge: Judge, task: dict[str, Any], table: pa.Table) -> judgement.Judgement:
    """A shard's rows by the source's rules, and by what is known of duplicates so far."""
    found = judgement.judge(table, judge.rules)
    for reason, url in task["drops"].items():
        found = found.drop(reason, dropped_rows(url, task["number"], table.num_rows))
    return found


def _texts(judges: dict[str, Judge], num_parts: int, task: dict[str, Any]) -> Iterator[tuple[int, bytes]]:
    """The text hashes of the kept documents of a shard, by hash."""
    judge = judges[task["source"]]
    if not judge.exact:
        return
    table = read(task["url"], judge.columns(*HASHES))
    high = table.column(HASHES[0])
    kept = judgement.judge(table, judge.rules).kept & high.is_valid().to_numpy()
    halves = [_bits(table.column(name))[kept] for name in HASHES]
    yield from buckets.by_hash(np.stack([*halves, buckets.nodes(task["number"], _rows(table)[kept])]), num_parts)


def _later(all_parts: Parts, part: int, pieces: list[bytes]) -> Iterator[tuple[int, bytes]]:
    """Of texts that occur more than once all but the first, each to its own part."""
    found = buckets.edges(buckets.joined(pieces, EXACT_COLUMNS))
    return buckets.split(found, all_parts.of(buckets.shards(found[0])))


def _bands(judges: dict[str, Judge], num_parts: int, task: dict[str, Any]) -> Iterator[tuple[int, bytes]]:
    """The bands of a shard's documents that are kept so far, by hash."""
    judge = judges[task["source"]]
    if judge.within is None:
        return
    prefer = [] if judge.prefer is None else [judge.prefer]
    table = read(task["url"], judge.columns(recipe.BANDS, *prefer))
    bands = table.column(recipe.BANDS).combine_chunks()
    kept = judged(judge, task, table).kept & bands.is_valid().to_numpy(zero_copy_only=False)
    bands = bands.filter(pa.array(kept))
    lengths = np.diff(bands.offsets.to_numpy())
    document = np.repeat(np.arange(len(bands)), lengths)
    band = np.arange(len(document)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    nodes = buckets.nodes(task["number"], _rows(table)[kept])
    columns = [
        (np.uint64(judge.within) << np.uint64(32)) + band.astype(np.uint64),
        bands.flatten().cast(pa.int64()).to_numpy(zero_copy_only=False).view(np.uint64),
        nodes[document],
        _preference(table, prefer)[kept][document].view(np.uint64),
    ]
    yield from buckets.by_hash(np.stack(columns), num_parts)


def _preference(table: pa.Table, prefer: Sequence[str]) -> np.ndarray:
    """int64 [n] in the order of the preferred column; null and NaN are lowest."""
    if not prefer:
        return np.zeros(table.num_rows, np.int64)
    numbers, known = judgement.values(table.column(prefer[0]))
    bits = quantiles.ordered_bits(np.where(known, numbers, 0).astype(np.float64))
    return np.where(known, bits, clusters.NO_PREFERENCE)


def _put_stars(place: clusters.Store, part: int, pieces: list[bytes]) -> dict[str, Any]:
    """The star edges of all bands that share a hash."""
    found = buckets.edges(buckets.joined(pieces, NEAR_COLUMNS)).view(np.int64)
    return place.put_table(pa.table(list(found), list(clusters.PREFERRED)), "stars", part)


def _moved(all_parts: Parts, task: dict[str, Any]) -> Iterator[tuple[int, bytes]]:
    """Drops of any shards, each to its own part."""
    table = read(task["url"], clusters.EDGES)
    found = np.stack([table.column(name).to_numpy() for name in clusters.EDGES]).view(np.uint64)
    return buckets.split(found, all_parts.of(buckets.shards(found[0])))


def _put_dropped(place: clusters.Store, stem: str, part: int, pieces: list[bytes]) -> dict[str, Any]:
    """The rows of one part that go, ascending."""
    found = buckets.joined(pieces, EDGE_COLUMNS)
    found = found[:, np.argsort(found[0])].view(np.int64)
    return {"part": part, **place.put_table(pa.table(list(found), list(clusters.EDGES)), stem, part)}


def _with_drops(drops: Drops, reason: str, place: clusters.Store, results: Sequence[dict[str, Any]]) -> Drops:
    found = {part: dict(known) for part, known in drops.items()}
    for one in results:
        found.setdefault(int(one["part"]), {})[reason] = storage.join(place.draft.url, one["name"])
    return found


def _rows(table: pa.Table) -> np.ndarray:
    rows: np.ndarray = table.column("row").to_numpy()
    return rows


def _bits(column: pa.ChunkedArray) -> np.ndarray:
    """The 64 bits of integers of either sign, uint64 [n]; 0 where there is none."""
    bits: np.ndarray = column.combine_chunks().fill_null(0).to_numpy(zero_copy_only=False).view(np.uint64)
    return bits
