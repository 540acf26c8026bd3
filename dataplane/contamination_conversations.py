"""Instruction and preference data as documents, so that the same search finds evaluation items in them.

JSON lines with `messages`, or with `chosen` and `rejected` (texts or messages) and perhaps a `prompt` -> dolma JSONL.zst, a line for a line: the row
numbers of all that follows (hits, decisions) are those of the file that came in. The text is what everybody says, once. A line that is no
conversation is handed on as it is, and the reader quarantines it by row.

Formats: Hugging Face `messages` (role, content) and TRL's preference format; content may be a list of parts with `text`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from dataplane import documents
from dataplane.documents import MAX_DOCUMENT_BYTES, DocumentShard
from triplane import decompression, storage
from triplane.errors import Refused

FIELDS = ("prompt", "messages", "chosen", "rejected")
ZSTD_LEVEL = 3


def convert(url: str, folder: Path) -> dict[str, dict[str, int]]:
    """Writes a shard for each JSON lines file of a folder, glob or file -> by name: rows, and those that are conversations.

    UsageError when there is no file; Refused for one with another suffix, or whose line exceeds `MAX_DOCUMENT_BYTES`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return {shard.name: _convert(shard, folder / f"{_stem(shard.name)}.jsonl.zst") for shard in documents.shards(url)}


def _stem(name: str) -> str:
    found = decompression.DOCUMENT_SUFFIX.search(name)
    if found is None:
        raise Refused(f"{name} holds no JSON lines: convert it to {decompression.DOCUMENT_FORMS}")
    return name[: found.start()].replace("/", "-")


def _convert(shard: DocumentShard, path: Path) -> dict[str, int]:
    counts = {"rows": 0, "conversations": 0}
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
    with path.open("wb") as file, compressor.stream_writer(file, closefd=False) as output:
        for number, line in enumerate(_lines(shard)):
            made = _document(line, number)
            output.write((made if made is not None else line) + b"\n")
            counts["rows"] += 1
            counts["conversations"] += made is not None
    return counts


def _lines(shard: DocumentShard) -> Iterator[bytes]:
    held = b""
    with storage.open_stream(shard.url) as stream:
        for piece in decompression.chunks(stream, shard.name):
            *whole, held = (held + piece).split(b"\n")
            yield from whole
            if len(held) > MAX_DOCUMENT_BYTES:
                raise Refused(f"a line of {shard.url} has more than {MAX_DOCUMENT_BYTES} bytes: it is no conversation")
    if held:
        yield held


def _document(line: bytes, number: int) -> bytes | None:
    """None for what is no conversation."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    said = text(row) if isinstance(row, dict) else None
    if said is None:
        return None
    return json.dumps({"id": str(row.get("id", number)), "text": said}).encode()


def text(row: dict[str, Any]) -> str | None:
    """What is said in a row, a blank line between turns; a turn of `chosen` that `rejected` has too stands once. None: no conversation."""
    turns: list[str] = []
    for name in FIELDS:
        found = _turns(row.get(name))
        if found is None:
            return None
        turns += found
    return "\n\n".join(dict.fromkeys(turns)) or None


def _turns(value: Any) -> list[str] | None:
    """None for another shape."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        return None
    found = [_content(one.get("content")) for one in value]
    return None if any(one is None for one in found) else [one for one in found if one]


def _content(value: Any) -> str | None:
    """A text, the texts of its parts, or nothing (a call of a tool)."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        return "\n".join(part["text"] for part in value if isinstance(part.get("text"), str))
    return None
