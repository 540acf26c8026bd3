"""`select`: one decision a document, from attributes alone, in Spark SQL.

Attributes of every source -> `selection/{build}@{version}`: a Parquet file a document shard (row, decision, reason, text_bytes, tokens),
rows aligned with the attributes. Decisions are keep, drop, quarantined; the reason of a drop is the first that holds of: `empty`, the
source's rules in declared order (`judgement.py`; thresholds of a share kept: `quantiles.py`), `exact_duplicate`, `near_duplicate`
(`clusters.py`), `held_out`.

Of equal texts (by 128-bit hash) among the documents that passed their rules, the first by (source as declared, shard, row) stays: a total
order, so the survivor does not depend on the number of tasks. Held out are the documents with u(seed, key) below the fraction, after
duplicates went.
"""

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataplane import clusters, funnel, ingestion, judgement, quantiles, recipe, spark, spark_worker
from dataplane.judgement import DROP, KEEP, QUARANTINED
from dataplane.tagger import Rule
from triplane import artifact, hashing
from triplane.errors import Refused
from triplane.progress import Progress

VERSION = 1
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
HASH_COLUMNS = {"text_hash_high": "bigint", "text_hash_low": "bigint"}
HELD_OUT_SALT = 0x68656C64  # "held": apart from the order that `tokenize` draws from the same seed and key

# Kept documents that are not the first of their text hash become drops. Only hashes that occur twice are joined.
WITHOUT_DUPLICATES = f"""
    WITH firsts AS (
        SELECT text_hash_high, text_hash_low, min(struct(shard, row)) AS first FROM {{judged}}
        WHERE decision = '{KEEP}' AND text_hash_high IS NOT NULL
        GROUP BY text_hash_high, text_hash_low HAVING count(*) > 1)
    SELECT j.* EXCEPT (reason, decision),
        CASE WHEN d.first IS NULL OR d.first = struct(j.shard, j.row) THEN j.reason ELSE '{recipe.EXACT_DUPLICATE}' END AS reason,
        CASE WHEN d.first IS NULL OR d.first = struct(j.shard, j.row) THEN j.decision ELSE '{DROP}' END AS decision
    FROM {{judged}} j LEFT JOIN firsts d
    ON j.decision = '{KEEP}' AND j.text_hash_high = d.text_hash_high AND j.text_hash_low = d.text_hash_low"""
WITHOUT_NEAR_DUPLICATES = f"""
    SELECT j.* EXCEPT (reason, decision),
        CASE WHEN d.u IS NULL THEN j.reason ELSE '{recipe.NEAR_DUPLICATE}' END AS reason,
        CASE WHEN d.u IS NULL THEN j.decision ELSE '{DROP}' END AS decision
    FROM {{judged}} j LEFT JOIN {{dropped}} d ON {clusters.NODE} = d.u"""


@dataclass(frozen=True)
class SelectedShard:
    """One document shard among all of a build: its record's name, its source, how many rows its attributes have."""

    name: str
    source: str
    rows: int


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
    shards = [
        SelectedShard(f"{name}-{record.shard}", name, int(record.counts["records"]))
        for name, manifest in attributes.items()
        for record in manifest.records
    ]
    num_rows = sum(shard.rows for shard in shards)
    session = start()
    with progress.bar("select", len(shards), "shards") as bar:
        found = findings(session, root, build, attributes, clusters.store(draft, num_rows))
        frame = decisions(session, root, build, attributes, found)
        spark.write_by_shard(frame, functools.partial(_write_shard, draft, tuple(shards)), len(shards), num_rows, bar)
    if found.near is not None:
        clusters.remove(found.near.dropped)
    _write_empty(draft, shards)
    records = draft.records
    came_in = [
        row for name, manifest in attributes.items() for record in manifest.records for row in arrivals(name, record)
    ]
    decided = [funnel.FunnelRow(**row) for record in records.values() for row in _rows_of(record)]
    rows = funnel.checked([*came_in, *decided])
    return Selected(draft.commit({"funnel": funnel.to_json(rows), "sources": list(attributes), **found.metadata()}))


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
    """What has to be known about all documents before one is decided: each source's rules with their thresholds, and the near duplicates."""

    rules: dict[str, list[Rule]]
    thresholds: list[dict[str, Any]]
    near: clusters.Clusters | None

    def metadata(self) -> dict[str, Any]:
        """For the selection's manifest."""
        found: dict[str, Any] = {"thresholds": self.thresholds} if self.thresholds else {}
        return found if self.near is None else {**found, "near_dedup": self.near.to_json()}


def findings(
    session: Any,
    root: str,
    build: recipe.BuildRecipe,
    attributes: dict[str, artifact.Manifest],
    place: clusters.Store,
) -> Findings:
    """Thresholds first, then clusters among what passes them."""
    rules, thresholds, near = {}, [], None
    for source in build.sources:
        rules[source.name], report = quantiles.resolve(session, root, source, attributes[source.name])
        thresholds += report
    sets = [source.near_dedup for source in build.sources if source.near_dedup is not None]
    if sets:
        candidates = judged(session, root, build, attributes, rules, with_bands=True).where(
            f"decision = '{KEEP}' AND within IS NOT NULL"
        )
        by_preference = any(one.prefer is not None for one in sets)
        near = clusters.find(
            session,
            candidates.selectExpr(f"{clusters.NODE} AS node", "within", "preference", recipe.BANDS),
            place,
            by_preference,
        )
    return Findings(rules, thresholds, near)


def decisions(
    session: Any,
    root: str,
    build: recipe.BuildRecipe,
    attributes: dict[str, artifact.Manifest],
    found: Findings,
) -> Any:
    """A DataFrame (shard, row, decision, reason, text_bytes, tokens), shards numbered over all sources in declared order."""
    everything = judged(session, root, build, attributes, found.rules)
    if found.near is not None and found.near.dropped.rows:
        dropped = clusters.frame(session, found.near.dropped)
        everything = session.sql(WITHOUT_NEAR_DUPLICATES, judged=everything, dropped=dropped)
    reason = f"CASE WHEN decision = '{KEEP}' AND held_out THEN '{recipe.HELD_OUT}' ELSE reason END AS reason"
    decision = f"CASE WHEN decision = '{KEEP}' AND held_out THEN '{DROP}' ELSE decision END AS decision"
    return everything.selectExpr("shard", "row", decision, reason, "text_bytes", "tokens")


def judged(
    session: Any,
    root: str,
    build: recipe.BuildRecipe,
    attributes: dict[str, artifact.Manifest],
    rules: dict[str, list[Rule]],
    with_bands: bool = False,
) -> Any:
    """Every document by its source's own rules and exact duplicates; with bands: also what `clusters.find` needs."""
    frames, first_shard = [], 0
    held_out = functools.partial(with_held_out, build.seed, build.held_out_fraction)
    for source in build.sources:
        manifest = attributes[source.name]
        types = judgement.column_types(source)
        columns = judgement.columns_read(types, rules[source.name]) | {"held_out": "boolean"}
        columns |= HASH_COLUMNS if source.exact_dedup else {}
        columns |= {name: types[name] for name in _near_columns(source) if with_bands}
        frame = spark.read_table(session, root, manifest, columns, first_shard, held_out, ["key"])
        more = _near_expressions(source) if with_bands else []
        frames.append(frame.selectExpr(*_expressions(source, types, rules[source.name]), *more))
        first_shard += len(manifest.records)
    everything = functools.reduce(lambda left, right: left.unionByName(right), frames)
    return (
        session.sql(WITHOUT_DUPLICATES, judged=everything)
        if any(source.exact_dedup for source in build.sources)
        else everything
    )


def _expressions(source: recipe.SourceRecipe, types: dict[str, str], rules: list[Rule]) -> list[str]:
    """SQL expressions: the decision by this source's own rules, and what the later steps need."""
    hashes = list(HASH_COLUMNS) if source.exact_dedup else [f"CAST(NULL AS bigint) AS {name}" for name in HASH_COLUMNS]
    return [
        "shard",
        "row",
        f"{judgement.reason(types, rules)} AS reason",
        f"{judgement.decision(types, rules)} AS decision",
        "coalesce(held_out, false) AS held_out",
        "coalesce(text_bytes, 0) AS text_bytes",
        f"coalesce({recipe.TOKEN_COUNT}, 0) AS tokens",
        *hashes,
    ]


def _near_columns(source: recipe.SourceRecipe) -> list[str]:
    near = source.near_dedup
    return [] if near is None else [recipe.BANDS, *([] if near.prefer is None else [near.prefer])]


def _near_expressions(source: recipe.SourceRecipe) -> list[str]:
    near = source.near_dedup
    within = "NULL" if near is None else f"'{near.within}'"
    bands = "NULL" if near is None else recipe.BANDS
    prefer = "NULL" if near is None or near.prefer is None else f"`{near.prefer}`"
    return [
        f"CAST({within} AS string) AS within",
        f"CAST({bands} AS array<bigint>) AS {recipe.BANDS}",
        f"CAST({prefer} AS double) AS preference",
    ]


def with_held_out(seed: int, fraction: float, table: pa.Table) -> pa.Table:
    """The table and a column `held_out`: u(seed, key) < fraction."""
    draws = hashing.u64(seed ^ HELD_OUT_SALT, table.column("key").combine_chunks().to_numpy(zero_copy_only=False))
    limit = np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
    return table.append_column("held_out", pa.array(draws < limit))


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


def check_rows(table: pa.Table, shard: SelectedShard) -> None:
    """Refused unless the table has each row of the shard's attributes once, in order."""
    if (
        table.num_rows != shard.rows
        or not pc.all(pc.equal(table.column("row"), pa.array(np.arange(table.num_rows)))).as_py()
    ):
        raise Refused(
            f"selection of {shard.name}: {shard.rows} rows were tagged, {table.num_rows} were decided: remove its attributes and build again"
        )


def _write_shard(
    draft: artifact.Draft, shards: tuple[SelectedShard, ...], number: int, rows: pa.Table
) -> dict[str, Any]:
    shard = shards[number]
    table = rows.select(SCHEMA.names).cast(SCHEMA).combine_chunks()
    if table.num_rows:
        check_rows(table, shard)
    counts = {"source": shard.source, "fates": funnel.to_json(fates(shard.source, table))}
    with tempfile.TemporaryDirectory(prefix="triplane-") as folder:
        path = Path(folder) / "decisions.parquet"
        spark_worker.write_parquet(table, path)
        entry = draft.put_file(path, shard.name, ".parquet", rows=table.num_rows)
    draft.record(shard.name, [entry], counts)
    return {}


def _write_empty(draft: artifact.Draft, shards: list[SelectedShard]) -> None:
    """A document shard without a single record has no rows for Spark to group: its empty table is written here."""
    for number, shard in enumerate(shards):
        if shard.rows == 0:
            _write_shard(draft, tuple(shards), number, SCHEMA.empty_table())


def _rows_of(record: artifact.Record) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = list(record.counts["fates"])
    return rows
