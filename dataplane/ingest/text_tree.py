"""A folder of text files -> document shards.

Files below a folder (local, S3, GCS), chosen by suffix, in the order of their names -> dolma JSONL.zst, one document a file: `id` is the path below
the folder, `text` the whole file. The same files give the same bytes. A file that is not UTF-8 becomes a record that is not either, so that the
reader quarantines it by row and reason: files in = records out. Files are read in pieces: memory does not depend on their size.

Format: allenai/dolma `docs/data-format.md`.
"""

import codecs
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import zstandard

from triplane import storage
from triplane.errors import NotFound, Refused, UsageError

ZSTD_LEVEL = 3
READ_BYTES = 4 << 20
SHARD_BYTES = 64 << 20  # of text
SHARD_FILES = 10_000  # each is an object to open


def listing(url_folder: str, suffixes: Sequence[str]) -> list[storage.Entry]:
    """The files that become documents, sorted by name. No suffixes: all files. Raises UsageError if there are none."""
    found = [entry for entry in storage.entries(url_folder) if not suffixes or entry.name.endswith(tuple(suffixes))]
    if not found:
        raise UsageError(
            f"{url_folder} holds no files ending in {' or '.join(suffixes) or 'anything'}: check the path and the suffixes"
        )
    return found


def groups(files: Sequence[storage.Entry]) -> Iterator[list[storage.Entry]]:
    """The files of each shard, in order: a shard ends with the file that brings it to `SHARD_BYTES` or `SHARD_FILES`."""
    group: list[storage.Entry] = []
    total = 0
    for entry in files:
        group.append(entry)
        total += entry.bytes
        if total >= SHARD_BYTES or len(group) >= SHARD_FILES:
            yield group
            group, total = [], 0
    if group:
        yield group


def write_shard(path: Path, url_folder: str, files: Sequence[tuple[str, int]], source: str) -> None:
    """Writes one record for each (name, bytes). Raises Refused when a file is gone or has another size."""
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
    with path.open("wb") as output, compressor.stream_writer(output, closefd=False) as stream:
        for name, size in files:
            stream.write(b'{"id":"%b","text":"' % _escaped(name))
            read = _write_text(stream, storage.join(url_folder, name))
            if read != size:
                raise Refused(
                    f"{storage.join(url_folder, name)} has {read} bytes, {size} when it was listed: build again once the folder is still"
                )
            stream.write(b'","source":"%b"}\n' % _escaped(source))


def _write_text(stream: BinaryIO, url: str) -> int:
    """Copies a file as the inside of a JSON string -> its bytes. What is not UTF-8 is copied as it is."""
    decoder, read = codecs.getincrementaldecoder("utf-8")("surrogateescape"), 0
    try:
        with storage.open_stream(url) as file:
            while piece := file.read(READ_BYTES):
                read += len(piece)
                stream.write(_escaped(decoder.decode(piece)))
    except NotFound:
        raise Refused(f"{url} vanished after it was listed: build again once the folder is still") from None
    stream.write(_escaped(decoder.decode(b"", final=True)))
    return read


def _escaped(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False)[1:-1].encode("utf-8", "surrogateescape")
