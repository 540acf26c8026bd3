"""Many rows of tokens at a time: (shard, first token) of each row -> a matrix, every block it touches read once and verified.

Rows are sorted by shard and place; those whose blocks touch become one read. The rows of one call are in flight together where the shards are
remote. Single ranges: `triplane.tokens.Reader`.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from triplane.blocks import BLOCK_BYTES, BlockFile, BlockReader, Run
from triplane.tokens import TOKEN_BYTES, Shard, mask_file, token_file

OPEN_SHARDS = 65_536


class TokenRows:
    """Rows of numbered shards; holds no open file."""

    def __init__(self, shard: Callable[[int], Shard]) -> None:
        self._tokens = lru_cache(OPEN_SHARDS)(lambda number: token_file(shard(number)))
        self._mask = lru_cache(OPEN_SHARDS)(lambda number: mask_file(shard(number)))
        self._blocks = BlockReader()

    def read(self, shards: np.ndarray, starts: np.ndarray, count: int) -> np.ndarray:
        """Tokens [start, start + count) of each row's shard, uint32 [n, count]. shards, starts: int64 [n].

        Raises Corrupt (file, block, expected, found) and NotFound.
        """
        out = np.empty((len(shards), count * TOKEN_BYTES), np.uint8)
        self._gather(self._tokens, shards, starts * TOKEN_BYTES, out)
        return out.view("<u4")

    def read_masks(self, shards: np.ndarray, starts: np.ndarray, count: int) -> np.ndarray:
        """Label masks of the same rows, bool [n, count], True = train: all True where a shard has none. Raises as `read`."""
        out = np.ones((len(shards), count), np.uint8)
        masked = np.array([self._mask(shard) is not None for shard in shards.tolist()], bool)
        if masked.any():
            some = np.empty((masked.sum(), count), np.uint8)
            self._gather(self._mask, shards[masked], starts[masked], some)
            out[masked] = some
        return out.view(np.bool_)

    def _gather(
        self, file: Callable[[int], BlockFile | None], shards: np.ndarray, starts: np.ndarray, out: np.ndarray
    ) -> None:
        """Bytes [start, start + width) of each row's file into out, uint8 [n, width]."""
        width = out.shape[1]
        order = np.lexsort((starts, shards))
        shards, starts = shards[order], starts[order]
        lows, highs = starts // BLOCK_BYTES * BLOCK_BYTES, -(-(starts + width) // BLOCK_BYTES) * BLOCK_BYTES
        firsts = np.flatnonzero(np.r_[True, (shards[1:] != shards[:-1]) | (lows[1:] > highs[:-1])])
        lasts = np.r_[firsts[1:], len(order)] - 1
        runs = []
        for shard, low, high in zip(shards[firsts].tolist(), lows[firsts].tolist(), highs[lasts].tolist(), strict=True):
            found = file(shard)
            assert found is not None  # the caller asks only for shards that have one
            runs.append(Run(found, low, min(high, found.size)))
        rows, offsets = order.tolist(), (starts - np.repeat(lows[firsts], lasts - firsts + 1)).tolist()
        for first, last, data in zip(firsts.tolist(), lasts.tolist(), self._blocks.read(runs), strict=True):
            for i in range(first, last + 1):
                out[rows[i]] = data[offsets[i] : offsets[i] + width]
