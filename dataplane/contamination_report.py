"""What of the evaluation items is in the tagged documents: hits, rates by task and by source, and the record that scores are read against.

Attributes with the tagger `contamination` + the items its index was made of -> a report, as JSON values. Its short form is committed as
`contamination_report/contamination@VERSION`, which `triplane.contamination_status` reads: per task the items that were looked for, those that were
found, and those that each selection of these attributes kept (`contamination_kept`), for that is what a model was trained on.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataplane import (
    contamination,
    contamination_artifact,
    contamination_build,
    contamination_kept,
    documents,
    edits,
    ingestion,
    paragraphs,
)
from dataplane.contamination_kept import HITS, Rows
from dataplane.kernels import contamination_clusters
from triplane import artifact, contamination_status
from triplane.errors import NotFound, Refused

VERSION = 3
CONTEXT_BYTES = 200
BY_QUESTION = ("strict", "simple")
LEAST_WORDS = {  # of a question, or of an instance, that a preset can find
    **dict.fromkeys(BY_QUESTION, contamination_clusters.QUESTION_WORDS),
    "flan": contamination.FLAN_NGRAM,
    "tulu": contamination.TULU_NGRAM,
    "gpt3": contamination.GPT3_NGRAM,
    "paragraph": paragraphs.MIN_WORDS,
}
TAGGER = "contamination"


@dataclass(frozen=True)
class Report:
    """tasks: items by task: id -> (question, answer, passage). sources: documents, and those with a hit. hits: by falling score, each with source,
    document, task, item, score and the text (before, match, after). found: items by task, with those that have the same words as one that was found.
    kept: the same of what a selection kept, by `contamination_status.pair`. unsearched: items too short for the preset.
    parents: the attributes, their selections and the items."""

    preset: str
    tasks: dict[str, dict[str, tuple[str, str, str]]]
    sources: dict[str, dict[str, int]]
    hits: list[dict[str, Any]]
    found: dict[str, set[str]]
    kept: dict[str, dict[str, set[str]]]
    unsearched: dict[str, set[str]]
    parents: tuple[str, ...]


def report(root: str, items: str, sources: Sequence[str] | None, preset: str) -> Report:
    """NotFound when no attributes are there; Refused when a source was not tagged with the preset, or with an index of other items."""
    manifest, table = contamination_artifact.read_items(root, items)
    tasks: dict[str, dict[str, tuple[str, str, str]]] = {}
    for row in table.to_pylist():
        tasks.setdefault(row["task"], {})[row["item"]] = (row["question"], row["answer"], row["passage"])
    chosen = [artifact.load(root, _reference(name)) for name in sources or _tagged(root)]
    alike, counts, hits, kept = Alike(table), {}, [], {}
    selections = contamination_kept.selections(root)
    for one in chosen:
        _check(root, one, preset, manifest)
        counts[one.name], rows = _of_source(root, one, preset)
        hits += _texts(root, one, rows)
        for pair, items_kept in contamination_kept.by_selection(
            root, selections, one, rows, _cuts(one, preset)
        ).items():
            kept[pair] = alike.by_task(items_kept)
    hits.sort(key=lambda hit: (-hit["score"], hit["task"], hit["item"], hit["document"]))
    found = alike.by_task((hit["task"], hit["item"]) for hit in hits)
    used = sorted(pair.partition(" ")[0] for pair in kept)
    parents = (manifest.reference, *(one.reference for one in chosen), *dict.fromkeys(used))
    return Report(preset, tasks, counts, hits, found, kept, _unsearched(table, preset), parents)


def _unsearched(items: pa.Table, preset: str) -> dict[str, set[str]]:
    able = contamination_build.searched(items, LEAST_WORDS[preset], preset in BY_QUESTION)
    found: dict[str, set[str]] = {}
    for row in items.filter(pa.array(~able)).select(["task", "item"]).to_pylist():
        found.setdefault(row["task"], set()).add(row["item"])
    return found


class Alike:
    """Items of a task with the same words: the index has the first of them, and what is found of it is found of all."""

    def __init__(self, items: pa.Table) -> None:
        names = list(zip(items.column("task").to_pylist(), items.column("item").to_pylist(), strict=True))
        self._all: dict[tuple[str, str], list[str]] = {}
        for number, first in enumerate(contamination_build.firsts(items).tolist()):
            self._all.setdefault(names[first], []).append(names[number][1])

    def by_task(self, items: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
        """task -> these items and those like them."""
        found: dict[str, set[str]] = {}
        for task, item in set(items):
            found.setdefault(task, set()).update(self._all.get((task, item), [item]))
        return found


def _reference(name: str) -> str:
    return name if name.startswith("attributes/") else f"attributes/{name}"


def _tagger(manifest: artifact.Manifest) -> dict[str, Any] | None:
    """The parameters of the tagger, outside or inside `edited`."""
    taggers = manifest.recipe.get("taggers", {})
    inside = taggers.get("edited", {})
    named = [one for one in [*inside.get("edits", []), *inside.get("taggers", [])] if isinstance(one, dict)]
    found: dict[str, Any] = {one["name"]: one["params"] for one in named} | taggers
    return found.get(TAGGER)


def _cuts(manifest: artifact.Manifest, preset: str) -> bool:
    """Whether what the preset found was cut from the documents: an edit cuts what its first preset finds."""
    inside = manifest.recipe.get("taggers", {}).get("edited", {}).get("edits", [])
    return any(
        isinstance(one, dict) and one["name"] == TAGGER and one["params"]["presets"][0] == preset for one in inside
    )


def _edits_before(manifest: artifact.Manifest) -> list[str]:
    """The columns of the edits that were made before the tagger read a text, in order: its hits point into what they left."""
    taggers = manifest.recipe.get("taggers", {})
    if TAGGER in taggers:
        return []
    names = [one if isinstance(one, str) else one["name"] for one in taggers.get("edited", {}).get("edits", [])]
    return [edits.column(name) for name in (names[: names.index(TAGGER)] if TAGGER in names else names)]


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


def _of_source(root: str, one: artifact.Manifest, preset: str) -> tuple[dict[str, int], list[Rows]]:
    """(documents and those with a hit, hits of each shard by row)."""
    url, shards, total = artifact.artifact_url(root, one.reference), [], 0
    columns = ["row", HITS, *_edits_before(one)]
    for record in one.records:
        table = pq.read_table(pa.BufferReader(artifact.read(url, record.files[0])), columns=columns)
        total += int(record.counts["documents"])
        rows: Rows = {}
        for row in table.to_pylist():
            hits = [hit for hit in row.pop(HITS) or () if hit["preset"] == preset]
            if hits:
                rows[row.pop("row")] = {HITS: hits, **row}
        shards.append(rows)
    return {"documents": total, "contaminated": sum(map(len, shards))}, shards


def _texts(root: str, one: artifact.Manifest, shards: Sequence[Rows]) -> list[dict[str, Any]]:
    """Hits with their text; only shards with hits are read."""
    ingested, hits = artifact.load(root, str(one.metadata["ingested"])), []
    tasks = ingestion.Documents(one.name, ingested, artifact.artifact_url(root, ingested.reference)).tasks()
    for rows, task in zip(shards, tasks, strict=True):
        if rows:
            hits += _with_texts(one.name, task, rows, _edits_before(one))
    return hits


def _with_texts(source: str, task: ingestion.Task, found: Rows, spans: Sequence[str]) -> list[dict[str, Any]]:
    made = []
    with ingestion.fetched(task) as shard:
        for batch in documents.read(shard):
            for place, number in enumerate(batch.rows.tolist()):
                if (row := found.get(number)) is None:
                    continue
                named = {"source": source, "document": f"{shard.name}:{number}", "id": batch.id[place].as_py()}
                text = _as_read(batch.text[place].as_py(), [row[name] for name in spans])
                for hit in row[HITS]:
                    said = {key: hit[key] for key in ("task", "item", "score")}
                    made.append({**named, **said, **_excerpt(text, hit)})
    return made


def _as_read(text: str, spans: Sequence[list[int] | None]) -> str:
    """The text that the tagger read: without what earlier edits cut."""
    cut = edits.applied_all(pa.array([text], pa.large_string()), [pa.array([one], edits.SPANS) for one in spans])
    return str(cut[0].as_py())


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
    tasks = {
        task: {"items": len(held), "contaminated": len(found.found.get(task, ()))}
        for task, held in sorted(found.tasks.items())
    }
    return {
        "preset": found.preset,
        "hits": len(found.hits),
        "tasks": tasks,
        "sources": dict(sorted(found.sources.items())),
    }


def commit(root: str, found: Report) -> str:
    """Commits what `contamination_status` reads -> its reference."""
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
    body = {task: _of_task(found, task, held) for task, held in found.tasks.items()}
    data = (json.dumps(body, sort_keys=True) + "\n").encode()
    draft.record("tasks", [draft.put_bytes(data, "tasks", ".json")], {})
    return draft.commit(summary(found)).reference


def _of_task(found: Report, task: str, held: Iterable[str]) -> dict[str, Any]:
    kept = {pair: sorted(items.get(task, ())) for pair, items in sorted(found.kept.items())}
    said = {"contaminated": found.found.get(task, ()), "unsearched": found.unsearched.get(task, ())}
    return {"items": sorted(held), **{name: sorted(items) for name, items in said.items()}, "kept": kept}
