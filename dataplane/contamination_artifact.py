"""The contamination index as an artifact.

Exported items -> `contamination_index/NAME@VERSION`, one file that a recipe names by URL and sha256.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataplane import contamination_build, contamination_index
from triplane import artifact, hashing, storage
from triplane.errors import Corrupt

KIND, VERSION = "contamination_index", 1


@dataclass(frozen=True)
class Made:
    """url, sha256, bytes: of the file. sets: task, split, items, indexed of each."""

    reference: str
    url: str
    sha256: str
    bytes: int
    sets: tuple[dict[str, Any], ...]


def read_items(root: str, reference: str) -> tuple[artifact.Manifest, pa.Table]:
    """The items of `triplane eval export-prompts`, set by set. Corrupt when a set is damaged, empty or of other columns: the build stops."""
    manifest = artifact.load(root, reference)
    url = artifact.artifact_url(root, manifest.reference)
    tables = []
    for file in manifest.files:
        where = storage.join(url, file.name)
        try:
            tables.append(pq.read_table(pa.BufferReader(artifact.read(url, file))))
        except pa.ArrowException as error:
            raise Corrupt(f"{where} is no Parquet file of evaluation items ({error}): export them again") from error
        if tables[-1].schema != contamination_build.ITEM_SCHEMA or tables[-1].num_rows == 0:
            raise Corrupt(f"{where} holds no evaluation items: name what `triplane eval export-prompts` made")
    if not tables:
        raise Corrupt(f"{manifest.reference} holds no set: name what `triplane eval export-prompts` made")
    return manifest, pa.concat_tables(tables)


def identity(manifest: artifact.Manifest) -> str:
    """What the items are, whatever they are called (64 hex digits)."""
    return hashing.identity([[record.shard, record.files[0].sha256] for record in manifest.records])


def make(root: str, items: str, ngrams: tuple[int, ...] = ()) -> Made:
    """Builds and commits the index; one that stands is read back. Corrupt when a set cannot be read, or has nothing that could be found."""
    manifest, table = read_items(root, items)
    draft = artifact.begin(
        root,
        KIND,
        manifest.name,
        inputs={"items": identity(manifest)},
        recipe={
            "ngrams": sorted({*contamination_build.NGRAMS, *ngrams}),
            "normalisation": contamination_index.NORMALISATION,
        },
        stage_versions={"contamination_index": VERSION},
        parents=(manifest.reference,),
    )
    standing = artifact.committed(draft)
    if standing is None:
        index = contamination_build.build(table, identity(manifest), ngrams)
        entry = draft.put_bytes(contamination_index.to_bytes(index), "items", ".index", rows=index.num_items)
        draft.record("items", [entry], {"items": index.num_items})
        standing = draft.commit({"sets": [vars(one) for one in index.sets]})
    [file] = standing.files
    return Made(
        standing.reference,
        storage.join(draft.url, file.name),
        file.sha256,
        file.bytes,
        tuple(standing.metadata["sets"]),
    )
