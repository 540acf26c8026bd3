"""Who shares a hash: keys of documents brought together by hash, each bucket's nodes joined to its least node.

Keys [columns, n] of 64 bits: a hash of two halves, a node, then anything that goes with the node -> edges (u, v, ...) with u > v. A node is a
document as one integer, its document shard's number above its row, so that the least node is the first document. Keys and edges travel as
the bytes of their columns.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from triplane import hashing

ROW_BITS = 32
PIECE_ROWS = 1 << 20


def nodes(shard: int, rows: np.ndarray) -> np.ndarray:
    """The nodes of a shard's rows, uint64 [n]."""
    return (np.uint64(shard) << np.uint64(ROW_BITS)) + rows.astype(np.uint64)


def shards(nodes: np.ndarray) -> np.ndarray:
    """The shard numbers of nodes, int64 [n]."""
    return (nodes >> np.uint64(ROW_BITS)).astype(np.int64)


def split(table: np.ndarray, parts: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """Columns uint64 [columns, n] and each one's part -> the bytes of every part that has some."""
    order = np.argsort(parts, kind="stable")
    numbers, starts = np.unique(parts[order], return_index=True)
    for number, part in zip(
        numbers.tolist(), np.split(order, starts[1:]), strict=False
    ):  # one empty part when there are no numbers
        yield number, table[:, part].tobytes()


def joined(pieces: Sequence[bytes], num_columns: int) -> np.ndarray:
    """The columns of all pieces, uint64 [columns, n]."""
    return np.concatenate([np.frombuffer(piece, np.uint64).reshape(num_columns, -1) for piece in pieces], axis=1)


def by_hash(keys: np.ndarray, num_parts: int) -> Iterator[tuple[int, bytes]]:
    """Keys with equal hashes in one part."""
    for start in range(0, keys.shape[1], PIECE_ROWS):
        piece = keys[:, start : start + PIECE_ROWS]
        yield from split(piece, _mixed(piece) % np.uint64(num_parts))


def edges(keys: np.ndarray) -> np.ndarray:
    """Keys -> (u, v, what went with u, with v ...) uint64 [2 + 2 * extra, m]: every node of a bucket but the least, once for each v."""
    keys = _shared(keys)
    order = np.lexsort((keys[2], keys[1], keys[0]))
    keys = keys[:, order]
    is_first = np.ones(keys.shape[1], bool)
    is_first[1:] = (keys[0, 1:] != keys[0, :-1]) | (keys[1, 1:] != keys[1, :-1])
    firsts = np.flatnonzero(is_first)[np.cumsum(is_first) - 1] if len(is_first) else np.zeros(0, np.int64)
    columns = [column for row in keys[2:] for column in (row, row[firsts])]
    found = np.stack(columns)[:, keys[2] != keys[2, firsts]]
    found = found[:, np.lexsort((found[1], found[0]))]
    is_new = np.ones(found.shape[1], bool)
    is_new[1:] = (found[:2, 1:] != found[:2, :-1]).any(axis=0)
    return found[:, is_new]


def _shared(keys: np.ndarray) -> np.ndarray:
    """The keys whose hash occurs more than once, and perhaps a few others: most occur once, and need no exact sort."""
    mixed = _mixed(keys)
    order = np.argsort(mixed)
    in_order = mixed[order]
    like_next = in_order[1:] == in_order[:-1]
    is_shared = np.zeros(len(mixed), bool)
    is_shared[1:] |= like_next
    is_shared[:-1] |= like_next
    return keys[:, np.sort(order[is_shared])]


def _mixed(keys: np.ndarray) -> np.ndarray:
    """One hash of both halves, uint64 [n]."""
    return hashing.u64(1, keys[0]) ^ keys[1]
