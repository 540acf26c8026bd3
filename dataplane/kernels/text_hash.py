"""A 128-bit hash of each text, for exact duplicates.

UTF-8 buffers -> xxh3_128 of each document as two int64 (Spark and Parquet readers have no unsigned 128-bit type).

Source: XXH3 (Cyan4973/xxHash), seed 0.
"""

from itertools import pairwise

import numpy as np
import xxhash


def digest(offsets: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(high, low) int64 [documents]: the halves of the hash, their bits kept. offsets int64 [documents + 1], data uint8."""
    view = memoryview(data)  # type: ignore[arg-type]
    bounds = offsets.tolist()
    hashes = b"".join(xxhash.xxh3_128_digest(view[a:b]) for a, b in pairwise(bounds))
    halves = np.frombuffer(hashes, ">i8").astype(np.int64).reshape(-1, 2)
    return halves[:, 0], halves[:, 1]
