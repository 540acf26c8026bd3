"""Why a record is not a document.

One line of bytes -> a document, or a reason with a detail. This is the slow path: only lines that the scan did not accept come here.

Reasons: `REASONS`. Policies that others decide otherwise: a blank line is a record (so that row numbers are line numbers); a known key that
occurs twice is refused, because parsers differ in which one wins; a byte order mark is skipped at the start of a file and refused elsewhere;
lone surrogates are refused, because UTF-8 cannot hold them; so is what is nested more than about 250 deep, which parsers are free to.
"""

import json
from dataclasses import dataclass
from typing import Any

import orjson

REASONS = (
    "blank_line",
    "byte_order_mark",
    "invalid_utf8",
    "lone_surrogate",
    "malformed_json",
    "not_an_object",
    "duplicate_key",
    "missing_id",
    "id_not_string",
    "missing_text",
    "text_not_string",
    "source_not_string",
    "too_large",
    "truncated_stream",
    "corrupt_stream",
    "decompression_bomb",
)
KNOWN_KEYS = ("id", "text", "source", "metadata")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SAMPLE_BYTES = 200
TOO_DEEP = "nested too deeply"


@dataclass(frozen=True)
class Quarantined:
    """A record that is not a document. row: its number in the file, from 0; sample: its first bytes, those that are not UTF-8 escaped."""

    row: int
    reason: str
    detail: str
    sample: str

    @property
    def line(self) -> int:
        """The line number that editors show, from 1."""
        return self.row + 1


@dataclass(frozen=True)
class Document:
    id: str
    text: str
    source: str | None
    metadata: str | None


class NotADocument(Exception):
    """reason: one of REASONS; detail: what exactly and where."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def quarantined(row: int, reason: str, detail: str, line: bytes) -> Quarantined:
    return Quarantined(row, reason, detail, line[:SAMPLE_BYTES].decode("utf-8", "backslashreplace"))


def parse(line: bytes) -> Document:
    """One line, its LF not included. Raises NotADocument."""
    if not line.strip():
        raise NotADocument("blank_line", f"{len(line)} bytes of white space")
    if line.startswith(BYTE_ORDER_MARK):
        raise NotADocument("byte_order_mark", "a byte order mark inside the file")
    value = _json_value(line)
    if not isinstance(value, dict):
        raise NotADocument("not_an_object", f"the record is a JSON {type(value).__name__}")
    _refuse_deep_nesting(value)
    _refuse_duplicates(line)
    source = value.get("source")
    if not (source is None or isinstance(source, str)):
        raise NotADocument("source_not_string", f"`source` is a JSON {type(source).__name__}")
    metadata = orjson.dumps(value["metadata"]).decode() if "metadata" in value else None
    return Document(_string(value, "id"), _string(value, "text"), source, metadata)


def _json_value(line: bytes) -> Any:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        raise NotADocument("invalid_utf8", f"byte {error.start}: {error.reason}") from error
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        reason = "lone_surrogate" if "surrogate" in error.msg else "malformed_json"
        detail = TOO_DEEP if "limit" in error.msg else str(error)
        raise NotADocument(reason, detail) from error


def _refuse_deep_nesting(value: dict[str, Any]) -> None:
    """By what orjson writes (254 levels): a limit that does not depend on how deep the caller's own stack is."""
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise NotADocument("malformed_json", TOO_DEEP) from error


def _refuse_duplicates(line: bytes) -> None:
    """Only the outermost object matters: nobody reads keys of others by name here."""
    outermost: list[tuple[str, Any]] = []

    def keep(pairs: list[tuple[str, Any]]) -> None:  # called for inner objects first, the outermost last
        outermost[:] = pairs

    json.loads(line, object_pairs_hook=keep, parse_int=str, parse_float=str)
    keys = [key for key, _ in outermost]
    for key in KNOWN_KEYS:
        if keys.count(key) > 1:
            raise NotADocument("duplicate_key", f"`{key}` occurs {keys.count(key)} times")


def _string(value: dict[str, Any], key: str) -> str:
    if key not in value:
        raise NotADocument(f"missing_{key}", f"the record has no `{key}`")
    if not isinstance(value[key], str):
        raise NotADocument(f"{key}_not_string", f"`{key}` is a JSON {type(value[key]).__name__}")
    return str(value[key])
