"""Single characters of UTF-8, for the rules on lines: decode one, and ask `str`'s questions about it.

Nothing in -> a table uint8 [0x110000], one byte a code point: bits UPPERCASE, ALPHANUMERIC, DECIMAL, ALPHABETIC and WHITE_SPACE as `str.isupper`,
`isalnum`, `isdecimal`, `isalpha` and `isspace`, TERMINAL if it ends sentences in some script. These follow the Unicode version of the running Python.

Source of the ends of sentences: huggingface/datatrove `utils/text.py` (TERMINAL_PUNCTUATION), Apache-2.0.
"""

from functools import cache

import numba
import numpy as np

from dataplane.kernels.characters import TERMINAL_RANGES

UPPERCASE, ALPHANUMERIC, DECIMAL, ALPHABETIC, TERMINAL, WHITE_SPACE = 1, 2, 4, 8, 16, 32


@cache
def table() -> np.ndarray:
    """The class of every code point, uint8 [0x110000]; about 0.4 s, once a process."""
    every = [chr(code) for code in range(0x110000)]
    classes = np.zeros(0x110000, np.uint8)
    for bit, test in (
        (UPPERCASE, str.isupper),
        (ALPHANUMERIC, str.isalnum),
        (DECIMAL, str.isdecimal),
        (ALPHABETIC, str.isalpha),
        (WHITE_SPACE, str.isspace),
    ):
        classes |= np.fromiter(map(test, every), np.uint8, 0x110000) * np.uint8(bit)
    for start, end in TERMINAL_RANGES:
        classes[start:end] |= TERMINAL
    return classes


@numba.njit(cache=True)
def decode(data, i):  # type: ignore[no-untyped-def]
    """The character at i -> (code point, bytes)."""
    lead = np.int64(data[i])
    if lead < 0x80:
        return lead, 1
    if lead < 0xE0:
        return (lead & 0x1F) << 6 | np.int64(data[i + 1] & 0x3F), 2
    if lead < 0xF0:
        return (lead & 0x0F) << 12 | np.int64(data[i + 1] & 0x3F) << 6 | np.int64(data[i + 2] & 0x3F), 3
    high = (lead & 0x07) << 18 | np.int64(data[i + 1] & 0x3F) << 12
    return high | np.int64(data[i + 2] & 0x3F) << 6 | np.int64(data[i + 3] & 0x3F), 4


@numba.njit(cache=True)
def last(data, start, end):  # type: ignore[no-untyped-def]
    """The code point that ends at `end`."""
    i = end - 1
    while i > start and data[i] & 0xC0 == 0x80:
        i -= 1
    return decode(data, i)[0]


@numba.njit(cache=True)
def has_at(data, i, start, end, mark):  # type: ignore[no-untyped-def]
    """Whether the bytes of `mark` (uint8) are at i, within [start, end)."""
    if i < start or i + len(mark) > end:
        return False
    for k in range(len(mark)):  # noqa: SIM110  (numba has no generators here)
        if data[i + k] != mark[k]:
            return False
    return True
