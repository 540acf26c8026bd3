"""Storage on a local (or shared POSIX) file system: what `triplane.storage` does for paths and file:// URLs.

Bytes -> files that are whole or absent: temporary, fsync, rename (or link, when absent), fsync of the folder.
A full disk is one sentence and leaves nothing behind. Source: POSIX rename(2) and link(2).
"""

import errno
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

from triplane.errors import Corrupt, NotFound, TriplaneError

_PARTIAL = re.compile(
    r"(?:.*/)?\.[^/]+\.[0-9a-f]{16}\.partial", re.DOTALL
)  # as `_partial` names them, and nothing else
FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
CANNOT_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES})
SCRATCH = re.compile(r"triplane-[a-z0-9_]{8}")  # the folders that our own tasks make with `tempfile` and remove
NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
COPY_BYTES = 1 << 20


class Entry(NamedTuple):
    """One object in a listing: name relative to the prefix, bytes, last modification in seconds since 1970."""

    name: str
    bytes: int
    modified: float


def path_of(url: str) -> Path:
    """The path a local URL names."""
    return Path(unquote(urlsplit(url).path)) if url.startswith("file://") else Path(url)


@contextmanager
def _explained(path: Path, action: str) -> Iterator[None]:
    """Turns an OSError into the one sentence a user needs."""
    try:
        yield
    except OSError as error:
        if action != "write" and isinstance(error, FileNotFoundError | NotADirectoryError):
            raise NotFound(f"{path} does not exist: check the name, or run the step that makes it") from error
        if error.errno in FULL_DISK:
            raise TriplaneError(
                f"no space is left to {action} {path} ({os.strerror(error.errno or 0)}): free some or choose another "
                f"root, then run the same command again; nothing half-written was kept"
            ) from error
        raise TriplaneError(f"cannot {action} {path} ({error.strerror}): check the path and its permissions") from error


def read(url: str) -> bytes:
    path = path_of(url)
    with _explained(path, "read"):
        return path.read_bytes()


def read_range(url: str, start: int, length: int) -> bytes:
    path = path_of(url)
    with _explained(path, "read"), path.open("rb", buffering=0) as file:
        file.seek(start)
        return _read_up_to(file.read, length)


def _read_up_to(read_some: Callable[[int], bytes | None], length: int) -> bytes:
    """A raw read may return less than asked (Linux stops at 2 GiB): read on until `length` or the end."""
    pieces = []
    while length > 0 and (piece := read_some(length)):
        pieces.append(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def stat(url: str) -> Entry:
    path = path_of(url)
    with _explained(path, "read"):
        found = path.stat()
    if not path.is_file():
        raise NotFound(f"{path} is a folder, not an object: name a file in it")
    return Entry(path.name, found.st_size, found.st_mtime)


def open_stream(url: str) -> BinaryIO:
    path = path_of(url)
    with _explained(path, "read"):
        return path.open("rb")


def put(url: str, data: bytes) -> None:
    path = path_of(url)
    with _written(path, lambda file: _write_all(file, data)) as partial, _explained(path, "write"):
        os.replace(partial, path)


def put_file(url: str, source: Path) -> None:
    path = path_of(url)
    with open_stream(str(source)) as stream:
        if not (_is_scratch(source) and _put_linked(path, source, stream)):
            put_stream(path, stream)


def _is_scratch(source: Path) -> bool:
    """Whether a file is one of a task's own, which nobody writes to any more: its bytes need no copy. A user's file does."""
    return source.parent.parent == Path(tempfile.gettempdir()) and SCRATCH.fullmatch(source.parent.name) is not None


def _put_linked(path: Path, source: Path, stream: BinaryIO) -> bool:
    """Gives a file its second name, as whole and as synced as a copy; False where the file system cannot."""
    partial = _partial(path)
    with _explained(path, "write"):
        _make_folder(path.parent)
        try:
            os.link(source, partial)
        except OSError as error:
            if error.errno in CANNOT_LINK:
                return False
            raise
        try:
            os.fsync(stream.fileno())
            os.replace(partial, path)
            _sync_folder(path.parent)
        finally:
            with suppress(OSError):
                partial.unlink()  # there still when something failed, or `path` was this very file already
    return True


def put_stream(path: Path, stream: BinaryIO) -> None:
    """Copies a stream to a file that is whole or absent."""
    with (
        _written(path, lambda file: shutil.copyfileobj(stream, file, COPY_BYTES)) as partial,
        _explained(path, "write"),
    ):
        os.replace(partial, path)


def put_if_absent(url: str, data: bytes) -> bool:
    path = path_of(url)
    if path.exists():
        return False
    with _written(path, lambda file: _write_all(file, data)) as partial, _explained(path, "write"):
        try:
            os.link(partial, path)
        except FileExistsError:
            # On NFS the reply to a link that succeeded can be lost and the client's second try finds its own link.
            return partial.stat().st_nlink == 2
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            raise TriplaneError(
                f"the file system of {path} has no hard links, which a commit needs: choose a root on another one"
            ) from error
        return True


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _partial(path: Path) -> Path:
    return path.parent / f".{path.name[:100]}.{uuid.uuid4().hex[:16]}.partial"


@contextmanager
def _written(path: Path, fill: Callable[[BinaryIO], None]) -> Iterator[Path]:
    """A filled and synced temporary beside `path`, gone afterwards; the folder is synced when the body succeeded."""
    partial = _partial(path)
    try:
        with _explained(path, "write"):
            _make_folder(path.parent)
            with partial.open("xb", buffering=0) as file:
                fill(file)
                os.fsync(file.fileno())
        yield partial
        _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            partial.unlink()


def _make_folder(folder: Path) -> None:
    """Makes a folder and those above it, each entry synced, so that a file in it survives a power cut."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder; there the server orders metadata itself.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def entries(prefix_url: str) -> list[Entry]:
    """Every file below a folder; the temporaries of writers are not objects and are left out."""
    return [entry for entry in _walk(path_of(prefix_url)) if not _PARTIAL.fullmatch(entry.name)]


def leftovers(prefix_url: str) -> list[Entry]:
    """The temporaries that writers that were killed left below a folder."""
    return [entry for entry in _walk(path_of(prefix_url)) if _PARTIAL.fullmatch(entry.name)]


def _walk(top: Path) -> list[Entry]:
    found = []
    for folder, _, names in os.walk(top):
        for name in names:
            path = Path(folder, name)
            with suppress(FileNotFoundError):  # removed since it was listed
                status = path.stat()
                found.append(Entry(path.relative_to(top).as_posix(), status.st_size, status.st_mtime))
    return sorted(found)


def folders(prefix_url: str) -> list[str]:
    top = path_of(prefix_url)
    return sorted(entry.name for entry in os.scandir(top) if entry.is_dir()) if top.is_dir() else []


def delete(url: str) -> None:
    path = path_of(url)
    with suppress(NotFound), _explained(path, "delete"):
        path.unlink()


def delete_leftover(prefix_url: str, entry: Entry) -> None:
    delete(str(path_of(prefix_url) / entry.name))


def short_read(url: str, start: int, length: int, got: int) -> Corrupt:
    """The error for a range that an object is too short for."""
    return Corrupt(
        f"{url} holds {got} of the {length} bytes asked for at {start}: it was cut short or is not the object the "
        f"manifest describes; run `triplane verify` on its artifact"
    )
