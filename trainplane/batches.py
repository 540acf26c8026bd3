"""The batch at a position: (mix lock, order seed, batch size, position, rank of world) -> this rank's tokens and loss mask.

A global batch is a pure function of its position: no state, no worker, no restart changes it; rank r of n reads its instances r, r+n, ... Every
token comes through `triplane.tokens.Reader`, which verifies what it reads. An instance with 32 or more repeats of an n-gram is masked, not
dropped, so the order stays (OLMo 2's instance filter). Reading happens ahead, in one thread.

Shapes: B instances on this rank, T tokens. Positions count from 0: step k, counted from 1, trains on position k - 1.
"""

from collections import Counter, deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from triplane import mixture, repetition, storage, tokens
from triplane.errors import Corrupt, UsageError

# Remote ranged reads wait for the network, not for the processor.
REMOTE_READS_AT_ONCE = 16
OPEN_SHARDS = 4096


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch; `instances`, `order_hash` and `tokens_by_source` are of the global one."""

    position: int
    tokens_BT: np.ndarray  # int64
    is_target_BT: np.ndarray  # bool: may the token be predicted
    is_masked_B: np.ndarray  # bool: the instance filter masked it whole
    row_hashes_B: np.ndarray  # uint64, of the tokens and the mask as trained on
    instances: np.ndarray  # int64, of the whole global batch
    order_hash: str
    tokens_by_source: dict[str, int]


def batch_hash(row_hashes: np.ndarray) -> str:
    """32 hex digits of the row hashes of a whole global batch, in its order: what was trained on, whoever read it."""
    return xxh3_128_hexdigest(row_hashes.astype("<u8").tobytes())


def interleaved(by_rank_NB: np.ndarray) -> np.ndarray:
    """Values [ranks, B] gathered from every rank -> [ranks * B] in the order of the global batch."""
    return by_rank_NB.T.reshape(-1)


class Batches:
    """Batches of one mix lock, read from `root`."""

    def __init__(
        self,
        root: str,
        lock: mixture.MixLock,
        order_seed: int,
        batch_instances: int,
        instance_filter: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Raises UsageError unless the ranks divide the batch."""
        if batch_instances % world_size:
            raise UsageError(
                f"{world_size} workers cannot share a global batch of {batch_instances} instances equally: choose a divisor"
            )
        self.root, self.lock, self.batch_instances = root, lock, batch_instances
        self.rank, self.world_size, self.instance_filter = rank, world_size, instance_filter
        self.order = mixture.Order(lock, order_seed)
        self._reader = lru_cache(OPEN_SHARDS)(
            lambda shard: tokens.Reader(mixture.token_shard(root, lock.shards[shard]))
        )
        self._pool = None if storage.is_local(root) else ThreadPoolExecutor(REMOTE_READS_AT_ONCE, "read")

    def at(self, position: int) -> Batch:
        """Raises Corrupt for a damaged shard or a token outside the vocabulary, NotFound for a missing one."""
        instances = mixture.batch(self.lock, self.order, self.batch_instances, position)
        mine = instances[self.rank :: self.world_size]
        rows = self._rows(mine)
        tokens_BT = np.stack([ids for ids, _ in rows])
        is_target_BT = np.stack([mask for _, mask in rows])
        if self.instance_filter:
            is_masked_B = repetition.instance_is_repetitive(tokens_BT)
        else:
            is_masked_B = np.zeros(len(mine), bool)
        is_target_BT &= ~is_masked_B[:, None]
        return Batch(
            position=position,
            tokens_BT=tokens_BT.astype(np.int64),
            is_target_BT=is_target_BT,
            is_masked_B=is_masked_B,
            row_hashes_B=_row_hashes(tokens_BT, is_target_BT),
            instances=instances,
            order_hash=mixture.order_hash(instances),
            tokens_by_source=self._tokens_by_source(instances),
        )

    def ahead(self, first: int, stop: int, depth: int) -> Generator[Batch, None, None]:
        """Batches at positions [first, stop) in order, up to `depth` of them read before they are asked for."""
        pool = ThreadPoolExecutor(1, "read-ahead")
        try:
            waiting: deque[Future[Batch]] = deque()
            for position in range(first, stop):
                while len(waiting) <= depth and position + len(waiting) < stop:
                    waiting.append(pool.submit(self.at, position + len(waiting)))
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _rows(self, instances: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        shards, numbers = self.order.locate(instances)
        run: Callable = map if self._pool is None else self._pool.map
        return list(run(self._row, shards.tolist(), numbers.tolist()))

    def _row(self, shard: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(uint32 [T], bool [T]) of instance `number` of a shard."""
        reader, length = self._reader(shard), self.lock.sequence_length
        ids = reader.read(number * length, length)
        if ids.max() >= self.lock.vocab_size:
            raise Corrupt(
                f"{self.lock.shards[shard].tokens} holds token {ids.max()} in instance {number}, the tokenizer has "
                f"{self.lock.vocab_size}: tokenize the source again"
            )
        return ids, reader.read_mask(number * length, length)

    def _tokens_by_source(self, instances: np.ndarray) -> dict[str, int]:
        counts = Counter(self.order.source_index(instances).tolist())
        return {self.lock.sources[i].name: n * self.lock.sequence_length for i, n in sorted(counts.items())}


def _row_hashes(tokens_BT: np.ndarray, is_target_BT: np.ndarray) -> np.ndarray:
    rows = zip(np.ascontiguousarray(tokens_BT, "<u4"), is_target_BT, strict=True)
    return np.array([xxh3_64_intdigest(ids.tobytes() + mask.tobytes()) for ids, mask in rows], np.uint64)
