"""`triplane train run` with one named point at which it stops: python -m tests.cluster.failing_run RECIPE ROOT TOKENS POINT MARKER.

The point is reached while the checkpoint at TOKENS is saved: the marker is written, so that a test knows, and then either everything waits (to be
killed) or the disk is full. The functions that are wrapped are the program's own; nothing in it knows of this.
"""

import errno
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.cli import app
from triplane import storage, storage_local
from triplane.artifact import Draft


def pause(marker: Path) -> None:
    marker.touch()
    time.sleep(600)


def while_uploading(folder: str, marker: Path) -> None:
    """Before the first data file of the checkpoint is whole."""
    put = storage.put

    def paused(url: str, data: bytes) -> None:
        if folder in url and url.endswith(".safetensors"):
            pause(marker)
        put(url, data)

    storage.put = paused


def after_record(folder: str, marker: Path) -> None:
    """All files stand and are recorded; there is no manifest."""
    record = Draft.record

    def paused(self: Draft, *arguments: Any) -> Any:
        done = record(self, *arguments)
        if folder in self.url:
            pause(marker)
        return done

    Draft.record = paused  # type: ignore[method-assign]


def after_manifest(folder: str, marker: Path) -> None:
    """Committed; the next step has not been told."""
    put_if_absent = storage.put_if_absent

    def paused(url: str, data: bytes) -> bool:
        done = put_if_absent(url, data)
        if folder in url and url.endswith("manifest.json"):
            pause(marker)
        return done

    storage.put_if_absent = paused


def disk_full(folder: str, marker: Path) -> None:
    """Half of a data file is written."""
    write_all = storage_local._write_all

    def failing(file: Any, data: bytes) -> None:
        if folder in str(file.name) and ".safetensors" in str(file.name):
            marker.touch()
            write_all(file, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file.name))
        write_all(file, data)

    storage_local._write_all = failing


POINTS: dict[str, Callable[[str, Path], None]] = {
    "while_uploading": while_uploading,
    "after_record": after_record,
    "after_manifest": after_manifest,
    "disk_full": disk_full,
}

if __name__ == "__main__":
    recipe, root, tokens, point, marker = sys.argv[1:]
    POINTS[point](f"tokens-{int(tokens):015d}", Path(marker))
    app(["train", "run", recipe, "--root", root, "--json"])
