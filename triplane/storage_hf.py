"""Storage on the Hugging Face Hub, to read from only: what `triplane.storage` does for hf://datasets/owner/name[@revision]/path.

huggingface_hub's file system does the talking, to the Hub that `HF_ENDPOINT` names, with its own retries below ours. A revision (a
commit) makes a listing immutable; without one it is that of `main` today.
Source: huggingface_hub `HfFileSystem`. Checked here against a local server with the Hub's API, not against the Hub.
"""

import io
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

from triplane import retry
from triplane.errors import NotFound, TriplaneError, UsageError
from triplane.storage_local import Entry

T = TypeVar("T")

STREAM_BYTES = 8 << 20
TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})


def _file_system() -> Any:
    """fsspec keeps one instance a process and thread."""
    import huggingface_hub  # half a second, and only hf:// needs it

    from triplane.tokenizer_source import endpoint

    return huggingface_hub.HfFileSystem(endpoint=endpoint())


def is_transient(error: Exception) -> bool:
    """Whether trying again may help: throttling, 5xx, and failures of the network."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status in TRANSIENT_STATUS
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.split(".")[0] in {
        "httpx",
        "httpcore",
    }


def _call(url: str, action: str, operation: Callable[[], T]) -> T:
    try:
        return retry.call(operation, is_transient, f"{action} {url}")
    except TriplaneError:
        raise
    except FileNotFoundError as error:
        raise NotFound(
            f"{url} does not exist: check repository, revision and path, and whether it is private"
        ) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise TriplaneError(f"cannot {action} {url} ({reason}): check HF_ENDPOINT, HF_TOKEN and the network") from error


def _path(url: str) -> str:
    return url.removeprefix("hf://").rstrip("/")


def read(url: str) -> bytes:
    return _call(url, "read", lambda: _file_system().cat_file(_path(url)))


def read_range(url: str, start: int, length: int) -> bytes:
    if start >= stat(url).bytes:
        return b""
    return _call(
        url, "read", lambda: _file_system().cat_file(_path(url), start=start, end=start + length, cache_type="none")
    )


def stat(url: str) -> Entry:
    info = _call(url, "read", lambda: _file_system().info(_path(url)))
    if info["type"] != "file":
        raise NotFound(f"{url} is a folder: name a file")
    return _entry(url.rsplit("/", 1)[-1], info)


def _entry(name: str, info: dict[str, Any]) -> Entry:
    commit = info.get("last_commit")
    modified = commit.date.timestamp() if commit is not None and isinstance(commit.date, datetime) else 0.0
    return Entry(name, int(info["size"]), modified)


class _Retried(io.RawIOBase):
    """Sequential reads: a failed one is done again, as the position has not moved."""

    def __init__(self, url: str, file: Any) -> None:
        self._url, self._file = url, file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = _call(self._url, "read", lambda: self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def open_stream(url: str) -> BinaryIO:
    opened = _call(url, "read", lambda: _file_system().open(_path(url), "rb", block_size=STREAM_BYTES))
    return io.BufferedReader(_Retried(url, opened), STREAM_BYTES)


def entries(prefix_url: str) -> list[Entry]:
    base = _path(prefix_url)
    try:
        found = _call(prefix_url, "list", lambda: _file_system().find(base, detail=True))
    except NotFound:
        return []
    return sorted(_entry(name.removeprefix(base + "/"), info) for name, info in found.items() if name != base)


def folders(prefix_url: str) -> list[str]:
    try:
        found = _call(prefix_url, "list", lambda: _file_system().ls(_path(prefix_url), detail=True))
    except NotFound:
        return []
    return sorted(one["name"].rsplit("/", 1)[-1] for one in found if one["type"] == "directory")


def leftovers(prefix_url: str) -> list[Entry]:
    """None: nothing is written here."""
    return []


def _refuse(url: str) -> NoReturn:
    raise UsageError(
        f"{url} is on the Hugging Face Hub, which is only read from: choose a path, s3:// or gs:// to write to"
    )


def put(url: str, data: bytes) -> None:
    _refuse(url)


def put_file(url: str, source: Path) -> None:
    _refuse(url)


def put_if_absent(url: str, data: bytes) -> bool:
    _refuse(url)


def delete(url: str) -> None:
    _refuse(url)


def delete_leftover(prefix_url: str, entry: Entry) -> None:
    _refuse(prefix_url)
