"""The contamination index: one file that every worker maps read-only.

Tables of n-grams by (normalisation, n) and the items they come from <-> bytes: a magic, the length of a JSON header (uint64), the header, then the
arrays, each at a multiple of 64 bytes, little-endian. The header says schema, normalisation, the sets and their counts, and where each array is.
An index of another schema or normalisation is refused: its hashes would match nothing, silently.
"""

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataplane.kernels.contamination_clusters import Items
from dataplane.kernels.contamination_table import Table
from dataplane.kernels.contamination_words import NORMALISATION
from triplane.errors import Corrupt, Refused

SCHEMA = 1
MAGIC = b"TPCONTAM"
ALIGNMENT = 64
MAX_HEADER_BYTES = 64 << 20
DTYPES = ("<u8", "<u4", "<f8", "<f4", "|u1")
QUESTIONS, PARAGRAPHS = "questions", "paragraphs"


@dataclass(frozen=True)
class Set:
    """The items of a task and split: read, and how many can be found at all: the others are too short, or of fewer than four different words."""

    task: str
    split: str
    items: int
    indexed: int


@dataclass(frozen=True)
class Index:
    """tables: QUESTIONS (5-grams), PARAGRAPHS, and `instances-{n}`. instance_first: uint32 [instances + 1], instance_items: uint32, the items of an
    instance. item_set: uint32 [items], the number of each item's set; names: item number -> its id in its task."""

    items_sha256: str
    sets: tuple[Set, ...]
    tables: Mapping[str, Table]
    items: Items
    instance_first: np.ndarray
    instance_items: np.ndarray
    item_set: np.ndarray
    name_first: np.ndarray
    name_bytes: np.ndarray

    @property
    def num_items(self) -> int:
        return len(self.item_set)

    def name(self, item: int) -> str:
        return self.name_bytes[self.name_first[item] : self.name_first[item + 1]].tobytes().decode()

    def set_of(self, item: int) -> Set:
        return self.sets[int(self.item_set[item])]

    def instances(self, n: int) -> Table:
        """The table of n-grams of instances. Refused when the index was made without it."""
        name = f"instances-{n}"
        if name not in self.tables:
            known = ", ".join(sorted(self.tables))
            raise Refused(
                f"the contamination index has no {n}-grams of instances ({known}): build it with --ngrams {n}"
            )
        return self.tables[name]


def to_bytes(index: Index) -> bytes:
    """The file; the same index gives the same bytes."""
    arrays: dict[str, np.ndarray] = {
        name: getattr(index, name)
        for name in ("instance_first", "instance_items", "item_set", "name_first", "name_bytes")
    }
    arrays |= {f"items.{name}": array for name, array in index.items._asdict().items()}
    for table, held in index.tables.items():
        arrays |= {f"{table}.{name}": array for name, array in held._asdict().items()}
    places, at = {}, 0
    for name, array in arrays.items():
        places[name] = {"dtype": array.dtype.str, "length": len(array), "offset": at}
        at += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    header: dict[str, Any] = {
        "schema": SCHEMA,
        "normalisation": NORMALISATION,
        "items_sha256": index.items_sha256,
        "sets": [vars(one) for one in index.sets],
        "tables": list(index.tables),
        "arrays": places,
        "bytes": at,
    }
    text = json.dumps(header, sort_keys=True).encode()
    start = len(MAGIC) + 8 + len(text)
    parts = [MAGIC, len(text).to_bytes(8, "little"), text, bytes(-start % ALIGNMENT)]
    for array in arrays.values():
        parts += [array.tobytes(), bytes(-array.nbytes % ALIGNMENT)]
    return b"".join(parts)


def open_file(path: Path) -> Index:
    """The index, mapped. Raises Corrupt for what is no whole index, Refused for another schema or normalisation."""
    with path.open("rb") as file:
        if path.stat().st_size < len(MAGIC) + 8:
            raise Corrupt(f"{path} is no contamination index: build it again")
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    header, start = _header(view, path)
    for key, here in (("schema", SCHEMA), ("normalisation", NORMALISATION)):
        if header.get(key) != here:
            raise Refused(
                f"contamination index {path} has {key} {header.get(key)!r}, this release reads {here!r}: build the index again with it"
            )
    if len(view) != start + header["bytes"]:
        raise Corrupt(
            f"contamination index {path} has {len(view)} bytes, not {start + header['bytes']}: restore it from a copy"
        )
    arrays = {name: _array(view, start, place, path) for name, place in header["arrays"].items()}
    try:
        return _index(header, arrays)
    except (KeyError, TypeError) as error:
        raise Corrupt(f"contamination index {path} lacks {error}: restore it from a copy") from error


def _header(view: mmap.mmap, path: Path) -> tuple[dict[str, Any], int]:
    """(header, where the arrays start)."""
    size = int.from_bytes(view[len(MAGIC) : len(MAGIC) + 8], "little")
    if view[: len(MAGIC)] != MAGIC or size > min(MAX_HEADER_BYTES, len(view)):
        raise Corrupt(f"{path} is no contamination index: build it again")
    end = len(MAGIC) + 8 + size
    try:
        header = json.loads(view[len(MAGIC) + 8 : end])
    except ValueError as error:
        raise Corrupt(f"the header of contamination index {path} is not JSON: restore it from a copy") from error
    if not isinstance(header, dict):
        raise Corrupt(f"the header of contamination index {path} is no object: restore it from a copy")
    return header, -(-end // ALIGNMENT) * ALIGNMENT


def _array(view: mmap.mmap, start: int, place: dict[str, Any], path: Path) -> np.ndarray:
    dtype, length, offset = place.get("dtype"), place.get("length"), place.get("offset")
    if dtype not in DTYPES or not isinstance(length, int) or not isinstance(offset, int) or min(length, offset) < 0:
        raise Corrupt(f"contamination index {path} describes an array wrongly: restore it from a copy")
    if start + offset + length * np.dtype(dtype).itemsize > len(view):
        raise Corrupt(f"contamination index {path} ends within an array: restore it from a copy")
    return np.frombuffer(view, dtype, length, start + offset)


def _index(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Index:
    tables = {name: Table(*(arrays[f"{name}.{field}"] for field in Table._fields)) for name in header["tables"]}
    items = Items(*(arrays[f"items.{field}"] for field in Items._fields))
    own = {name: arrays[name] for name in ("instance_first", "instance_items", "item_set", "name_first", "name_bytes")}
    sets = tuple(Set(**one) for one in header["sets"])
    return Index(str(header["items_sha256"]), sets, tables, items, **own)
