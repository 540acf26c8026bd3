"""`tag`: what is known about each document, as one attributes table a document shard.

Document shards + taggers -> `attributes/{source}@{version}`: Parquet with the same rows in the same order as the physical records of the
shard, quarantined ones included. Columns: `row`, `id`, `key` (low 64 bits of the document key), `text_bytes`, `quarantine` (reason, null
for a document), then the taggers' own. Each record says what came in: records, documents, bytes and tokens of text, quarantined by reason.

A tagger with a `where` is a later pass: its table is the one before it and its own columns, null in the documents that it was not to read.
What the earlier passes committed stays, so that adding or changing it tags nothing again. `select` reads the last table alone.
"""

import functools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataplane import documents, ingestion, later_pass, recipe, spark, spark_worker
from dataplane.attributes import Taggers, attributes_schema, batch_table, document_keys, lanes, row_groups
from dataplane.taggers.table import TAGGERS
from triplane import artifact, hashing, metrics, storage
from triplane.errors import Refused, UsageError
from triplane.progress import Progress

__all__ = ["VERSION", "attributes_schema", "batch_table", "document_keys", "row_groups", "tag"]

VERSION = 1
COUNTED = ("records", "documents", "bytes", "tokens")


@dataclass(frozen=True)
class TagParams:
    """What a worker needs to tag a shard of one source: `taggers` is (name, parameters as JSON values) in declared order."""

    draft: artifact.Draft
    taggers: tuple[tuple[str, dict[str, Any]], ...]
    earlier: later_pass.Earlier | None


def tag(
    start: spark.Start,
    root: str,
    build: recipe.BuildRecipe,
    ingested: dict[str, ingestion.Documents],
    tokenizer: tuple[str, str],
    progress: Progress,
) -> dict[str, artifact.Manifest]:
    """The attributes of each source. `tokenizer` is (URL, sha256). Refused when a shard is not what was ingested, or rows do not align."""
    passes = {source.name: recipe.passes(source) for source in build.sources}
    tagged: dict[str, artifact.Manifest] = {}
    for number in range(max(map(len, passes.values()))):
        params = {
            name: _params(root, ingested[name], of_source[number], tokenizer, tagged.get(name))
            for name, of_source in passes.items()
            if number < len(of_source)
        }
        tagged |= _run_pass(start, ingested, params, progress, "tag" if number == 0 else f"tag, pass {number + 1}")
    return tagged


def _run_pass(
    start: spark.Start,
    ingested: dict[str, ingestion.Documents],
    params: dict[str, TagParams],
    progress: Progress,
    title: str,
) -> dict[str, artifact.Manifest]:
    drafts = {name: one.draft for name, one in params.items()}
    standing = {name: artifact.committed(draft) for name, draft in drafts.items()}
    tasks = [task for name in params if standing[name] is None for task in ingested[name].tasks()]
    ingestion.run_missing(start, drafts, functools.partial(_tag_shard, params), tasks, title, progress)
    made = {name: standing[name] or draft.commit(_metadata(ingested[name], draft)) for name, draft in drafts.items()}
    fresh = sum(made[name].metadata["documents"] for name in made if standing[name] is None)
    metrics.count("documents_total", fresh, job=title)
    return made


def _params(
    root: str,
    found: ingestion.Documents,
    one: recipe.Pass,
    tokenizer: tuple[str, str],
    before: artifact.Manifest | None,
) -> TagParams:
    url, sha256 = tokenizer
    draft = _draft(root, found, one, sha256, before)
    earlier = None
    if before is not None:
        files = tuple(record.files[0] for record in before.records)
        earlier = later_pass.Earlier(artifact.artifact_url(root, before.reference), files, one.where)
    return TagParams(draft, tuple(_each(_values(one, url), _located).items()), earlier)


def _values(one: recipe.Pass, tokenizer: str) -> dict[str, dict[str, Any]]:
    return {
        name: recipe.tagger_params(name, values, tokenizer).model_dump(mode="json")
        for name, values in one.taggers.items()
    }


def _each(value: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """The JSON value with `change` made to every object in it: parameters, and those of taggers inside taggers."""
    if isinstance(value, dict):
        return change({name: _each(inner, change) for name, inner in value.items()})
    return [_each(inner, change) for inner in value] if isinstance(value, list) else value


def _located(params: dict[str, Any]) -> dict[str, Any]:
    """A model's local path made absolute, as a worker may have another working directory; a Hub id stays one."""
    model = params.get("model")
    is_path = isinstance(model, str) and storage.is_local(model) and storage.local_path(model).exists()
    return {**params, "model": storage.absolute(str(model))} if is_path else params


def _by_content(params: dict[str, Any]) -> dict[str, Any]:
    """Without the place of a model that is one file, known by its sha256; one with a `revision` is a folder, of which that says a part."""
    is_one_file = {"model", "sha256"} <= params.keys() and "revision" not in params
    return {name: value for name, value in params.items() if name != "model" or not is_one_file}


def _draft(
    root: str,
    found: ingestion.Documents,
    one: recipe.Pass,
    tokenizer_sha256: str,
    before: artifact.Manifest | None,
) -> artifact.Draft:
    # Tokenizer and models are named by content: the same ones elsewhere give the same attributes.
    taggers = _each(_values(one, tokenizer_sha256), _by_content)
    made_by: dict[str, Any] = {"source": found.source, "taggers": taggers}
    inputs = {"documents": found.identity}
    if before is not None:
        made_by["where"] = [[rule.name, rule.column, rule.op, rule.threshold] for rule in one.where]
        inputs["attributes"] = hashing.identity([[record.shard, record.files[0].sha256] for record in before.records])
    return artifact.begin(
        root,
        "attributes",
        found.source,
        inputs=inputs,
        recipe=made_by,
        stage_versions={"tag": VERSION, **{name: TAGGERS[name].version for name in one.taggers}},
        parents=() if before is None else (before.reference,),
    )


def _metadata(found: ingestion.Documents, draft: artifact.Draft) -> dict[str, Any]:
    # The documents are named here and not as a parent: the same bytes elsewhere have the same attributes.
    counts = [record.counts for record in draft.records.values()]
    return {
        "source": found.source,
        "ingested": found.manifest.reference,
        **{name: sum(int(str(count[name])) for count in counts) for name in COUNTED},
    }


def _tag_shard(params: dict[str, TagParams], task: ingestion.Task) -> dict[str, Any]:
    """Reads one document shard, writes one attributes file and its record."""
    one, stem = params[str(task["source"])], ingestion.record_name(task["index"])
    taggers = [(TAGGERS[name], TAGGERS[name].params.model_validate(values)) for name, values in one.taggers]
    counts, quarantined = Counter(dict.fromkeys(COUNTED, 0)), Counter[str]()
    with ingestion.fetched(task) as shard, tempfile.TemporaryDirectory(prefix="triplane-") as folder:
        path = Path(folder) / "attributes.parquet"
        batches = lanes(documents.read(shard, metadata=_needs_metadata(taggers, shard)))
        schema, tables = _tables(one, taggers, batches, (str(task["source"]), shard.name), task["index"])
        with spark_worker.parquet_writer(path, schema) as writer:
            for table in row_groups(tables):
                _check_rows(table, counts["records"], shard)
                writer.write_table(table, row_group_size=spark_worker.ROW_GROUP_ROWS)
                _count(table, counts, quarantined)
        entry = one.draft.put_file(path, stem, ".parquet", rows=counts["records"])
    values = {
        **counts,
        "quarantined": dict(sorted(quarantined.items())),
        "name": shard.name,
        "sha256": str(task["sha256"]),
    }
    one.draft.record(stem, [entry], values)
    return {}


def _needs_metadata(taggers: Taggers, shard: documents.DocumentShard) -> bool:
    names = [tagger.name for tagger, _ in taggers if tagger.needs_metadata]
    if names and shard.name.endswith(documents.PARQUET_SUFFIX):
        raise UsageError(f"document shard {shard.name} is Parquet, read without metadata: leave out tagger {names[0]}")
    return bool(names)


def _tables(
    one: TagParams, taggers: Taggers, batches: Iterator[documents.Batch], shard: tuple[str, str], index: int
) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """The rows of a shard (source, name) with number `index`, in tables of any size, and their schema."""
    if one.earlier is None:
        schema = attributes_schema(taggers)
        return schema, (batch_table(batch, taggers, schema, *shard) for batch in batches)
    before = later_pass.earlier_table(one.earlier, index)
    schema = attributes_schema(taggers, before.schema_arrow)
    return schema, later_pass.later_tables(before, batches, taggers, schema, one.earlier.where, shard)


def _check_rows(table: pa.Table, first_row: int, shard: documents.DocumentShard) -> None:
    rows = table.column("row").to_numpy()
    if not np.array_equal(rows, np.arange(first_row, first_row + len(rows))):
        raise Refused(
            f"document shard {shard.name}: records {first_row} to {first_row + len(rows)} were not read once each, in order: report this file"
        )


def _count(table: pa.Table, counts: Counter[str], quarantined: Counter[str]) -> None:
    reasons = table.column("quarantine").drop_null().to_pylist()
    quarantined.update(reasons)
    counts["records"] += table.num_rows
    counts["documents"] += table.num_rows - len(reasons)
    for unit, column in (("bytes", "text_bytes"), ("tokens", recipe.TOKEN_COUNT)):
        counts[unit] += int(table.column(column).drop_null().to_numpy().sum())
