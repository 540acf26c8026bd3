"""What of the evaluation items is in the tagged documents: hits, rates by task and by source, and the record that scores are read against.

Attributes with the tagger `contamination` + the items its index was made of -> a report, as JSON values. Its short form is committed as
`corpus/contamination@VERSION`, which `triplane.contamination_status` reads: per task the items that were looked for and those that were found.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataplane import contamination_artifact, documents, ingestion
from triplane import artifact, contamination_status
from triplane.errors import NotFound, Refused

VERSION = 1
CONTEXT_BYTES = 200
HITS, TAGGER = "contamination_hits", "contamination"


@dataclass(frozen=True)
class Report:
    """tasks: items by task: id -> (question, answer, passage). sources: documents, and those with a hit. hits: by falling score, each with source,
    document, task, item, score and the text (before, match, after). parents: the attributes and the items."""

    preset: str
    tasks: dict[str, dict[str, tuple[str, str, str]]]
    sources: dict[str, dict[str, int]]
    hits: list[dict[str, Any]]
    parents: tuple[str, ...]


def report(root: str, items: str, sources: Sequence[str] | None, preset: str) -> Report:
    """NotFound when no attributes are there; Refused when a source was not tagged with the preset, or with an index of other items."""
    manifest, table = contamination_artifact.read_items(root, items)
    tasks: dict[str, dict[str, tuple[str, str, str]]] = {}
    for row in table.to_pylist():
        tasks.setdefault(row["task"], {})[row["item"]] = (row["question"], row["answer"], row["passage"])
    chosen = [artifact.load(root, _reference(name)) for name in sources or _tagged(root)]
    counts, hits = {}, []
    for one in chosen:
        _check(root, one, preset, manifest)
        counts[one.name], found = _of_source(root, one, preset)
        hits += found
    hits.sort(key=lambda hit: (-hit["score"], hit["task"], hit["item"], hit["document"]))
    parents = (manifest.reference, *(one.reference for one in chosen))
    return Report(preset, tasks, counts, hits, parents)


def _reference(name: str) -> str:
    return name if name.startswith("attributes/") else f"attributes/{name}"


def _tagger(manifest: artifact.Manifest) -> dict[str, Any] | None:
    """The parameters of the tagger, outside or inside `edited`."""
    taggers = manifest.recipe.get("taggers", {})
    inside = taggers.get("edited", {})
    named = [one for one in [*inside.get("edits", []), *inside.get("taggers", [])] if isinstance(one, dict)]
    found: dict[str, Any] = {one["name"]: one["params"] for one in named} | taggers
    return found.get(TAGGER)


def _tagged(root: str) -> list[str]:
    """The newest attributes of each source that has been looked at."""
    newest: dict[str, str] = {}
    for reference in artifact.references(root, "attributes"):
        if _tagger(artifact.load(root, reference)) is not None:
            newest.setdefault(reference.partition("@")[0], reference)
    if not newest:
        raise NotFound(f"no source under {root} was tagged with {TAGGER}: add it to the recipe and build")
    return [newest[name] for name in sorted(newest)]


def _check(root: str, one: artifact.Manifest, preset: str, items: artifact.Manifest) -> None:
    params = _tagger(one)
    if params is None or preset not in params["presets"]:
        raise Refused(
            f"{one.reference} was not tagged with {TAGGER} preset {preset}: add it to the recipe and build again"
        )
    made = contamination_artifact.make(root, items.reference)
    if params["sha256"] != made.sha256:
        raise Refused(
            f"{one.reference} was tagged with index {params['sha256'][:12]}, the items {items.reference} give {made.sha256[:12]}: "
            "name the items that its index was made of"
        )


def _of_source(root: str, one: artifact.Manifest, preset: str) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """(documents and those with a hit, hits with their text) of a source; only shards with hits are read."""
    url, hits, total, flagged = artifact.artifact_url(root, one.reference), [], 0, 0
    ingested = artifact.load(root, str(one.metadata["ingested"]))
    tasks = ingestion.Documents(one.name, ingested, artifact.artifact_url(root, ingested.reference)).tasks()
    for record, task in zip(one.records, tasks, strict=True):
        table = pq.read_table(pa.BufferReader(artifact.read(url, record.files[0])), columns=["row", HITS])
        total += int(record.counts["documents"])
        held = {row["row"]: [hit for hit in row[HITS] or () if hit["preset"] == preset] for row in table.to_pylist()}
        found = {number: rows for number, rows in held.items() if rows}
        flagged += len(found)
        if found:
            hits += _with_texts(one.name, task, found)
    return {"documents": total, "contaminated": flagged}, hits


def _with_texts(source: str, task: ingestion.Task, found: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    made = []
    with ingestion.fetched(task) as shard:
        for batch in documents.read(shard):
            for place, number in enumerate(batch.rows.tolist()):
                for hit in found.get(number, ()):
                    named = {"source": source, "document": f"{shard.name}:{number}", "id": batch.id[place].as_py()}
                    made.append(
                        {
                            **named,
                            **{k: hit[k] for k in ("task", "item", "score")},
                            **_excerpt(batch.text[place].as_py(), hit),
                        }
                    )
    return made


def _excerpt(text: str, hit: dict[str, Any]) -> dict[str, str]:
    """The match with what stands around it."""
    data, start, end = text.encode(), hit["start"], hit["end"]
    pieces = {
        "before": data[max(0, start - CONTEXT_BYTES) : start],
        "match": data[start:end],
        "after": data[end : end + CONTEXT_BYTES],
    }
    return {name: piece.decode("utf-8", "ignore") for name, piece in pieces.items()}


def summary(found: Report) -> dict[str, Any]:
    """Rates by task (distinct items found) and by source (documents with a hit)."""
    items = {(hit["task"], hit["item"]) for hit in found.hits}
    counts = Counter(task for task, _ in items)
    tasks = {task: {"items": len(held), "contaminated": counts[task]} for task, held in sorted(found.tasks.items())}
    return {
        "preset": found.preset,
        "hits": len(found.hits),
        "tasks": tasks,
        "sources": dict(sorted(found.sources.items())),
    }


def commit(root: str, found: Report) -> str:
    """Commits what `contamination_status` reads -> its reference."""
    contaminated: dict[str, set[str]] = {}
    for hit in found.hits:
        contaminated.setdefault(hit["task"], set()).add(hit["item"])
    draft = artifact.begin(
        root,
        contamination_status.KIND,
        contamination_status.NAME,
        inputs={},
        recipe={"preset": found.preset},
        stage_versions={"contamination_report": VERSION},
        parents=found.parents,
    )
    if (standing := artifact.committed(draft)) is not None:
        return standing.reference
    body = {
        task: {"items": sorted(held), "contaminated": sorted(contaminated.get(task, ()))}
        for task, held in found.tasks.items()
    }
    data = (json.dumps(body, sort_keys=True) + "\n").encode()
    draft.record("tasks", [draft.put_bytes(data, "tasks", ".json")], {})
    return draft.commit(summary(found)).reference
