"""Objects on local paths, s3:// and gs://: read ranges, list, and commit by one PUT; hf:// (the Hugging Face Hub) to read from.

A URL (a path, file://, s3://bucket/key, gs://bucket/key) -> bytes, or bytes -> an object that is whole or absent. `put_if_absent` is the only
commit there is: of any number of writers exactly one is told True. Remote calls are retried with jitter under one deadline (`retry.py`).
Each scheme is a module of the same functions: `storage_local`, `storage_s3`, `storage_gs`, `storage_hf`.
"""

import os
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from triplane import storage_gs, storage_hf, storage_local, storage_s3
from triplane.errors import NotFound, UsageError
from triplane.storage_local import Entry

__all__ = [
    "Entry",
    "absolute",
    "delete",
    "download",
    "entries",
    "exists",
    "folders",
    "is_local",
    "join",
    "list_names",
    "local_path",
    "modified",
    "open_stream",
    "put",
    "put_file",
    "put_if_absent",
    "read",
    "read_range",
    "size",
]


def _backend(url: str) -> ModuleType:
    scheme, separator, _ = url.partition("://")
    if not separator or scheme == "file":
        return storage_local
    if scheme == "s3":
        return storage_s3
    if scheme == "gs":
        return storage_gs
    if scheme == "hf":
        return storage_hf
    raise UsageError(f"{url} has the unknown scheme {scheme}://: use a path, file://, s3://, gs:// or (to read) hf://")


def join(root: str, *parts: str) -> str:
    """`root` with path parts after it: join("s3://b/x", "a/b") = "s3://b/x/a/b"."""
    cleaned = [str(part).strip("/") for part in parts]
    return "/".join([str(root).rstrip("/"), *(part for part in cleaned if part)])


def is_local(url: str) -> bool:
    """Whether a URL is on this machine's file systems."""
    return _backend(str(url)) is storage_local


def absolute(url: str) -> str:
    """A local path made absolute, as a worker may have another working directory; other URLs as they are."""
    return os.path.abspath(local_path(url)) if is_local(url) else url


def local_path(url: str) -> Path:
    """The path of a local URL. Raises UsageError for any other."""
    if not is_local(url):
        raise UsageError(f"{url} is not a local path: download it first")
    return storage_local.path_of(str(url))


def read(url: str) -> bytes:
    """A whole object. Raises NotFound."""
    return _backend(url).read(url)


def read_range(url: str, start: int, length: int) -> bytes:
    """Exactly `length` bytes from `start`. Raises NotFound, and Corrupt when the object ends before."""
    if start < 0 or length < 0:
        raise ValueError(f"start {start} and length {length} must not be negative")
    if length == 0:
        return b""
    data: bytes = _backend(url).read_range(url, start, length)
    if len(data) != length:
        raise storage_local.short_read(url, start, length, len(data))
    return data


def size(url: str) -> int:
    """Bytes of an object. Raises NotFound."""
    return _backend(url).stat(url).bytes


def modified(url: str) -> float:
    """When an object was last written, in seconds since 1970. Raises NotFound."""
    return _backend(url).stat(url).modified


def exists(url: str) -> bool:
    """Whether an object stands under this very URL (a folder is none)."""
    try:
        _backend(url).stat(url)
        return True
    except NotFound:
        return False


def open_stream(url: str) -> BinaryIO:
    """A sequential reader in bounded memory (8 MiB remote); close it. Raises NotFound."""
    return _backend(url).open_stream(url)


def put(url: str, data: bytes) -> None:
    """Writes a whole object, replacing any: readers see all of the old or all of the new."""
    _backend(url).put(url, data)


def put_file(url: str, path: Path) -> None:
    """As `put`, from a local file, in bounded memory."""
    _backend(url).put_file(url, Path(path))


def put_if_absent(url: str, data: bytes) -> bool:
    """Writes a whole object unless one stands there: True if these bytes were written by this call, False if not.

    When an answer got lost on the way and the object then exists, its content decides: equal to `data` is True. Writers
    that must be told apart (leases) therefore put something of their own into `data`.
    """
    return _backend(url).put_if_absent(url, data)


def download(url: str, path: Path) -> None:
    """Copies an object to a local file that is whole or absent."""
    with open_stream(url) as stream:
        storage_local.put_stream(Path(path), stream)


def entries(prefix_url: str) -> list[Entry]:
    """Every object below a prefix, recursively, sorted by its name relative to the prefix; [] if none."""
    return _backend(prefix_url).entries(prefix_url)


def list_names(prefix_url: str) -> list[str]:
    """The sorted names of `entries`."""
    return [entry.name for entry in entries(prefix_url)]


def folders(prefix_url: str) -> list[str]:
    """The sorted names directly below a prefix that have objects below them, without listing those."""
    return _backend(prefix_url).folders(prefix_url)


def delete(url: str) -> None:
    """Removes an object; an absent one is fine."""
    _backend(url).delete(url)


def leftovers(prefix_url: str) -> list[Entry]:
    """What writers that were killed left below a prefix and no reader sees: temporaries, unfinished multipart uploads."""
    return _backend(prefix_url).leftovers(prefix_url)


def delete_leftover(prefix_url: str, entry: Entry) -> None:
    """Removes one of `leftovers(prefix_url)`."""
    _backend(prefix_url).delete_leftover(prefix_url, entry)
