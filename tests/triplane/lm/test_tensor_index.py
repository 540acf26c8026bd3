"""The index of tensors: what is written is read, and no field that is wrong gets past the reader."""

import dataclasses
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triplane.errors import Corrupt, Refused
from triplane.lm import tensor_index
from triplane.lm.tensor_index import Chunk, TensorEntry

HASH = "0" * 32
SIZES = {"a-0.safetensors": 1000, "a-1.safetensors": 1000}


def chunk(offsets: tuple[int, ...], shape: tuple[int, ...], file: str = "a-0.safetensors", start: int = 8) -> Chunk:
    length = 4
    for size in shape:
        length *= size
    return Chunk(offsets, shape, file, start, length, (HASH,) * -(-length // tensor_index.BLOCK_BYTES))


ENTRY = TensorEntry(
    "w", "F32", (6, 4), tensor_index.BLOCK_BYTES, (chunk((4, 0), (2, 4), "a-1.safetensors"), chunk((0, 0), (4, 4)))
)


def changed(**fields: Any) -> dict[str, Any]:
    """The index of ENTRY as JSON values, with fields of its first chunk, or of the tensor, replaced."""
    value = json.loads(tensor_index.to_bytes([ENTRY]))
    for name, new in fields.items():
        where = value["tensors"][0]
        (where if name in where else where["chunks"][0])[name] = new
    return value


def parse(value: Any) -> dict[str, TensorEntry]:
    return tensor_index.parse(json.dumps(value).encode(), "index", SIZES)


def test_round_trip_in_a_canonical_order() -> None:
    found = parse(changed())["w"]
    assert found.chunks == (ENTRY.chunks[1], ENTRY.chunks[0])
    halves = [dataclasses.replace(ENTRY, chunks=(one,)) for one in ENTRY.chunks]
    assert tensor_index.to_bytes(tensor_index.merged([halves[:1], halves[1:]])) == tensor_index.to_bytes([ENTRY])
    assert tensor_index.from_dict(dataclasses.asdict(ENTRY)) == ENTRY


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dtype": "F31"}, "unknown dtype F31"),
        ({"dtype": 3}, "dtype"),
        ({"shape": [6, 4], "offsets": [1, 0]}, "not covered exactly once"),
        ({"shape": [-6, 4]}, "shape"),
        ({"block_bytes": 0}, "blocks of 0 bytes"),
        ({"chunks": []}, "not covered exactly once by its 0 chunks"),
        ({"offsets": [0]}, "other dimensions"),
        ({"offsets": [3, 0]}, "outside it"),
        ({"offsets": [-1, 0]}, "outside it"),
        ({"offsets": [1.0, 0]}, "offsets"),
        ({"file": "a-0.pt"}, "no safetensors file of the manifest"),
        ({"file": "../b.safetensors"}, "no safetensors file of the manifest"),
        ({"start": -8}, "at -8"),
        ({"start": 1000}, "which has 1000 bytes"),
        ({"length": 60}, "60 bytes at 8"),
        ({"blocks": []}, "0 checksums"),
        ({"blocks": HASH}, "blocks"),
    ],
)
def test_a_wrong_field_is_corrupt(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(Corrupt, match=words):
        parse(changed(**fields))


def test_what_is_no_index_is_corrupt_and_another_version_is_refused() -> None:
    for text in (
        b"",
        b"[]",
        b"{}",
        b'{"format_version": 2}',
        b'{"format_version": 2, "tensors": [], "x": 1}',
        b"\x80\x04.",
    ):
        with pytest.raises(Corrupt, match="not an index of tensors"):
            tensor_index.parse(text, "index", SIZES)
    with pytest.raises(Refused, match="format_version 3"):
        parse({"format_version": 3, "tensors": []})
    twice = json.loads(tensor_index.to_bytes([ENTRY]))
    twice["tensors"] *= 2
    with pytest.raises(Corrupt, match="names a tensor twice"):
        parse(twice)


@given(cuts=st.lists(st.integers(1, 9), max_size=4), side=st.integers(0, 1), shift=st.integers(-1, 1))
def test_boxes_must_cover_a_tensor_exactly_once(cuts: list[int], side: int, shift: int) -> None:
    """A tensor of 10 x 10 cut at the places given along a side; then one cut is moved by one row: a gap or an overlap."""
    edges = sorted({0, *cuts, 10})
    boxes = []
    for begin, end in itertools.pairwise(edges):
        offsets, shape = [0, 0], [10, 10]
        offsets[side], shape[side] = begin, end - begin
        boxes.append((offsets, shape))
    if len(boxes) > 1 and shift:
        boxes[0][1][side] += shift
    chunks = tuple(chunk(tuple(o), tuple(n)) for o, n in boxes)
    entry = TensorEntry("w", "F32", (10, 10), tensor_index.BLOCK_BYTES, chunks)
    text = tensor_index.to_bytes([entry])
    if len(boxes) > 1 and shift:
        with pytest.raises(Corrupt, match="not covered exactly once"):
            tensor_index.parse(text, "index", SIZES)
    else:
        assert tensor_index.parse(text, "index", SIZES) == {"w": entry}


def test_an_overlap_that_hides_a_gap_is_found() -> None:
    """The numbers of elements add up: only the boxes tell."""
    boxes = (chunk((0, 0), (5, 10)), chunk((4, 0), (5, 10)))
    entry = TensorEntry("w", "F32", (10, 10), tensor_index.BLOCK_BYTES, boxes)
    with pytest.raises(Corrupt, match="not covered exactly once"):
        tensor_index.parse(tensor_index.to_bytes([entry]), "index", SIZES)
