"""Words as decontamination compares them: lower case, without punctuation, with where each was in the text.

UTF-8 buffers -> for each word a hash and its bytes. Apostrophes vanish, and so do `,` and `.` between digits (`$50,000` = `50000`, `2.50` = `250`);
all else that is no letter, mark or digit separates. A Chinese or Japanese character is a word of its own. A word's hash is made of its code points,
so that no path through this file can hash it otherwise. What a letter is follows the Unicode version of the running Python: it is part of
`NORMALISATION`, and an index made with another one is refused.
"""

import unicodedata
from functools import cache
from typing import NamedTuple

import numba
import numpy as np

from dataplane.kernels.code_points import decode
from triplane.hashing import GOLDEN, MIX_1

NORMALISATION = f"words-2, Unicode {unicodedata.unidata_version}"
SEPARATOR, DELETED, IN_NUMBER, WIDE = 0, 1, 2, 3
ALONE = 1 << 31  # a word by itself
ASSIGNED = 0x32400  # no letter lies beyond, but
PLANE_14, PLANE_14_END = 0xE0000, 0xE01F0  # tags and variation selectors: the table has them behind the letters
IDEOGRAPHS = (
    (0x2E80, 0x2FE0),
    (0x3005, 0x3008),
    (0x3021, 0x3100),
    (0x31F0, 0x3200),
    (0x3400, 0xA000),
    (0xF900, 0xFB00),
    (0x20000, ASSIGNED),
)
APOSTROPHES = "'\u2018\u2019\u02bc\uff07`\u00b4"


class FoldedWords(NamedTuple):
    """first: int64 [documents + 1], the number of each document's first word; hash: uint64 [words]; start, end: uint32 [words], bytes from the
    start of the word's document."""

    first: np.ndarray
    hash: np.ndarray
    start: np.ndarray
    end: np.ndarray


@cache
def folding() -> np.ndarray:
    """What a code point counts as, uint32 [ASSIGNED, and plane 14]: SEPARATOR, DELETED, IN_NUMBER, or its lower case, with ALONE for ideographs."""
    folded = np.zeros(ASSIGNED + PLANE_14_END - PLANE_14, np.uint32)
    for at, code in enumerate([*range(ASSIGNED), *range(PLANE_14, PLANE_14_END)]):
        character = chr(code)
        category = unicodedata.category(character)
        if category[0] in "LNM":
            lower = character.lower()
            folded[at] = ord(lower) if len(lower) == 1 else code
        elif category == "Cf":
            folded[at] = DELETED
    for start, end in IDEOGRAPHS:
        folded[start:end] |= np.where(folded[start:end] > IN_NUMBER, ALONE, 0).astype(np.uint32)
    folded[[ord(character) for character in APOSTROPHES]] = DELETED
    folded[[ord(","), ord(".")]] = IN_NUMBER
    folded.flags.writeable = False
    return folded


@numba.njit(cache=True, inline="always")
def _is_digit(byte):  # type: ignore[no-untyped-def]
    return np.uint8(byte - np.uint8(0x30)) < 10


@numba.njit(cache=True, inline="always")
def _is_in_number(data, i, start, end):  # type: ignore[no-untyped-def]
    return i > start and i + 1 < end and _is_digit(data[i - 1]) and _is_digit(data[i + 1])


@numba.njit(cache=True)
def _wide(data, i, folded):  # type: ignore[no-untyped-def]
    """The character beyond ASCII at i -> (what it counts as, its bytes)."""
    code, length = decode(data, i)
    if ASSIGNED <= code < PLANE_14 or code >= PLANE_14_END:
        return SEPARATOR, length
    return int(folded[code if code < ASSIGNED else code - PLANE_14 + ASSIGNED]), length


@numba.njit(cache=True)
def _fold(data, start, end, ascii_folded, folded, hashes, starts, ends, count):  # type: ignore[no-untyped-def]
    """Writes the words of a document behind those that are there -> the new count. Letters and digits of ASCII take the short way."""
    h, first, last, i = GOLDEN, -1, start, start
    while i < end:
        kind, length = int(ascii_folded[data[i]]), 1
        if kind > WIDE:
            if first < 0:
                h, first = GOLDEN, i
            h = (h ^ np.uint64(kind)) * MIX_1
            i += 1
            last = i
            continue
        if kind == WIDE:
            kind, length = _wide(data, i, folded)
        elif kind == IN_NUMBER:
            kind = DELETED if _is_in_number(data, i, start, end) else SEPARATOR
        if first >= 0 and (kind == SEPARATOR or kind >= ALONE):
            hashes[count], starts[count], ends[count] = h ^ (h >> np.uint64(29)), first - start, last - start
            count += 1
            first = -1
        if kind > WIDE:
            if first < 0:
                h, first = GOLDEN, i
            h = (h ^ np.uint64(kind)) * MIX_1
            last = i + length
            if kind >= ALONE:
                hashes[count], starts[count], ends[count] = h ^ (h >> np.uint64(29)), first - start, last - start
                count += 1
                first = -1
        i += length
    if first >= 0:
        hashes[count], starts[count], ends[count] = h ^ (h >> np.uint64(29)), first - start, last - start
        count += 1
    return count


@numba.njit(cache=True)
def _larger(array, used, more):  # type: ignore[no-untyped-def]
    out = np.empty(used + max(more, used // 2), array.dtype)
    out[:used] = array[:used]
    return out


@numba.njit(cache=True)
def _fold_all(offsets, data, ascii_folded, folded, first):  # type: ignore[no-untyped-def]
    room = (offsets[-1] - offsets[0]) // 5 + 64
    hashes, starts, ends, count = np.empty(room, np.uint64), np.empty(room, np.uint32), np.empty(room, np.uint32), 0
    for document in range(len(offsets) - 1):
        start, end = offsets[document], offsets[document + 1]
        if len(hashes) - count < (end - start) // 2 + 2:
            more = (end - start) // 2 + 64
            hashes, starts, ends = (
                _larger(hashes, count, more),
                _larger(starts, count, more),
                _larger(ends, count, more),
            )
        count = _fold(data, start, end, ascii_folded, folded, hashes, starts, ends, count)
        first[document + 1] = count
    return hashes[:count], starts[:count], ends[:count]


def fold(offsets: np.ndarray, data: np.ndarray) -> FoldedWords:
    """The words of each document. offsets int64 [documents + 1], data uint8; a document has less than 4 GiB."""
    first = np.zeros(len(offsets), np.int64)
    folded = folding()
    ascii_folded = np.full(256, WIDE, np.uint8)
    ascii_folded[:128] = folded[:128]
    return FoldedWords(first, *_fold_all(offsets, data, ascii_folded, folded, first))
