"""A search for secrets in what was produced: files and objects, as they lie there and with their compression undone."""

import gzip
import io
import lzma
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow.parquet as pq
import zstandard

from triplane import storage


def found_in(contents: Iterable[tuple[str, bytes]], secrets: Mapping[str, str]) -> list[str]:
    """`where: which secret` for each that is found."""
    found = {
        f"{where}: {name}"
        for where, content in contents
        for form in _forms(content)
        for name, secret in secrets.items()
        if secret.encode() in form
    }
    return sorted(found)


def files(folder: Path, but: Iterable[Path] = ()) -> Iterable[tuple[str, bytes]]:
    """Every regular file below a folder."""
    left_out = set(but)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in left_out:
            yield str(path), path.read_bytes()


def objects(root: str) -> Iterable[tuple[str, bytes]]:
    """Every object below a root; what only marks a folder (Arrow writes such) has no content."""
    for name in (name for name in storage.list_names(root) if name and not name.endswith("/")):
        yield storage.join(root, name), storage.read(storage.join(root, name))


def _forms(content: bytes) -> Iterable[bytes]:
    yield content
    try:
        if content.startswith(b"\x28\xb5\x2f\xfd"):
            yield zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content), read_across_frames=True).read()
        elif content.startswith(b"\x1f\x8b"):
            yield gzip.decompress(content)
        elif content.startswith(b"PAR1"):
            yield str(pq.read_table(io.BytesIO(content)).to_pydict()).encode()
    except (zstandard.ZstdError, OSError, zlib.error, lzma.LZMAError, EOFError):
        return  # cut off: what is there was looked at
