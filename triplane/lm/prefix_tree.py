"""Token sequences in, a plan of forwards out in which a prefix that several sequences share is computed once. Pure numpy.

Sequences are sorted. A long prefix of many of them (a task's few-shot examples) is a `Trunk`, computed alone and looked at by all that follow
it, trunks of trunks included; what is left is packed in `Row`s, small trees in which a document stands once before its choices. A token sees
its trunk and its ancestors in the row and has its depth as position, so every sequence sees exactly what it would alone. The tokens of a
plan are numbered: its `places`. Source: reference measurements of OLMES suites, where contexts and shots make 80-95 % of the tokens.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

Ids = Sequence[int] | np.ndarray  # token ids

ROW_TOKENS = 64  # documents are put in one row up to here: attention in a row costs a token as much as the row is long
WHOLE_ROW_TOKENS = 1024  # what shares more than a little (a document and its choices) stays in one row up to here
LOST_SHARE = 0.03  # of the tokens may be computed again for the sake of shorter rows
MIN_SAVED_TOKENS = 64  # what a trunk of its own must save: a forward more costs about as much
MAX_HELD_TOKENS = 32768  # of a trunk and those it continues: their keys and values are held together
MAX_ROW_AREA = 1 << 22  # rows x length^2 of one forward, the size of its mask


class Branch(NamedTuple):
    """Tokens [start, end) of a row, which continue the path `ancestors` (row indices)."""

    ancestors: np.ndarray
    start: int
    end: int


@dataclasses.dataclass
class Row:
    """Tokens of one tree after its trunk. `paths[s]` gives the row indices of the tokens of sequence s."""

    tokens: np.ndarray  # int64 [n]
    positions: np.ndarray  # int64 [n], depth in the tree, the trunk's included
    paths: dict[int, np.ndarray]
    branches: list[Branch]

    @property
    def is_chain(self) -> bool:
        """One branch only: the causal rule is the tree's rule."""
        return len(self.branches) == 1

    def mask(self, size: int) -> np.ndarray:
        """bool [size, size], True where the row's token may attend; padding attends to itself, or its softmax would be NaN."""
        may_attend = np.eye(size, dtype=bool)
        for ancestors, start, end in self.branches:
            may_attend[start:end, ancestors] = True
            may_attend[start:end, start:end] = np.tri(end - start, dtype=bool)
        return may_attend


@dataclasses.dataclass
class Trunk:
    """A prefix computed alone: `row` holds its tokens after those of its parent trunk; `length` counts all of them."""

    row: Row
    parent: int  # number of the trunk it continues, -1: none
    length: int


@dataclasses.dataclass
class Step:
    """One forward: rows after the same trunk (-1: none), or a trunk itself, `makes` being its number. Its first token has `first_place`."""

    rows: list[Row]
    trunk: int
    makes: int
    first_place: int

    @property
    def num_tokens(self) -> int:
        return sum(len(row.tokens) for row in self.rows)


class Plan(NamedTuple):
    """`places[s]` are the places of the last tokens of sequence s: as many as were asked for."""

    steps: list[Step]
    places: list[np.ndarray]

    @property
    def num_tokens(self) -> int:
        """Tokens the model reads."""
        return sum(step.num_tokens for step in self.steps)


class Sorted(NamedTuple):
    """Sequences in order of their tokens. `shared[i]` tokens are common to i - 1 and i; `total[i]` are new in those before i."""

    sequences: list[np.ndarray]
    numbers: list[int]
    shared: np.ndarray
    total: np.ndarray

    @property
    def num_tokens(self) -> int:
        """Nodes of the trie: the fewest tokens with which all can be computed."""
        return int(self.total[-1])

    def size(self, start: int, end: int, depth: int) -> int:
        """Nodes of the trie of sequences [start, end) below `depth`."""
        return int(self.total[end] - self.total[start + 1]) + len(self.sequences[start]) - depth

    def split(self, start: int, end: int) -> tuple[int, list[tuple[int, int]]]:
        """(length of the prefix that [start, end) share, the ranges into which they part after it)."""
        if end - start == 1:
            return len(self.sequences[start]), [(start, end)]
        shared = self.shared[start + 1 : end]
        least = int(shared.min())
        bounds = [start, *(np.flatnonzero(shared == least) + start + 1).tolist(), end]
        return least, list(itertools.pairwise(bounds))


def in_order(sequences: Sequence[Ids]) -> Sorted:
    """Sorted by token ids (each 0 <= id < 2^32), a prefix before what continues it."""
    arrays = [np.asarray(sequence) for sequence in sequences]
    keys = [array.astype(">u4").tobytes() for array in arrays]
    numbers = sorted(range(len(keys)), key=keys.__getitem__)
    ordered = [arrays[number] for number in numbers]
    shared = [common_prefix(one, other) for one, other in itertools.pairwise(ordered)]
    together = np.array([0, *shared][: len(ordered)], np.int64)
    new = np.array([len(sequence) for sequence in ordered], np.int64) - together
    return Sorted(ordered, numbers, together, np.concatenate(([0], np.cumsum(new))))


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """The number of leading tokens two sequences share."""
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


def plan(sequences: Sequence[Ids], wanted: Sequence[int], batch_tokens: int) -> Plan:
    """Forwards of about `batch_tokens` tokens that hold every sequence (none empty), and the places of the last `wanted[s]` (>= 1) tokens of each."""
    if not len(sequences):
        return Plan([], [])
    ordered = in_order(sequences)
    trunks, rows = _trunks(ordered)
    steps = list(_steps(trunks, rows, batch_tokens))
    places: list[np.ndarray] = [np.empty(0, np.int64)] * len(sequences)
    before: dict[int, np.ndarray] = {-1: np.empty(0, np.int64)}
    for step in steps:
        first = step.first_place
        for row in step.rows:
            for number, path in row.paths.items():
                places[number] = np.concatenate((before[step.trunk], first + path))[-wanted[number] :]
            first += len(row.tokens)
        if step.makes >= 0:
            before[step.makes] = np.concatenate((before[step.trunk], np.arange(step.first_place, first)))
    for trunk, number in _inside_trunks(rows):
        places[number] = before[trunk][-wanted[number] :]
    return Plan(steps, places)


def _inside_trunks(rows: dict[int, list[Row]]) -> Iterator[tuple[int, int]]:
    """(trunk, sequence) of those that end where the trunk does: their rows are empty, and no step has them."""
    return (
        (trunk, number) for trunk, group in rows.items() for row in group if not len(row.tokens) for number in row.paths
    )


def _trunks(ordered: Sorted) -> tuple[list[Trunk], dict[int, list[Row]]]:
    """The trunks, parents first, and the rows that follow each."""
    trunks: list[Trunk] = []
    rows: dict[int, list[Row]] = {-1: []}
    held = {-1: 0}  # a trunk's keys and values and those of the trunks before it
    waiting: list[tuple[int, int, int]] = [(0, len(ordered.sequences), -1)]
    while waiting:
        start, end, trunk = waiting.pop()
        depth = trunks[trunk].length if trunk >= 0 else 0
        size = ordered.size(start, end, depth)
        shared, parts = ordered.split(start, end)
        lost = (shared - depth) * (len(_packed(ordered, parts, depth)) - 1)
        if end - start == 1 or size <= ROW_TOKENS or (size <= WHOLE_ROW_TOKENS and lost > LOST_SHARE * size):
            rows[trunk] += _rows(ordered, [(start, end)], depth)
            continue
        if lost >= MIN_SAVED_TOKENS and held[trunk] + shared <= MAX_HELD_TOKENS:
            trunks.append(_trunk(ordered.sequences[start], depth, shared, trunk))
            held[len(trunks) - 1] = held[trunk] + shared
            trunk, depth = len(trunks) - 1, shared
            rows[trunk] = []
        small = [part for part in parts if part[1] - part[0] == 1 or ordered.size(*part, depth) <= ROW_TOKENS]
        rows[trunk] += _rows(ordered, small, depth)
        waiting += [(*part, trunk) for part in reversed(parts) if part not in set(small)]
    return trunks, rows


def _trunk(sequence: np.ndarray, depth: int, length: int, parent: int) -> Trunk:
    branch = Branch(np.empty(0, np.int64), 0, length - depth)
    return Trunk(Row(sequence[depth:length].astype(np.int64), np.arange(depth, length), {}, [branch]), parent, length)


def _rows(ordered: Sorted, parts: list[tuple[int, int]], depth: int) -> list[Row]:
    return [_row(ordered, group, depth) for group in _packed(ordered, parts, depth)]


def _packed(ordered: Sorted, parts: list[tuple[int, int]], depth: int) -> list[list[int]]:
    """The members of rows of about `ROW_TOKENS`, each part whole in one."""
    groups: list[list[int]] = []
    room = 0
    for start, end in parts:
        size = ordered.size(start, end, depth)
        if not groups or size > room:
            groups.append([])
            room = ROW_TOKENS
        groups[-1] += range(start, end)
        room -= size
    return groups


def _row(ordered: Sorted, members: list[int], depth: int) -> Row:
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    branches: list[Branch] = []
    paths: dict[int, np.ndarray] = {}
    path, used, last = np.empty(0, np.int64), 0, -1
    for member in members:
        sequence = ordered.sequences[member]
        shared = depth if last < 0 else max(depth, int(ordered.shared[last + 1 : member + 1].min()))
        end = used + len(sequence) - shared
        path = np.concatenate((path[: shared - depth], np.arange(used, end)))
        if end > used:
            branches.append(Branch(path[: shared - depth], used, end))
            tokens.append(sequence[shared:])
            positions.append(np.arange(shared, len(sequence)))
        paths[ordered.numbers[member]] = path
        used, last = end, member
    empty = np.empty(0, np.int64)
    return Row(np.concatenate([empty, *tokens]).astype(np.int64), np.concatenate([empty, *positions]), paths, branches)


def _steps(trunks: list[Trunk], rows: dict[int, list[Row]], batch_tokens: int) -> Iterator[Step]:
    place = 0
    for number in range(-1, len(trunks)):
        if number >= 0:
            step = Step([trunks[number].row], trunks[number].parent, number, place)
            place += step.num_tokens
            yield step
        for batch in batches([row for row in rows[number] if len(row.tokens)], batch_tokens):
            step = Step(batch, number, -1, place)
            place += step.num_tokens
            yield step


def batches(rows: Sequence[Row], batch_tokens: int) -> list[list[Row]]:
    """Rows of like length together, longest first; their tokens, and the size of their masks, bounded."""
    found: list[list[Row]] = []
    room = 0
    for row in sorted(rows, key=lambda row: -len(row.tokens)):
        longest = len(found[-1][0].tokens) if found else 0
        if not found or len(row.tokens) > room or (len(found[-1]) + 1) * longest**2 > MAX_ROW_AREA:
            found.append([])
            room = batch_tokens
        found[-1].append(row)
        room -= len(row.tokens)
    return found


def groups(sequences: Sequence[Ids]) -> list[tuple[int, list[int]]]:
    """(length of a common prefix, the sequences that have it), each sequence once: prefixes of examples, as long as that saves tokens."""
    ordered = in_order(sequences)
    waiting = [(0, len(ordered.sequences))] if len(sequences) else []
    found: list[tuple[int, list[int]]] = []
    while waiting:
        start, end = waiting.pop()
        shared, parts = ordered.split(start, end)
        by_parts = sum(ordered.split(*part)[0] * (part[1] - part[0] - 1) for part in parts)
        if end - start == 1 or by_parts <= shared * (end - start - 1):
            found.append((shared, ordered.numbers[start:end]))
        else:
            waiting += reversed(parts)
    return found
