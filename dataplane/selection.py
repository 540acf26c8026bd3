"""`select`: one decision a document, from attributes alone.

Attributes of every source -> `selection/{build}@{version}`: a Parquet file a document shard (row, decision, reason, text_bytes, tokens),
rows aligned with the attributes. Decisions are keep, drop, quarantined; the reason of a drop is the first that holds of: `empty`, the
source's rules in declared order (`judgement.py`; thresholds of a share kept: `quantiles.py`), `exact_duplicate`, `near_duplicate`
(`duplicates.py`), `held_out`: the documents with u(seed, key) below the fraction, after duplicates went.

What needs all documents goes through Spark: SQL for shares and large clusters, an exchange of hashes for duplicates. What needs one document is
done where its shard's attributes are read, whole columns at a time: 89,000 documents took 4 s as rows of a query, 0.1 s so.
"""

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataplane import clusters, duplicates, funnel, ingestion, quantiles, recipe, spark, spark_worker
from dataplane.judgement import DROP, KEEP, QUARANTINED
from dataplane.tagger import Rule
from triplane import artifact, hashing, storage
from triplane.errors import Refused
from triplane.progress import Bar, Progress

VERSION = 2
FATE_OF = {KEEP: funnel.KEPT, DROP: funnel.DROPPED, QUARANTINED: funnel.QUARANTINED}
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("decision", pa.string()),
        ("reason", pa.string()),
        ("text_bytes", pa.int64()),
        ("tokens", pa.int64()),
    ]
)
HELD_OUT_SALT = 0x68656C64  # "held": apart from the order that `tokenize` draws from the same seed and key


@dataclass(frozen=True)
class Selected:
    """A committed selection."""

    manifest: artifact.Manifest

    def record(self, source: str, index: int) -> artifact.Record:
        """The record of a source's document shard number `index`."""
        name = f"{source}-{ingestion.record_name(index)}"
        return next(record for record in self.manifest.records if record.shard == name)

    def identity(self, source: str) -> str:
        """A hash of this source's decisions: a source whose decisions stay need not be tokenized again."""
        records = [record for record in self.manifest.records if record.counts["source"] == source]
        return hashing.identity([record.files[0].sha256 for record in records])

    def check_tokens(self, source: str, documents: int, tokens: int) -> None:
        """Refused unless a source was tokenized to exactly what was planned."""
        funnel.check_tokens(source, documents, tokens, self.rows)

    @property
    def rows(self) -> list[funnel.FunnelRow]:
        """The funnel of the build."""
        return funnel.from_json(self.manifest.metadata["funnel"])


def select(
    start: spark.Start,
    root: str,
    build: recipe.BuildRecipe,
    attributes: dict[str, artifact.Manifest],
    progress: Progress,
) -> Selected:
    """Decides every document of every source. Refused when the decisions do not account for every row of the attributes."""
    draft = artifact.begin(
        root,
        "selection",
        build.name,
        inputs={
            name: hashing.identity([[r.shard, r.files[0].sha256] for r in manifest.records])
            for name, manifest in attributes.items()
        },
        recipe=selection_recipe(build),
        stage_versions={"select": VERSION},
        parents=tuple(manifest.reference for manifest in attributes.values()),
    )
    if (standing := artifact.committed(draft)) is not None:
        return Selected(standing)
    place = clusters.store(draft)
    try:
        found = _decide_all(start(), root, build, attributes, place, progress)
    finally:
        place.clear()
    records = draft.records
    came_in = [
        row for name, manifest in attributes.items() for record in manifest.records for row in arrivals(name, record)
    ]
    decided = [funnel.FunnelRow(**row) for record in records.values() for row in _rows_of(record)]
    rows = funnel.checked([*came_in, *decided])
    return Selected(draft.commit({"funnel": funnel.to_json(rows), "sources": list(attributes), **found.metadata()}))


def _decide_all(
    session: Any,
    root: str,
    build: recipe.BuildRecipe,
    attributes: dict[str, artifact.Manifest],
    place: clusters.Store,
    progress: Progress,
) -> "Findings":
    """A record a shard in the draft of `place`."""
    shards = _shards(root, attributes)
    weights = [shard.bytes for shard in shards]
    with progress.bar("select", sum(weights), "bytes") as bar:
        found = findings(session, root, build, attributes, shards, place, bar)
        deciding = Deciding(build.seed, build.held_out_fraction, found.judges)
        decide = functools.partial(_decide_shard, place.draft, deciding)
        spark.map_shards(session, decide, found.tasks, weights, bar)
    return found


def selection_recipe(build: recipe.BuildRecipe) -> dict[str, Any]:
    """What the decisions depend on, besides the attributes."""
    sources = [
        {
            "name": source.name,
            "rules": [_rule_values(rule) for rule in recipe.rules(source)],
            "exact_dedup": source.exact_dedup,
            **({} if source.near_dedup is None else {"near_dedup": source.near_dedup.model_dump(mode="json")}),
        }
        for source in build.sources
    ]
    return {"seed": build.seed, "held_out_fraction": build.held_out_fraction, "sources": sources}


def _rule_values(rule: Rule | recipe.QuantileRecipe) -> list[Any]:
    if isinstance(rule, Rule):
        return [rule.name, rule.column, rule.op, rule.threshold]
    return [rule.name, rule.column, "keep_top", rule.keep_top, rule.weight]


@dataclass(frozen=True)
class Findings:
    """What has to be known about all documents before one is decided: each source's rules with their thresholds, and who is a duplicate.

    tasks: one a shard, in order, as `duplicates.Parts` gives them.
    """

    judges: dict[str, duplicates.Judge]
    thresholds: list[dict[str, Any]]
    near: clusters.Clusters | None
    tasks: list[dict[str, Any]]

    def metadata(self) -> dict[str, Any]:
        """For the selection's manifest."""
        found: dict[str, Any] = {"thresholds": self.thresholds} if self.thresholds else {}
        return found if self.near is None else {**found, "near_dedup": self.near.to_json()}


def findings(
    session: Any,
    root: str,
    build: recipe.BuildRecipe,
    attributes: dict[str, artifact.Manifest],
    shards: list[duplicates.Shard],
    place: clusters.Store,
    bar: Bar,
) -> Findings:
    """Thresholds first, then equal texts among what passes them, then clusters among what is left."""
    sets = list(dict.fromkeys(s.near_dedup.within for s in build.sources if s.near_dedup is not None))
    judges, thresholds = {}, []
    for source in build.sources:
        rules, report = quantiles.resolve(session, root, source, attributes[source.name])
        thresholds += report
        near = source.near_dedup
        within, prefer = (None, None) if near is None else (sets.index(near.within), near.prefer)
        judges[source.name] = duplicates.Judge(tuple(rules), source.exact_dedup, within, prefer)
    parts = duplicates.parts(shards)
    drops: duplicates.Drops = {}
    clustered = None
    if any(judge.exact for judge in judges.values()):
        drops = duplicates.exact(session, place, judges, parts, bar)
    if sets:
        clustered, drops = duplicates.near(session, place, judges, parts, drops, _num_bands(build), bar)
    return Findings(judges, thresholds, clustered, parts.tasks(drops))


def _shards(root: str, attributes: dict[str, artifact.Manifest]) -> list[duplicates.Shard]:
    """Every attributes table, numbered over all sources in declared order."""
    found: list[duplicates.Shard] = []
    for source, manifest in attributes.items():
        folder = artifact.artifact_url(root, manifest.reference)
        for record in manifest.records:
            file, name = record.files[0], f"{source}-{record.shard}"
            url, rows = storage.join(folder, file.name), int(record.counts["records"])
            found.append(duplicates.Shard(len(found), name, source, url, rows, file.bytes))
    return found


def _num_bands(build: recipe.BuildRecipe) -> int:
    """Bands of a document, at most."""
    params = (recipe.taggers(source)["minhash"] for source in build.sources if source.near_dedup is not None)
    return max(int(recipe.tagger_params("minhash", one, "").bands) for one in params)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Deciding:
    """What a worker needs to decide any shard."""

    seed: int
    held_out_fraction: float
    judges: dict[str, duplicates.Judge]


def decided(deciding: Deciding, task: dict[str, Any]) -> pa.Table:
    """The decisions of one shard, `SCHEMA`: by its source's rules, then duplicates, then held out."""
    judge = deciding.judges[task["source"]]
    table = duplicates.read(task["url"], judge.columns("key"))
    found = duplicates.judged(judge, task, table)
    keys = table.column("key").combine_chunks().to_numpy(zero_copy_only=False)
    found = found.drop(recipe.HELD_OUT, held_out(deciding.seed, deciding.held_out_fraction, keys))
    columns = [table.column("row"), found.decisions(), found.reasons(table.column("quarantine"))]
    counts = [table.column(name).fill_null(0) for name in ("text_bytes", recipe.TOKEN_COUNT)]
    return pa.table([*columns, *counts], SCHEMA.names).cast(SCHEMA).combine_chunks()


def held_out(seed: int, fraction: float, keys: np.ndarray) -> np.ndarray:
    """u(seed, key) < fraction, bool [n]."""
    limit = np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
    drawn: np.ndarray = hashing.u64(seed ^ HELD_OUT_SALT, keys) < limit
    return drawn


def arrivals(source: str, record: artifact.Record) -> list[funnel.FunnelRow]:
    """What came in with one document shard, as tagging counted it; a quarantined record has no text to count in bytes or tokens."""
    counts = record.counts
    return [
        funnel.FunnelRow(source, funnel.IN, "", int(counts["records"]), int(counts["bytes"]), int(counts["tokens"]))
    ]


def fates(source: str, table: pa.Table) -> list[funnel.FunnelRow]:
    """What became of a shard's rows, by decision and reason."""
    grouped = table.group_by(["decision", "reason"], use_threads=False).aggregate(
        [("row", "count"), ("text_bytes", "sum"), ("tokens", "sum")]
    )
    rows = [
        funnel.FunnelRow(
            source,
            FATE_OF[row["decision"]],
            row["reason"] or "",
            row["row_count"],
            row["text_bytes_sum"],
            row["tokens_sum"],
        )
        for row in grouped.to_pylist()
    ]
    return funnel.total(rows)


def check_rows(table: pa.Table, name: str, num_rows: int) -> None:
    """Refused unless the table has each row of the shard's attributes once, in order."""
    if (
        table.num_rows != num_rows
        or not pc.all(pc.equal(table.column("row"), pa.array(np.arange(table.num_rows)))).as_py()
    ):
        raise Refused(
            f"selection of {name}: {num_rows} rows were tagged, {table.num_rows} were decided: remove its attributes and build again"
        )


def _decide_shard(draft: artifact.Draft, deciding: Deciding, task: dict[str, Any]) -> dict[str, Any]:
    """Writes one shard's decisions and its record."""
    name, source = str(task["name"]), str(task["source"])
    table = decided(deciding, task)
    check_rows(table, name, int(task["rows"]))
    counts = {"source": source, "fates": funnel.to_json(fates(source, table))}
    with tempfile.TemporaryDirectory(prefix="triplane-") as folder:
        path = Path(folder) / "decisions.parquet"
        spark_worker.write_parquet(table, path)
        entry = draft.put_file(path, name, ".parquet", rows=table.num_rows)
    draft.record(name, [entry], counts)
    return {}


def _rows_of(record: artifact.Record) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = list(record.counts["fates"])
    return rows
