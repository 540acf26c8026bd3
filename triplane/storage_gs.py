"""Storage on Google Cloud Storage: what `triplane.storage` does for gs://bucket/key.

gcsfs does the talking; put-if-absent is its mode "create", which sends ifGenerationMatch=0 (412: exists).
Source: https://cloud.google.com/storage/docs/request-preconditions. Checked here against a fake server, not against Google's.
"""

import io
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from triplane import retry
from triplane.errors import NotFound, TriplaneError, UsageError
from triplane.storage_local import Entry

T = TypeVar("T")

STREAM_BYTES = 8 << 20
ATTEMPT = "triplane-attempt"
TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})


def _file_system() -> Any:
    """fsspec keeps one instance a process (by pid and thread), so that a fork gets its own."""
    try:
        import gcsfs
    except ImportError as error:
        raise UsageError("gs:// needs gcsfs: pip install 'triplane[gcs]'") from error
    return gcsfs.GCSFileSystem(use_listings_cache=False)


def is_transient(error: Exception) -> bool:
    """Whether trying again may help: throttling, 5xx, and failures of the network."""
    code = getattr(error, "code", None)
    if code is not None:
        return str(code).isdigit() and int(code) in TRANSIENT_STATUS
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
        return False
    named = type(error).__module__.split(".")[0]
    return isinstance(error, ConnectionError | TimeoutError) or named in {"aiohttp", "requests"}


def _call(url: str, action: str, operation: Callable[[], T]) -> T:
    try:
        return retry.call(operation, is_transient, f"{action} {url}")
    except (TriplaneError, FileExistsError):
        raise
    except FileNotFoundError as error:
        raise NotFound(f"{url} does not exist: check the name, or run the step that makes it") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise TriplaneError(f"cannot {action} {url} ({reason}): check credentials and bucket") from error


def read(url: str) -> bytes:
    return _call(url, "read", lambda: _file_system().cat_file(url))


def read_range(url: str, start: int, length: int) -> bytes:
    if start >= stat(url).bytes:
        return b""
    return _call(url, "read", lambda: _file_system().cat_file(url, start=start, end=start + length))


def stat(url: str) -> Entry:
    return _entry(url.rsplit("/", 1)[-1], _call(url, "read", lambda: _file_system().info(url)))


def _entry(name: str, info: dict[str, Any]) -> Entry:
    updated = str(info.get("updated", "1970-01-01T00:00:00Z")).replace("Z", "+00:00")
    return Entry(name, int(info["size"]), datetime.fromisoformat(updated).timestamp())


class _Ranges(io.RawIOBase):
    """Sequential reads as ranged GETs: a dropped connection costs one range."""

    def __init__(self, url: str) -> None:
        self._url, self._bytes, self._at = url, stat(url).bytes, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._bytes - self._at)
        data = read_range(self._url, self._at, length) if length > 0 else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def open_stream(url: str) -> BinaryIO:
    return io.BufferedReader(_Ranges(url), STREAM_BYTES)


def put(url: str, data: bytes) -> None:
    _call(url, "write", lambda: _file_system().pipe_file(url, data, mode="overwrite"))


def put_file(url: str, source: Path) -> None:
    _call(url, "write", lambda: _file_system().put_file(str(source), url))


def put_if_absent(url: str, data: bytes) -> bool:
    """gcsfs tries again by itself after a lost answer, so "exists" may mean our own try: a mark in the metadata tells."""
    mark = {ATTEMPT: uuid.uuid4().hex}
    try:
        _call(url, "write", lambda: _file_system().pipe_file(url, data, mode="create", metadata=mark))
        return True
    except FileExistsError:
        found = _call(url, "read", lambda: _file_system().info(url))
        return (found.get("metadata") or {}).get(ATTEMPT) == mark[ATTEMPT]


def entries(prefix_url: str) -> list[Entry]:
    base = prefix_url.rstrip("/").removeprefix("gs://")
    try:
        found = _call(prefix_url, "list", lambda: _file_system().find(prefix_url, detail=True))
    except NotFound:
        return []
    return sorted(_entry(name[len(base) + 1 :], info) for name, info in found.items() if len(name) > len(base) + 1)


def folders(prefix_url: str) -> list[str]:
    try:
        found = _call(prefix_url, "list", lambda: _file_system().ls(prefix_url, detail=True))
    except NotFound:
        return []
    return sorted(one["name"].rstrip("/").rsplit("/", 1)[-1] for one in found if one["type"] == "directory")


def leftovers(prefix_url: str) -> list[Entry]:
    """None: an upload session that was never finished is invisible and ends by itself after a week."""
    return []


def delete(url: str) -> None:
    with suppress(NotFound):
        _call(url, "delete", lambda: _file_system().rm_file(url))


def delete_leftover(prefix_url: str, entry: Entry) -> None:
    """Nothing to do, as there are none."""
