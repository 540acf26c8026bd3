"""Names and chances from content: document keys, u(seed, key) in [0, 1), identities, and permutations that need no index.

Keys and seeds -> integers and floats that are the same on every machine and in every release. Sources: xxHash XXH3; SplitMix64 (Steele, Lea
and Flood 2014); Feistel permutation over Z_a x Z_b with cycle walking (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numba
import numpy as np
import xxhash

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
U64 = (1 << 64) - 1
FEISTEL_ROUNDS = 6
MAX_FEISTEL_SIZE = 1 << 62
READ_BYTES = 1 << 20


def document_key(source: str, shard: str, row: int) -> int:
    """The 128-bit key of a document: xxh3_128 of where it physically is (row = 0-based record number in the shard)."""
    return xxhash.xxh3_128_intdigest(f"{source}\0{shard}\0{row}".encode())


def identity(value: Any) -> str:
    """sha256 (64 hex digits) of a JSON value in canonical form: keys sorted, no spaces. Raises TypeError, ValueError (NaN)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: str | Path) -> str:
    """sha256 (64 hex digits) of a local file, in bounded memory."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


# Kernels elsewhere inline it, and numba's cache of a caller does not notice a change here; but a change would change every
# hash there is, so there is none.
@numba.njit(cache=True, inline="always")
def mix(x):  # type: ignore[no-untyped-def]
    """SplitMix64's finaliser: a bijection of 64 bits in which every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * MIX_1
    x = (x ^ (x >> np.uint64(27))) * MIX_2
    return x ^ (x >> np.uint64(31))


@numba.njit(cache=True)
def _u64(seed, keys, out):  # type: ignore[no-untyped-def]
    start = mix(seed + GOLDEN)
    for i in range(keys.size):
        out[i] = mix((keys[i] ^ start) + GOLDEN)


def u64(seed: int, keys: np.ndarray) -> np.ndarray:
    """Uniform 64-bit hashes of keys uint64 [n] -> uint64 [n], one-to-one for a fixed seed (taken modulo 2^64)."""
    keys = np.ascontiguousarray(keys, dtype=np.uint64)
    out = np.empty_like(keys)
    _u64(np.uint64(seed & U64), keys.reshape(-1), out.reshape(-1))
    return out


def units(seed: int, keys: np.ndarray) -> np.ndarray:
    """u(seed, key) for keys uint64 [n] -> float64 [n] in [0, 1): the top 53 bits of `u64`."""
    return (u64(seed, keys) >> np.uint64(11)) * 2.0**-53


def unit(seed: int, key: int | str) -> float:
    """u(seed, key) in [0, 1): the same chance for the same key wherever it is asked; nested as thresholds grow.

    A key of up to 64 bits gives what `units` gives; a longer one (a document key) is folded by `fold`; a string is hashed first.
    """
    if isinstance(key, str):
        key = xxhash.xxh3_64_intdigest(key.encode())
    return float(units(seed, np.array([fold(key)], np.uint64))[0])


def fold(key: int) -> int:
    """A key of up to 128 bits as 64: unchanged below 2^64, else both halves hashed. Raises ValueError beyond."""
    if not 0 <= key < 1 << 128:
        raise ValueError(f"key {key} is not an unsigned 128-bit integer")
    return key if key <= U64 else xxhash.xxh3_64_intdigest(key.to_bytes(16, "little"))


@numba.njit(cache=True, inline="always")
def _scaled(value, round_key, factor):  # type: ignore[no-untyped-def]
    """A pseudo-random number in [0, factor), factor < 2^32: hash, then the high half of a product instead of a remainder."""
    x = (value ^ round_key) * MIX_1
    x = (x ^ (x >> np.uint64(32))) * MIX_2
    return ((x >> np.uint64(32)) * factor) >> np.uint64(32)


@numba.njit(cache=True)
def _permute(positions, out, size, rows, columns, round_keys):  # type: ignore[no-untyped-def]
    """position = row * columns + column; rounds add a function of one to the other, modulo; repeat while outside [0, size).

    The walk ends, since the permutation of [0, rows * columns) has cycles; rows * columns - size < columns, so it rarely starts.
    """
    for i in range(positions.size):
        at = np.uint64(positions[i])
        while True:
            row = at // columns
            column = at - row * columns
            for k in range(0, round_keys.size, 2):
                row += _scaled(column, round_keys[k], rows)
                if row >= rows:
                    row -= rows
                column += _scaled(row, round_keys[k + 1], columns)
                if column >= columns:
                    column -= columns
            at = row * columns + column
            if at < size:
                break
        out[i] = np.int64(at)


class Feistel:
    """A pseudo-random permutation of [0, size), computed where it is asked: no array, whatever the size (< 2^62)."""

    def __init__(self, size: int, seed: int) -> None:
        if not 0 < size <= MAX_FEISTEL_SIZE:
            raise ValueError(f"size {size} is not in 1..2^62")
        self.size, self.seed = size, seed
        columns = math.isqrt(size - 1) + 1
        rows = -(-size // columns)
        self._shape = (np.uint64(size), np.uint64(rows), np.uint64(columns))
        counter = np.arange(FEISTEL_ROUNDS, dtype=np.uint64)
        self._round_keys = u64(seed, u64(size, counter))

    def at(self, positions: np.ndarray) -> np.ndarray:
        """int64 [n] positions in [0, size) -> int64 [n]: a bijection. Raises IndexError for a position outside."""
        positions = np.ascontiguousarray(positions, dtype=np.int64)
        if positions.size and not (positions.min() >= 0 and positions.max() < self.size):
            raise IndexError(f"positions {positions.min()}..{positions.max()} are not all in [0, {self.size})")
        out = np.empty_like(positions)
        _permute(positions.reshape(-1), out.reshape(-1), *self._shape, self._round_keys)
        return out
