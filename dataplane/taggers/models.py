"""The model files that classifiers read: on any store, pinned by hash.

A URL and a sha256 -> a local path, for as long as it takes to load it. A file that is not the one the recipe names is refused before it is parsed.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triplane import hashing, storage
from triplane.errors import NotFound, Refused


@contextmanager
def fetched(url: str, sha256: str) -> Iterator[Path]:
    """The file, local; a copy of a remote one is removed afterwards. Raises NotFound, and Refused when its hash is not `sha256` (64 hex digits)."""
    if not storage.exists(url):
        raise NotFound(f"model {url} does not exist: correct it in the recipe, or fetch the file first")
    with tempfile.TemporaryDirectory(prefix="triplane-") as folder:
        if storage.is_local(url):
            path = storage.local_path(url)
        else:
            path = Path(folder) / "model"
            storage.download(url, path)
        check(path, sha256, url)
        yield path


def check(path: Path, sha256: str, name: str) -> None:
    """Raises Refused, naming both hashes."""
    found = hashing.sha256_file(path)
    if found != sha256:
        raise Refused(
            f"model {name} has sha256 {found}, the recipe says {sha256}: fetch the right file, or correct the recipe"
        )
