"""A large array that is made once on a host and mapped by all of its processes: (name, what makes it) -> a read-only array.

The file lies in a folder of the user's own below the temporary folder, and goes with the last process that uses it; what a killed process
left, the next one removes. Where there is no room for the file, each process has the array to itself.
"""

import fcntl
import os
import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from triplane.progress import log

LEAST_BYTES = 256 << 20  # below, sharing is not worth a file
SUFFIX = ".u32"


def shared(name: str, count: int, make: Callable[[], np.ndarray]) -> np.ndarray:
    """uint32 [count], as `make` makes it. `name` says what it holds: equal names are equal arrays."""
    if count * 4 < LEAST_BYTES:
        return make()
    try:
        folder = _folder()
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the first makes it, the others wait
            return _mapped(folder / f"{name}{SUFFIX}", count, make)
    except OSError as error:
        log("not shared", array=name, reason=str(error))
        return make()


def _folder() -> Path:
    """Raises PermissionError when somebody else could write there."""
    folder = Path(tempfile.gettempdir(), f"triplane-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise PermissionError(f"{folder} is not this user's alone")
    return folder


def _mapped(path: Path, count: int, make: Callable[[], np.ndarray]) -> np.ndarray:
    if not path.exists() or path.stat().st_size != count * 4:
        for other in path.parent.glob(f"*{SUFFIX}"):
            with suppress(FileNotFoundError), other.open("rb") as file:
                _remove_unused(file, other)
        partial = path.with_suffix(".partial")  # one process is here at a time
        try:
            make().astype(np.uint32, copy=False).tofile(partial)
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
    file = path.open("rb")
    fcntl.flock(file, fcntl.LOCK_SH)
    array = np.memmap(file, np.uint32, "r", shape=(count,))
    weakref.finalize(array, _release, file, path)
    return array


def _release(file: BinaryIO, path: Path) -> None:
    with file:
        _remove_unused(file, path)


def _remove_unused(file: BinaryIO, path: Path) -> None:
    """Removes a file that no process has mapped. Who maps it at this moment keeps what is there."""
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
