"""Verified bytes: ranges of files in blocks of 16 KiB, each block checked against its xxh3-64 where it is read.

(file, byte range rounded to blocks) -> uint8 array, or one sentence that names file, block, expected and found checksum. A file without a
sidecar (AI2's own shards) is read unverified; whoever opens it says so. Local files are read with `pread`: a mapping of a file that another
process cuts short ends this one with SIGBUS. Remote ones are read many at once. Checksums come in pages that are kept up to a limit: the sidecars
of 4T tokens are 8 GB.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby

import numpy as np
from xxhash import xxh3_64_intdigest

from triplane import ranges, storage
from triplane.errors import Corrupt, NotFound
from triplane.tokens_writer import BLOCK_BYTES

DIGEST_BYTES = 8
PAGE_DIGESTS = 2048  # 16 KiB of checksums, for 32 MiB of a file
KEPT_PAGES = 16_384
REMOTE_READS_AT_ONCE = 64


@dataclass(frozen=True)
class BlockFile:
    """A file that must have `size` bytes, and the sidecar with one uint64 a block; None: nothing to verify it by."""

    url: str
    size: int
    url_checksums: str | None

    @cached_property
    def is_local(self) -> bool:
        """Whether it is on this machine's file systems."""
        return not ranges.is_public(self.url) and storage.is_local(self.url)

    @cached_property
    def path(self) -> str:
        """Where a local file is."""
        return os.fspath(storage.local_path(self.url))

    @cached_property
    def sidecar_path(self) -> str:
        """Where the sidecar of a local file is."""
        return os.fspath(storage.local_path(self.url_checksums or ""))

    @property
    def sidecar_bytes(self) -> int:
        """What the sidecar must have."""
        return DIGEST_BYTES * -(-self.size // BLOCK_BYTES)


@dataclass(frozen=True)
class Run:
    """Bytes [low, high) of a file: whole blocks, but for the end of the file."""

    file: BlockFile
    low: int
    high: int

    @property
    def blocks(self) -> tuple[int, int]:
        """The first block and the number of blocks."""
        first = self.low // BLOCK_BYTES
        return first, -(-self.high // BLOCK_BYTES) - first


def covering(file: BlockFile, start: int, length: int) -> Run:
    """The run of blocks that holds bytes [start, start + length)."""
    low = start // BLOCK_BYTES * BLOCK_BYTES
    return Run(file, low, min(-(-(start + length) // BLOCK_BYTES) * BLOCK_BYTES, file.size))


def check(run: Run, data: np.ndarray, digests: np.ndarray) -> np.ndarray:
    """`data` if each block of it has its checksum. Raises Corrupt for the first that has not."""
    view = data.data
    for index, expected in enumerate(digests.tolist()):
        found = xxh3_64_intdigest(view[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES])
        if found != expected:
            raise Corrupt(
                f"{run.file.url} block {run.low // BLOCK_BYTES + index} (of {BLOCK_BYTES} bytes): xxh3-64 expected {expected:016x}, "
                f"found {found:016x}; restore the file or make the shard again"
            )
    return data


def read(file: BlockFile, start: int, length: int) -> np.ndarray:
    """Bytes [start, start + length), uint8, every block touched verified. Raises Corrupt, NotFound."""
    if not length:
        return np.empty(0, np.uint8)
    run = covering(file, start, length)
    if file.is_local:
        (data,) = _read_local([run], _read_page)
    else:
        first, count = run.blocks
        sidecar = file.url_checksums and ranges.read(file.url_checksums, DIGEST_BYTES * first, DIGEST_BYTES * count)
        data = check(run, _fetch(run), np.frombuffer(sidecar or b"", "<u8"))
    return data[start - run.low : start - run.low + length]


class BlockReader:
    """Many runs at a time. Keeps checksums, and threads for remote files."""

    def __init__(self, reads_at_once: int = REMOTE_READS_AT_ONCE, kept_pages: int = KEPT_PAGES) -> None:
        self._pool = ThreadPoolExecutor(reads_at_once, "read")
        self._kept_pages = kept_pages
        self._pages: OrderedDict[tuple[str, int], Future[np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()
        self._local_page = lru_cache(kept_pages)(_read_page)

    def read(self, runs: Sequence[Run]) -> Iterator[np.ndarray]:
        """The bytes of each run in order, verified. Raises Corrupt, NotFound."""
        if all(run.file.is_local for run in runs):
            yield from _read_local(runs, self._local_page)
        else:
            yield from self._read_remote(runs)

    def _read_remote(self, runs: Sequence[Run]) -> Iterator[np.ndarray]:
        asked = [(run, self._pool.submit(_fetch, run), self._ask_pages(run)) for run in runs]
        for run, data, pages in asked:
            yield check(run, data.result(), _digests(run, [page.result() for page in pages]))

    def _ask_pages(self, run: Run) -> list[Future[np.ndarray]]:
        return [self._page(run.file, run.file.url_checksums or "", number) for number in _page_numbers(run)]

    def _page(self, file: BlockFile, url: str, number: int) -> Future[np.ndarray]:
        """A page of checksums, asked for once however many runs need it."""
        key = (url, number)
        with self._lock:
            if key in self._pages:
                self._pages.move_to_end(key)
                return self._pages[key]
            page = self._pages[key] = self._pool.submit(_fetch_page, file, url, number)
            if len(self._pages) > self._kept_pages:
                self._pages.popitem(last=False)
        page.add_done_callback(lambda done: self._forget(key, done))
        return page

    def _forget(self, key: tuple[str, int], done: Future[np.ndarray]) -> None:
        """A page that could not be read is asked for again the next time."""
        if done.cancelled() or done.exception():
            with self._lock:
                if self._pages.get(key) is done:
                    del self._pages[key]


def _fetch(run: Run) -> np.ndarray:
    return np.frombuffer(bytearray(ranges.read(run.file.url, run.low, run.high - run.low)), np.uint8)


def _fetch_page(file: BlockFile, url: str, number: int) -> np.ndarray:
    low = number * PAGE_DIGESTS * DIGEST_BYTES
    high = min(low + PAGE_DIGESTS * DIGEST_BYTES, file.sidecar_bytes)
    return np.frombuffer(ranges.read(url, low, high - low), "<u8")


def _page_numbers(run: Run) -> range:
    """The pages that hold the checksums of a run: none where there are none."""
    first, count = run.blocks
    return range(first // PAGE_DIGESTS, (first + count - 1) // PAGE_DIGESTS + 1 if run.file.url_checksums else 0)


def _digests(run: Run, pages: list[np.ndarray]) -> np.ndarray:
    """The checksums of a run out of its pages."""
    first, count = run.blocks
    whole = pages[0] if len(pages) == 1 else np.concatenate([np.empty(0, "<u8"), *pages])
    return whole[first % PAGE_DIGESTS :][:count]


def _read_local(runs: Sequence[Run], page: Callable[[BlockFile, int], np.ndarray]) -> Iterator[np.ndarray]:
    """Runs that follow one another in one file share its descriptor."""
    for _, of_file in groupby(runs, key=lambda run: id(run.file)):
        here = list(of_file)
        with _opened(here[0].file.path, here[0].file.size) as descriptor:
            for run in here:
                digests = _digests(run, [page(run.file, number) for number in _page_numbers(run)])
                yield check(run, _pread(descriptor, run.file.path, run.low, run.high - run.low), digests)


def _read_page(file: BlockFile, number: int) -> np.ndarray:
    low = number * PAGE_DIGESTS * DIGEST_BYTES
    high = min(low + PAGE_DIGESTS * DIGEST_BYTES, file.sidecar_bytes)
    with _opened(file.sidecar_path, file.sidecar_bytes) as descriptor:
        return _pread(descriptor, file.sidecar_path, low, high - low).view("<u8")


@contextmanager
def _opened(path: str, size: int) -> Iterator[int]:
    # Opened for each batch: 3 microseconds, against a descriptor per shard.
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist; the manifest that names it is newer than the folder") from None
    try:
        found = os.fstat(descriptor).st_size
        if found != size:
            raise Corrupt(f"{path} has {found} bytes, expected {size}: restore the file or make the shard again")
        yield descriptor
    finally:
        os.close(descriptor)


def _pread(descriptor: int, path: str, start: int, length: int) -> np.ndarray:
    data = np.empty(length, np.uint8)
    view, done = data.data, 0
    while done < length:
        got = os.preadv(descriptor, [view[done:]], start + done)
        if not got:
            raise Corrupt(f"{path} ends at byte {start + done}, expected {length - done} more: restore the file")
        done += got
    return data
