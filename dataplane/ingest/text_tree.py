"""A folder of text files -> document shards.

Files below a folder (local, S3, GCS), chosen by suffix, in the order of their names -> dolma JSONL.zst, one document a file: `id` is the path below
the folder, `text` the whole file. The same files give the same bytes. A file that is not UTF-8 becomes a record that is not either, so that the
reader quarantines it by row and reason: files in = records out. Memory is bounded by the largest file.

Format: allenai/dolma `docs/data-format.md`.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import zstandard

from triplane import storage
from triplane.errors import UsageError

ZSTD_LEVEL = 3


def names(url_folder: str, suffixes: Sequence[str]) -> list[str]:
    """The files that `convert` takes, relative to the folder and sorted. No suffixes: all files. Raises UsageError if there are none."""
    found = [name for name in storage.list_names(url_folder) if not suffixes or name.endswith(tuple(suffixes))]
    if not found:
        raise UsageError(
            f"{url_folder} holds no files ending in {' or '.join(suffixes) or 'anything'}: check the path and the suffixes"
        )
    return found


def convert(url_folder: str, suffixes: Sequence[str], source: str, output_folder: Path, shard_bytes: int) -> list[Path]:
    """Writes `part-00000.jsonl.zst`, ... into `output_folder`; a shard ends with the document that brings it to `shard_bytes` of JSON.

    Raises UsageError if no file matches.
    """
    output_folder.mkdir(parents=True, exist_ok=True)
    lines = (_line(url_folder, name, source) for name in names(url_folder, suffixes))
    paths: list[Path] = []
    line = next(lines, None)
    while line is not None:
        paths.append(output_folder / f"part-{len(paths):05d}.jsonl.zst")
        with paths[-1].open("wb") as file:
            line = _write_shard(file, line, lines, shard_bytes)
    return paths


def _line(url_folder: str, name: str, source: str) -> bytes:
    text = storage.read(storage.join(url_folder, name)).decode("utf-8", "surrogateescape")
    record = {"id": name, "text": text, "source": source}
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape") + b"\n"


def _write_shard(file: BinaryIO, line: bytes, lines: Iterator[bytes], shard_bytes: int) -> bytes | None:
    """Writes lines until the shard is full -> the line that belongs to the next one, if there is one."""
    written, next_line = 0, None
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
    with compressor.stream_writer(file, closefd=False) as stream:
        stream.write(line)
        written += len(line)
        for more in lines:
            if written >= shard_bytes:
                next_line = more
                break
            stream.write(more)
            written += len(more)
    return next_line
