"""Which evaluation items are in the documents that a selection kept: what a model that was trained on it has seen.

Hits of a source's attributes + the selections of the root -> items, by selection. A document that a rule dropped, a duplicate and a held-out one
were not trained on; what an edit cut is not in the text any more.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataplane.judgement import KEEP
from triplane import artifact, contamination_status

HITS = "contamination_hits"
Rows = dict[int, dict[str, Any]]  # of a shard: row -> its HITS, and the spans of earlier edits


def selections(root: str) -> list[artifact.Manifest]:
    """Those committed under the root."""
    return [artifact.load(root, reference) for reference in artifact.references(root, "selection")]


def by_selection(
    root: str, known: Sequence[artifact.Manifest], attributes: artifact.Manifest, shards: Sequence[Rows], is_cut: bool
) -> dict[str, set[tuple[str, str]]]:
    """`contamination_status.pair` of each selection of these attributes -> (task, item) in what it kept; none where the hits were cut."""
    found = {}
    for selection in known:
        if attributes.reference in selection.parents:
            pair = contamination_status.pair(selection.reference, attributes.reference)
            found[pair] = set() if is_cut else _kept(root, selection, attributes, shards)
    return found


def _kept(
    root: str, selection: artifact.Manifest, attributes: artifact.Manifest, shards: Sequence[Rows]
) -> set[tuple[str, str]]:
    url, decided = artifact.artifact_url(root, selection.reference), {one.shard: one for one in selection.records}
    items: set[tuple[str, str]] = set()
    for record, rows in zip(attributes.records, shards, strict=True):
        if rows:
            file = decided[f"{attributes.name}-{record.shard}"].files[0]
            table = pq.read_table(pa.BufferReader(artifact.read(url, file)), columns=["row", "decision"])
            decisions = dict(zip(*(table.column(name).to_pylist() for name in ("row", "decision")), strict=True))
            items |= {
                (hit["task"], hit["item"]) for row, held in rows.items() if decisions[row] == KEEP for hit in held[HITS]
            }
    return items
