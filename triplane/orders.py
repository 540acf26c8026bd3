"""Data orders by name: (mix lock, seed, batch size, position) -> the instances of the global batch at that position.

`feistel` (`triplane.mixture.Order`) needs no index array and goes through every instance of an epoch: a batch at the end of one epoch goes on with
the first instances of the next. `olmo` and `olmo-core` replay AI2's runs: the files of the lock in their order, each once, the index array
shuffled by PCG64(seed + epoch) and cut to whole batches, so that no batch crosses the end of an epoch. Their epochs count from 0 and from 1.
A restart continues at its position, so that nothing is skipped or seen twice at an epoch's end, in any of the orders.

Source: `IterableDataset` and `MemMapDataset` of allenai/OLMo (their cut to a multiple of the world size falls into the partial batch that their
DataLoader drops), `NumpyFSLDataLoader` and `NumpyFSLDataset` of OLMo-core 3.0.0 (`chunk_size` = max_target_sequence_length / sequence_length).
"""

import hashlib
import threading
from functools import lru_cache
from typing import Protocol

import numpy as np

from triplane import shared_array
from triplane.errors import UsageError
from triplane.mixture import MixLock, Order

KINDS = ("feistel", "olmo", "olmo-core")
FIRST_EPOCH = {"olmo": 0, "olmo-core": 1}
WINDOW_BATCHES = 1000
MAX_UINT32 = 2**32 - 1


class DataOrder(Protocol):
    """What every order answers; nothing in it knows ranks or workers."""

    lock: MixLock

    def batch(self, position: int, batch_instances: int) -> np.ndarray:
        """Instance numbers of the global batch at a position (from 0), int64 [batch_instances]."""

    def locate(self, instances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Instance numbers [n] -> (index into lock.shards, instance in that shard), int64 [n] each."""

    def source_index(self, instances: np.ndarray) -> np.ndarray:
        """Instance numbers [n] -> index into lock.sources, int64 [n]."""


def make(kind: str, lock: MixLock, seed: int, chunk_instances: int = 1) -> DataOrder:
    """The order `kind`; only `olmo-core` shuffles chunks of more than one instance. Raises UsageError."""
    if kind not in KINDS:
        raise UsageError(f"data order {kind!r} is unknown: use {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if chunk_instances < 1 or (chunk_instances > 1 and kind != "olmo-core"):
        raise UsageError(f"data order {kind} has no chunks of {chunk_instances} instances: use olmo-core, or 1")
    if kind == "feistel":
        return Order(lock, seed)
    return ReplayOrder(lock, seed, FIRST_EPOCH[kind], chunk_instances)


class ReplayOrder:
    """AI2's order of a list of files. It needs the uint32 index array of an epoch, 4 bytes an instance (two epochs, where one ends): 3.9 GB for
    4T tokens in instances of 4,096. From 256 MiB on the processes of a host share it (`triplane.shared_array`); while it is shuffled, the one
    that does has it in memory."""

    def __init__(self, lock: MixLock, seed: int, first_epoch: int, chunk_instances: int = 1) -> None:
        """Raises UsageError for a lock that takes a source in part or repeats it by number: their lists name each file as often as it is read."""
        for source in lock.sources:
            if source.num_taken != source.num_available:
                raise UsageError(
                    f"mix {lock.name} takes {source.num_taken} instances of the {source.num_available} of {source.name}; AI2's orders "
                    f"read whole files: use the order feistel, or a lock made from their file list"
                )
        self.lock, self.seed, self.first_epoch, self.chunk_instances = lock, seed, first_epoch, chunk_instances
        chunk_tokens = lock.sequence_length * chunk_instances
        counts = np.array([shard.num_tokens // chunk_tokens * chunk_instances for shard in lock.shards], np.int64)
        self._ends = np.cumsum(counts)
        self._starts = self._ends - counts
        names = {source.name: i for i, source in enumerate(lock.sources)}
        self._source_of_shard = np.array([names[shard.source] for shard in lock.shards], np.int64)
        self.num_instances = int(self._ends[-1]) if len(counts) else 0
        if not 0 < self.num_instances < MAX_UINT32:
            raise UsageError(
                f"mix {lock.name} has {self.num_instances} instances: AI2's index arrays hold 1 to {MAX_UINT32 - 1}"
            )
        # Two, as batches on both sides of an epoch's end are read at once.
        self._epochs = lru_cache(2)(self._shuffled)
        self._shuffling = threading.Lock()

    def batch(self, position: int, batch_instances: int) -> np.ndarray:
        """Int64 [batch_instances]. Raises UsageError for a batch above a whole epoch."""
        epoch, number = divmod(position, self.positions_in_epoch(batch_instances))
        with self._shuffling:  # once, whoever asks at the same time
            indices = self._epochs(epoch)
        return indices[number * batch_instances :][:batch_instances].astype(np.int64)

    def positions_in_epoch(self, batch_instances: int) -> int:
        """Whole batches of an epoch: what is left over is not trained on. Raises UsageError where there is none."""
        if self.num_instances < batch_instances:
            raise UsageError(
                f"mix {self.lock.name} has {self.num_instances} instances, a batch needs {batch_instances}: use a smaller batch"
            )
        return self.num_instances // batch_instances

    def _shuffled(self, epoch: int) -> np.ndarray:
        return shared_epoch(self.num_instances, self.seed + self.first_epoch + epoch, self.chunk_instances)

    def locate(self, instances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(index into lock.shards, instance in that shard), int64 [n] each. Raises UsageError outside the lock."""
        instances = np.asarray(instances, np.int64)
        outside = instances[(instances < 0) | (instances >= self.num_instances)]
        if len(outside):
            raise UsageError(
                f"mix {self.lock.name} has {self.num_instances} instances; number {outside[0]} is none of them"
            )
        shards = np.searchsorted(self._ends, instances, side="right")
        return shards, instances - self._starts[shards]

    def source_index(self, instances: np.ndarray) -> np.ndarray:
        """Index into lock.sources, int64 [n]. Raises UsageError outside the lock."""
        return self._source_of_shard[self.locate(instances)[0]]


def shared_epoch(num_instances: int, seed: int, chunk_instances: int = 1) -> np.ndarray:
    """`epoch_indices`, which all processes of this host share if it is large."""
    name = f"order-{num_instances}-{seed}-{chunk_instances}"
    return shared_array.shared(name, num_instances, lambda: epoch_indices(num_instances, seed, chunk_instances))


def epoch_indices(num_instances: int, seed: int, chunk_instances: int = 1) -> np.ndarray:
    """uint32 [num_instances]: chunks of instances shuffled by PCG64(seed); `num_instances` is a multiple of `chunk_instances`."""
    chunks = np.arange(num_instances // chunk_instances, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(seed)).shuffle(chunks)
    if chunk_instances == 1:
        return chunks
    return (chunks[:, None] * np.uint32(chunk_instances) + np.arange(chunk_instances, dtype=np.uint32)).reshape(-1)


def window_hash(order: DataOrder, window: int, batch_instances: int, window_batches: int = WINDOW_BATCHES) -> str:
    """sha256 of the instance numbers of positions [window, window + 1) * window_batches, as uint32 (uint64 from 2^32 instances on).

    A function of the order alone: equal for any number of ranks, after any restart.
    """
    digest = hashlib.sha256()
    width = "<u4" if order.lock.num_instances <= MAX_UINT32 else "<u8"
    for position in range(window * window_batches, (window + 1) * window_batches):
        digest.update(order.batch(position, batch_instances).astype(width).data)
    return digest.hexdigest()
