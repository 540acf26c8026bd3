"""`diff`: which documents two selections decide differently, by source, rule before and rule after.

Two committed selections -> sums of documents, bytes and tokens for each change, and the first documents of each. Document shards are paired by
source, name and bytes; one that only one of the builds has (or has with these bytes) counts as `absent` in the other. Reads decision tables
alone, a pair of shards at a time, and the ids of those that changed.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataplane import funnel, judgement
from triplane import artifact, storage

ABSENT = "absent"
FATE_OF = {
    judgement.KEEP: funnel.KEPT,
    judgement.DROP: funnel.DROPPED,
    judgement.QUARANTINED: funnel.QUARANTINED,
}
Key = tuple[str, str, str]  # source, document shard, its sha256


@dataclass(frozen=True)
class Change:
    """What became of documents: `before` and `after` are kept, `dropped: reason`, `quarantined: reason` or absent."""

    source: str
    before: str
    after: str
    documents: int
    bytes: int
    tokens: int


@dataclass(frozen=True)
class Example:
    """One document that changed. `id` is None for a record that is no document."""

    source: str
    before: str
    after: str
    id: str | None
    shard: str
    line: int


@dataclass(frozen=True)
class Difference:
    """From selection `first` to selection `second`; `unchanged` counts documents."""

    first: str
    second: str
    unchanged: int
    changes: tuple[Change, ...]
    examples: tuple[Example, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Decided:
    """One document shard of a selection: where its decisions and its ids are, and a hash of the decisions."""

    decisions: str
    sha256: str
    rows: int
    attributes: str


def difference(root: str, first: str, second: str, shown: int) -> Difference:
    """Compares two selections (`selection/name@version`, `name@version` or `name`); at most `shown` examples of each change. NotFound, Refused."""
    manifests = [artifact.load(root, name if "/" in name else f"selection/{name}") for name in (first, second)]
    before, after = (_decided(root, manifest) for manifest in manifests)
    unchanged, pieces = 0, []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if old is not None and new is not None and old.sha256 == new.sha256:
            unchanged += old.rows
            continue
        table = _paired(key, old, new)
        moved = table.filter(pc.not_equal(table.column("before"), table.column("after")))
        unchanged += table.num_rows - moved.num_rows
        pieces.append((key, new or old, moved))
    return Difference(
        manifests[0].reference, manifests[1].reference, unchanged, _sums(pieces), tuple(_examples(pieces, shown))
    )


def _decided(root: str, selection: artifact.Manifest) -> dict[Key, Decided]:
    """The shards of a selection by what is in them. Refused when it is a manifest of another make."""
    url = artifact.artifact_url(root, selection.reference)
    files = {record.shard: record.files[0] for record in selection.records}
    found = {}
    for parent in selection.parents:
        attributes = artifact.load(root, parent)
        source, folder = str(attributes.metadata["source"]), artifact.artifact_url(root, parent)
        for record in attributes.records:
            file = files[f"{source}-{record.shard}"]
            found[source, str(record.counts["name"]), str(record.counts["sha256"])] = Decided(
                storage.join(url, file.name), file.sha256, file.rows or 0, storage.join(folder, record.files[0].name)
            )
    return found


def _paired(key: Key, old: Decided | None, new: Decided | None) -> pa.Table:
    """(row, before, after, text_bytes, tokens) of a document shard; sizes as the second selection has them, if it has the shard."""
    tables = [None if one is None else _table(one) for one in (old, new)]
    present = tables[1] if tables[1] is not None else tables[0]
    assert present is not None
    absent = pa.array([ABSENT] * present.num_rows)
    fates = [absent if table is None else table.column("fate") for table in tables]
    return (
        present.select(["row", "text_bytes", "tokens"])
        .append_column("before", fates[0])
        .append_column("after", fates[1])
    )


def _table(one: Decided) -> pa.Table:
    table = pq.read_table(pa.BufferReader(storage.read(one.decisions)))
    fates = [
        f"{FATE_OF[decision]}: {reason}" if reason else FATE_OF[decision]
        for decision, reason in zip(
            table.column("decision").to_pylist(), table.column("reason").to_pylist(), strict=True
        )
    ]
    return table.append_column("fate", pa.array(fates, pa.string()))


def _sums(pieces: list[tuple[Key, Decided | None, pa.Table]]) -> tuple[Change, ...]:
    """By source in order of appearance, then the largest change first."""
    sums: dict[tuple[str, str, str], list[int]] = {}
    sources: dict[str, int] = {}
    for (source, _, _), _, moved in pieces:
        sources.setdefault(source, len(sources))
        grouped = moved.group_by(["before", "after"], use_threads=False).aggregate(
            [("row", "count"), ("text_bytes", "sum"), ("tokens", "sum")]
        )
        for row in grouped.to_pylist():
            entry = sums.setdefault((source, row["before"], row["after"]), [0, 0, 0])
            for unit, column in enumerate(("row_count", "text_bytes_sum", "tokens_sum")):
                entry[unit] += row[column]
    ordered = sorted(sums.items(), key=lambda item: (sources[item[0][0]], -item[1][0], item[0]))
    return tuple(Change(*key, *values) for key, values in ordered)


def _examples(pieces: list[tuple[Key, Decided | None, pa.Table]], shown: int) -> Iterator[Example]:
    """The first documents of each change."""
    left: dict[tuple[str, str, str], int] = {}
    for (source, shard, _), decided, moved in pieces:
        wanted = []
        for row in moved.select(["row", "before", "after"]).to_pylist() if shown else []:
            kind = (source, row["before"], row["after"])
            if left.setdefault(kind, shown):
                left[kind] -= 1
                wanted.append(row)
        if wanted and decided is not None:
            ids = pq.read_table(pa.BufferReader(storage.read(decided.attributes)), columns=["id"]).column("id")
            for row in wanted:
                yield Example(source, row["before"], row["after"], ids[row["row"]].as_py(), shard, row["row"] + 1)


def table(found: Difference) -> str:
    """The changes as aligned text, then the examples."""
    lines = [f"{found.first} -> {found.second}: {found.unchanged:,} documents are decided as before"]
    rows = [("source", "before", "after", "documents", "bytes", "tokens")]
    rows += [(c.source, c.before, c.after, f"{c.documents:,}", f"{c.bytes:,}", f"{c.tokens:,}") for c in found.changes]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows if found.changes else []:
        cells = [cell.ljust(w) if n < 3 else cell.rjust(w) for n, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    lines += [f"  {e.source} {e.shard}:{e.line} {e.id}: {e.before} -> {e.after}" for e in found.examples]
    return "\n".join(lines)
