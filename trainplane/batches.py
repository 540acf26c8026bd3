"""The batch at a position: (mix lock, data order, batch size, position, rank of world) -> this rank's tokens and loss mask.

A global batch is a pure function of its position: no state, no worker, no restart changes it; rank r of n reads its instances r, r+n, ... Every
token comes through `triplane.token_rows`, which verifies what it reads. An instance with 32 or more repeats of an n-gram is masked, not
dropped, so the order stays (OLMo 2's instance filter). Reading happens ahead. What happens at the end of an epoch: `triplane.orders`.

Shapes: B instances on this rank, T tokens. Positions count from 0: step k, counted from 1, trains on position k - 1.
"""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from xxhash import xxh3_64, xxh3_128_hexdigest

from triplane import mixture, orders, repetition, tokens
from triplane.errors import Corrupt, UsageError
from triplane.progress import log
from triplane.token_rows import TokenRows

# Batches that wait for the network at once, so that the end of one does not hold up the next.
REMOTE_BATCHES_AT_ONCE = 4


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
        order: str = "feistel",
        chunk_instances: int = 1,
    ) -> None:
        """`order` and `chunk_instances`: see `triplane.orders.make`. Raises UsageError unless the ranks divide the batch."""
        if batch_instances % world_size:
            raise UsageError(
                f"{world_size} workers cannot share a global batch of {batch_instances} instances equally: choose a divisor"
            )
        self.root, self.lock, self.batch_instances = root, lock, batch_instances
        self.rank, self.world_size, self.instance_filter = rank, world_size, instance_filter
        self.order = orders.make(order, lock, order_seed, chunk_instances)
        self._rows = TokenRows(lambda shard: mixture.token_shard(root, lock.shards[shard]))
        if lock.num_unverified and rank == 0:
            log("unverified", mix=lock.name, shards=lock.num_unverified, of=len(lock.shards), reason="no checksums")

    def at(self, position: int) -> Batch:
        """Raises Corrupt for a damaged shard or a token outside the vocabulary, NotFound for a missing one."""
        instances = self.order.batch(position, self.batch_instances)
        mine = instances[self.rank :: self.world_size]
        tokens_BT, is_target_BT = self._read(mine)
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
        """Batches at positions [first, stop) in order, up to `depth` of them read before they are asked for.

        With the last batch of every 1,000 positions, the hash of their order is logged.
        """
        is_local = tokens.token_file(mixture.token_shard(self.root, self.lock.shards[0])).is_local
        pool = ThreadPoolExecutor(1 if is_local else REMOTE_BATCHES_AT_ONCE, "read-ahead")
        try:
            waiting: deque[Future[tuple[Batch, str | None]]] = deque()
            for position in range(first, stop):
                while len(waiting) <= depth and position + len(waiting) < stop:
                    waiting.append(pool.submit(self._with_window, position + len(waiting)))
                batch, window = waiting.popleft().result()
                if window is not None:
                    log("data order", mix=self.lock.name, stop=position + 1, sha256=window)
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def window_hash(self, position: int) -> str | None:
        """sha256 of the instances of the 1,000 positions that end with this one, None if none do. Equal for any number of ranks."""
        window, rest = divmod(position + 1, orders.WINDOW_BATCHES)
        return orders.window_hash(self.order, window - 1, self.batch_instances) if not rest else None

    def _with_window(self, position: int) -> tuple[Batch, str | None]:
        return self.at(position), self.window_hash(position) if self.rank == 0 else None

    def _read(self, instances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(uint32 [B, T], bool [B, T]) of instances [B]."""
        shards, numbers = self.order.locate(instances)
        length = self.lock.sequence_length
        tokens_BT = self._rows.read(shards, numbers * length, length)
        if tokens_BT.max() >= self.lock.vocab_size:
            row, _ = np.unravel_index(tokens_BT.argmax(), tokens_BT.shape)
            raise Corrupt(
                f"{self.lock.shards[shards[row]].tokens} holds token {tokens_BT.max()} in instance {numbers[row]}, the tokenizer has "
                f"{self.lock.vocab_size}: tokenize the source again"
            )
        return tokens_BT, self._rows.read_masks(shards, numbers * length, length)

    def _tokens_by_source(self, instances: np.ndarray) -> dict[str, int]:
        counts = np.bincount(self.order.source_index(instances)).tolist()
        return {self.lock.sources[i].name: n * self.lock.sequence_length for i, n in enumerate(counts) if n}


def _row_hashes(tokens_BT: np.ndarray, is_target_BT: np.ndarray) -> np.ndarray:
    """uint64 [B]: xxh3-64 of a row's tokens (uint32 [T]), then its mask (bool [T])."""
    hashes = np.empty(len(tokens_BT), np.uint64)
    for row, (ids, mask) in enumerate(zip(np.ascontiguousarray(tokens_BT, "<u4"), is_target_BT, strict=True)):
        digest = xxh3_64(ids)
        digest.update(mask)
        hashes[row] = digest.intdigest()
    return hashes
