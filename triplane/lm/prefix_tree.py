"""Token sequences in, rows of a prefix tree out: a prefix that several sequences share is computed once. Pure numpy.

Sequences are sorted, and one is joined to the row before it when at least half of it is there already; its other tokens are appended as a
branch. Within a row a token attends to its ancestors only and has its depth as position, so every sequence sees exactly what it would
alone. Source: reference measurements of OLMES suites, where contexts and few-shot prefixes make 80-95 % of the tokens.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass
class Row:
    """Tokens of one row in depth-first order. `paths[s]` gives the row indices of the tokens of sequence s."""

    tokens: np.ndarray  # int64 [n]
    positions: np.ndarray  # int64 [n], depth in the tree
    paths: dict[int, np.ndarray]
    branches: list[tuple[np.ndarray, int, int]]  # (ancestors, start, end) of each run of tokens that was appended

    @property
    def is_chain(self) -> bool:
        """One branch only: the causal rule is the tree's rule, no mask is needed."""
        return len(self.branches) == 1

    def mask(self, size: int) -> np.ndarray:
        """bool [size, size], True where the row's token may attend; padding attends to itself, or its softmax would be NaN."""
        may_attend = np.eye(size, dtype=bool)
        for ancestors, start, end in self.branches:
            may_attend[start:end, ancestors] = True
            may_attend[start:end, start:end] = np.tri(end - start, dtype=bool)
        return may_attend


def pack(sequences: Sequence[Sequence[int]], row_tokens: int) -> list[Row]:
    """Rows holding every sequence (none empty) exactly once, each of at most `row_tokens` tokens unless one sequence alone is longer."""
    rows: list[Row] = []
    previous = np.empty(0, np.int64)
    path = np.empty(0, np.int64)
    for number in sorted(range(len(sequences)), key=lambda number: list(sequences[number])):
        tokens = np.asarray(sequences[number], np.int64)
        shared = common_prefix(previous, tokens)
        used = len(rows[-1].tokens) if rows else 0
        if not rows or 2 * shared < len(tokens) or used + len(tokens) - shared > row_tokens:
            rows.append(Row(np.empty(0, np.int64), np.empty(0, np.int64), {}, []))
            shared, used = 0, 0
        end = used + len(tokens) - shared
        if end > used:
            rows[-1].branches.append((path[:shared], used, end))
        rows[-1].tokens = np.concatenate((rows[-1].tokens, tokens[shared:]))
        rows[-1].positions = np.concatenate((rows[-1].positions, np.arange(shared, len(tokens))))
        path = np.concatenate((path[:shared], np.arange(used, end)))
        rows[-1].paths[number] = path
        previous = tokens
    return rows


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """The number of leading tokens two sequences share."""
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


def batches(rows: Sequence[Row], batch_tokens: int) -> list[list[Row]]:
    """Rows of like length together, longest first, padded size within `batch_tokens`; chains and trees apart (a chain needs no mask)."""
    found: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: (row.is_chain, -len(row.tokens))):
        batch = found[-1] if found else []
        if batch and batch[0].is_chain == row.is_chain and (len(batch) + 1) * len(batch[0].tokens) <= batch_tokens:
            batch.append(row)
        else:
            found.append([row])
    return found
