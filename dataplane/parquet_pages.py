"""The sizes that a Parquet file's pages say they have, read before a page is decoded.

A file and one of its column chunks -> the stored and the decoded bytes of each page. A reader allocates what a page's header says, so that is
what has to be looked at; the footer may say something else.

Format: https://parquet.apache.org/docs/file-format/data-pages/ (`PageHeader`: fields 2 and 3), in Thrift's compact protocol.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

MAX_DEPTH = 16
STOP, TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 12
VARINTS = (4, 5, 6)  # i16, i32, i64
MOST_CONTAINER_ITEMS = 1 << 20
MOST_BINARY_BYTES = 1 << 31


class BadPage(ValueError):
    """What stands where a page should begin is no page header."""


@dataclass(frozen=True)
class Page:
    """Bytes in the file, header left out, and bytes once decoded."""

    stored: int
    decoded: int


def pages(file: BinaryIO, chunk: Any) -> Iterator[Page]:
    """The pages of a column chunk, a `pyarrow.parquet.ColumnChunkMetaData`. Raises BadPage."""
    start = chunk.data_page_offset
    if chunk.dictionary_page_offset:
        start = min(start, chunk.dictionary_page_offset)
    end = start + chunk.total_compressed_size
    if start < 0:
        raise BadPage(f"a column chunk begins at byte {start}")
    while start < end:
        file.seek(start)
        found = _read_struct(file, 0)
        stored, decoded = found.get(3), found.get(2)
        if stored is None or decoded is None or stored < 0 or decoded < 0:
            raise BadPage(f"at byte {start} there is no page header")
        yield Page(stored, decoded)
        start = file.tell() + stored


def _read_struct(file: BinaryIO, depth: int) -> dict[int, int]:
    """The integer fields of a Thrift struct, by number; the others are passed over."""
    if depth > MAX_DEPTH:
        raise BadPage(f"at byte {file.tell()} a page header is nested more than {MAX_DEPTH} deep")
    fields: dict[int, int] = {}
    number = 0
    while (head := _byte(file)) & 0x0F != STOP:
        number = number + (head >> 4) if head >> 4 else _signed(_varint(file))
        kind = head & 0x0F
        if kind in VARINTS:
            fields[number] = _signed(_varint(file))
        elif kind not in (TRUE, FALSE):
            _skip(file, kind, depth)
    return fields


def _skip(file: BinaryIO, kind: int, depth: int) -> None:
    if kind in (TRUE, FALSE, BYTE):
        _byte(file)
    elif kind in VARINTS:
        _varint(file)
    elif kind == DOUBLE:
        file.seek(8, 1)
    elif kind == BINARY:
        if (length := _varint(file)) > MOST_BINARY_BYTES:
            raise BadPage(f"at byte {file.tell()} a page header holds a string of {length} bytes")
        file.seek(length, 1)
    elif kind in (LIST, SET):
        head = _byte(file)
        items = head >> 4 if head >> 4 < 15 else _varint(file)
        if items > MOST_CONTAINER_ITEMS or depth > MAX_DEPTH:
            raise BadPage(f"at byte {file.tell()} a page header holds a list of {items}")
        for _ in range(items):
            _skip(file, head & 0x0F, depth + 1)
    elif kind == STRUCT:
        _read_struct(file, depth + 1)
    else:
        raise BadPage(f"at byte {file.tell()} a page header has a field of unknown type {kind}")


def _byte(file: BinaryIO) -> int:
    data = file.read(1)
    if not data:
        raise BadPage("the file ends inside a page header")
    return data[0]


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = _byte(file)
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
    raise BadPage(f"at byte {file.tell()} a number in a page header is too long")


def _signed(value: int) -> int:
    return value >> 1 ^ -(value & 1)
