"""Dolma documents out of JSON lines, without a Python object per document.

uint8 block of whole lines -> the strings of `id`, `text`, `source` and the raw span of `metadata` as Arrow buffers, and which lines they are of.
The scan accepts only what is beyond doubt: strict RFC 8259, valid UTF-8, no lone surrogate, each known key once and of the
right type. Every other line is left to the caller's slow path, which finds the reason. What is accepted here orjson accepts too, with equal values.

Source: RFC 8259, RFC 3629; the document format is allenai/dolma `docs/data-format.md`.
"""

from typing import NamedTuple

import numba
import numpy as np

from dataplane.kernels import masks
from dataplane.kernels.borrowing import borrowing

QUOTE, BACKSLASH, COMMA, COLON = 0x22, 0x5C, 0x2C, 0x3A
OPEN_BRACE, CLOSE_BRACE, OPEN_BRACKET, CLOSE_BRACKET = 0x7B, 0x7D, 0x5B, 0x5D
NEWLINE, MINUS, POINT, ZERO = 0x0A, 0x2D, 0x2E, 0x30
MAX_DEPTH = 60
MAX_NUMBER_BYTES = 200  # a longer mantissa or a larger exponent may overflow a double: the slow path decides
PADDING = 64
UNKNOWN, ID, TEXT, SOURCE, METADATA = 0, 1, 2, 4, 8
ID_KEY = np.frombuffer(b"id", np.uint8)
TEXT_KEY = np.frombuffer(b"text", np.uint8)
SOURCE_KEY = np.frombuffer(b"source", np.uint8)
METADATA_KEY = np.frombuffer(b"metadata", np.uint8)
LITERALS = (np.frombuffer(b"true", np.uint8), np.frombuffer(b"false", np.uint8), np.frombuffer(b"null", np.uint8))


class Strings(NamedTuple):
    """One string column. offsets: int64 [documents + 1]; data: uint8; valid: bool [documents]."""

    offsets: np.ndarray
    data: np.ndarray
    valid: np.ndarray


class Scan(NamedTuple):
    """lines: int64 [lines + 1], where each line starts, its LF included; documents: int64, the numbers of the accepted lines."""

    lines: np.ndarray
    documents: np.ndarray
    id: Strings
    text: Strings
    source: Strings
    metadata: Strings


@numba.njit(cache=True, inline="always")
def _skip_space(data, i, end):  # type: ignore[no-untyped-def]
    while i < end and (data[i] == 0x20 or data[i] == 0x09 or data[i] == 0x0D):
        i += 1
    return i


@borrowing
def _hex4(data, i, end):  # type: ignore[no-untyped-def]
    """The value of four hexadecimal digits; -1 if they are not."""
    if i + 4 > end:
        return -1
    value = np.int64(0)
    for k in range(i, i + 4):
        byte = data[k]
        if 0x30 <= byte <= 0x39:
            digit = byte - 0x30
        elif 0x61 <= byte | 0x20 <= 0x66:
            digit = (byte | 0x20) - 0x57
        else:
            return -1
        value = value << 4 | np.int64(digit)
    return value


@borrowing
def _put_code_point(code, out, o):  # type: ignore[no-untyped-def]
    """Writes a code point as UTF-8 -> the position after it."""
    if code < 0x80:
        out[o] = code
        return o + 1
    if code < 0x800:
        out[o], out[o + 1] = 0xC0 | code >> 6, 0x80 | code & 0x3F
        return o + 2
    if code < 0x10000:
        out[o], out[o + 1], out[o + 2] = 0xE0 | code >> 12, 0x80 | code >> 6 & 0x3F, 0x80 | code & 0x3F
        return o + 3
    out[o], out[o + 1] = 0xF0 | code >> 18, 0x80 | code >> 12 & 0x3F
    out[o + 2], out[o + 3] = 0x80 | code >> 6 & 0x3F, 0x80 | code & 0x3F
    return o + 4


@borrowing
def _read_escape(data, i, end, out, o):  # type: ignore[no-untyped-def]
    r"""The escape whose backslash is at i -> (position after it or -1, position in out)."""
    if i + 1 >= end:
        return -1, o
    kind = data[i + 1]
    if kind == 0x75:  # \uXXXX
        code = _hex4(data, i + 2, end)
        if code < 0 or 0xDC00 <= code < 0xE000:
            return -1, o
        if code < 0xD800 or code >= 0xE000:
            return i + 6, _put_code_point(code, out, o)
        if i + 12 > end or data[i + 6] != BACKSLASH or data[i + 7] != 0x75:
            return -1, o
        low = _hex4(data, i + 8, end)
        if low < 0xDC00 or low >= 0xE000:
            return -1, o
        return i + 12, _put_code_point(0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00), out, o)
    for escape, byte in (
        (0x6E, 0x0A), (QUOTE, QUOTE), (0x74, 0x09), (BACKSLASH, BACKSLASH), (0x2F, 0x2F), (0x72, 0x0D), (0x62, 0x08), (0x66, 0x0C),
    ):  # fmt: skip
        if kind == escape:
            out[o] = byte
            return i + 2, o + 1
    return -1, o


@borrowing
def _utf8_length(data, i, end):  # type: ignore[no-untyped-def]
    """Bytes of the multi-byte character at i; 0 if it is not valid UTF-8 (overlong, surrogate, above U+10FFFF, cut)."""
    lead = data[i]
    if lead < 0xC2 or lead > 0xF4:
        return 0
    length = 2 if lead < 0xE0 else (3 if lead < 0xF0 else 4)
    if i + length > end:
        return 0
    second = data[i + 1]
    low, high = 0x80, 0xBF
    if lead == 0xE0:
        low = 0xA0
    elif lead == 0xED:
        high = 0x9F
    elif lead == 0xF0:
        low = 0x90
    elif lead == 0xF4:
        high = 0x8F
    if second < low or second > high:
        return 0
    for k in range(i + 2, i + length):
        if data[k] & 0xC0 != 0x80:
            return 0
    return length


@borrowing
def _read_string(data, i, end, out, o):  # type: ignore[no-untyped-def]
    """The string whose opening quote is at i, unescaped into out at o -> (position after the closing quote or -1, position in out)."""
    if i >= end or data[i] != QUOTE:
        return -1, o
    i += 1
    while i < end:
        if i + masks.BLOCK <= end:
            masks.copy64(data, i, out, o)
            plain = masks.lowest(masks.not_plain(data, i))
            i, o = i + plain, o + plain
            if plain == masks.BLOCK:
                continue
        byte = data[i]
        if 0x20 <= byte < 0x80 and byte != QUOTE and byte != BACKSLASH:
            out[o] = byte
            i += 1
            o += 1
        elif byte == QUOTE:
            return i + 1, o
        elif byte == BACKSLASH:
            i, o = _read_escape(data, i, end, out, o)
            if i < 0:
                return -1, o
        else:
            length = _utf8_length(data, i, end) if byte >= 0x80 else 0
            if length == 0:
                return -1, o
            for _ in range(length):
                out[o] = data[i]
                i += 1
                o += 1
    return -1, o


@borrowing
def _skip_digits(data, i, end):  # type: ignore[no-untyped-def]
    while i < end and 0x30 <= data[i] <= 0x39:
        i += 1
    return i


@borrowing
def _skip_scalar(data, i, end):  # type: ignore[no-untyped-def]
    """A number or true, false, null at i -> the position after it or -1."""
    for literal in LITERALS:
        if data[i] == literal[0]:
            return i + len(literal) if _equals(data, i, min(end, i + len(literal)), literal) else -1
    start = i
    if data[i] == MINUS:
        i += 1
    whole = _skip_digits(data, i, end)
    if whole == i or (data[i] == ZERO and whole > i + 1):
        return -1
    i = whole
    if i < end and data[i] == POINT:
        i = _skip_digits(data, i + 1, end)
        if i == whole + 1:
            return -1
    if i - start > MAX_NUMBER_BYTES:
        return -1
    return _skip_exponent(data, i + 1, end) if i < end and data[i] | 0x20 == 0x65 else i


@borrowing
def _skip_exponent(data, i, end):  # type: ignore[no-untyped-def]
    """Behind the `e`: up to three digits if negative, else up to two -> the position after them or -1."""
    is_negative = i < end and data[i] == MINUS
    start = i + 1 if i < end and (data[i] == MINUS or data[i] == 0x2B) else i
    i = _skip_digits(data, start, end)
    return i if 0 < i - start <= (3 if is_negative else 2) else -1


@borrowing
def _skip_key(data, i, end, scratch):  # type: ignore[no-untyped-def]
    i, _ = _read_string(data, _skip_space(data, i, end), end, scratch, 0)
    if i < 0:
        return -1
    i = _skip_space(data, i, end)
    return i + 1 if i < end and data[i] == COLON else -1


@borrowing
def _skip_value(data, i, end, scratch):  # type: ignore[no-untyped-def]
    """Any JSON value at i -> the position after it or -1. Open containers are bits of one integer: 1 = object."""
    depth, kinds = 0, np.uint64(0)
    while True:
        i = _skip_space(data, i, end)
        if i >= end:
            return -1
        if data[i] == OPEN_BRACE or data[i] == OPEN_BRACKET:
            is_object = data[i] == OPEN_BRACE
            i = _skip_space(data, i + 1, end)
            if i < end and data[i] == (CLOSE_BRACE if is_object else CLOSE_BRACKET):
                i += 1
            else:
                depth += 1
                kinds = kinds << np.uint64(1) | np.uint64(is_object)
                i = _skip_key(data, i, end, scratch) if is_object else i
                if i < 0 or depth > MAX_DEPTH:
                    return -1
                continue
        elif data[i] == QUOTE:
            i, _ = _read_string(data, i, end, scratch, 0)
        else:
            i = _skip_scalar(data, i, end)
        if i < 0:
            return -1
        i, depth, kinds = _close(data, i, end, scratch, depth, kinds)
        if i < 0 or depth == 0:
            return i


@borrowing
def _close(data, i, end, scratch, depth, kinds):  # type: ignore[no-untyped-def]
    """After a value: closes what ends here and goes to the next value, if any -> (position or -1, depth, kinds)."""
    while depth > 0:
        i = _skip_space(data, i, end)
        if i >= end:
            return -1, depth, kinds
        is_object = kinds & np.uint64(1) == np.uint64(1)
        if data[i] == COMMA:
            return (_skip_key(data, i + 1, end, scratch) if is_object else i + 1), depth, kinds
        if data[i] != (CLOSE_BRACE if is_object else CLOSE_BRACKET):
            return -1, depth, kinds
        i, depth, kinds = i + 1, depth - 1, kinds >> np.uint64(1)
    return i, depth, kinds


@borrowing
def _equals(data, start, end, word):  # type: ignore[no-untyped-def]
    if end - start != len(word):
        return False
    for k in range(len(word)):  # noqa: SIM110  (numba has no generators here)
        if data[start + k] != word[k]:
            return False
    return True


@borrowing
def _key_number(scratch, length):  # type: ignore[no-untyped-def]
    if _equals(scratch, 0, length, ID_KEY):
        return ID
    if _equals(scratch, 0, length, TEXT_KEY):
        return TEXT
    if _equals(scratch, 0, length, SOURCE_KEY):
        return SOURCE
    return METADATA if _equals(scratch, 0, length, METADATA_KEY) else UNKNOWN


@numba.njit(cache=True)
def _scan_line(data, i, end, outs, positions, scratch):  # type: ignore[no-untyped-def]
    """Writes the strings of one document behind `positions` (int64 [4]: id, text, source, metadata) -> the keys found, 0 if not accepted."""
    i, found, seen = _skip_space(data, i, end), 0, 0
    if i >= end or data[i] != OPEN_BRACE:
        return 0
    while True:
        i, key_length = _read_string(data, _skip_space(data, i + 1, end), end, scratch, 0)
        i = _skip_space(data, i, end) if i >= 0 else end
        if i >= end or data[i] != COLON:
            return 0
        key, i = _key_number(scratch, key_length), _skip_space(data, i + 1, end)
        if i >= end or seen & key:
            return 0
        seen |= key
        if key == UNKNOWN or (key == SOURCE and data[i] == 0x6E):  # null is as good as none
            i = _skip_value(data, i, end, scratch)
        elif key == METADATA:
            start, i = i, _skip_value(data, i, end, scratch)
            if i >= 0:
                outs[3][positions[3] : positions[3] + i - start] = data[start:i]
                positions[3] += i - start
                found |= key
        else:
            slot = 0 if key == ID else (1 if key == TEXT else 2)
            i, positions[slot] = _read_string(data, i, end, outs[slot], positions[slot])
            found |= key
        i = _skip_space(data, i, end) if i >= 0 else end
        if i >= end:
            return 0
        if data[i] == CLOSE_BRACE:
            return found if _skip_space(data, i + 1, end) == end and found & (ID | TEXT) == ID | TEXT else 0
        if data[i] != COMMA:
            return 0


@numba.njit(cache=True)
def _scan_lines(data, lines, outs, offsets, valid, documents, scratch):  # type: ignore[no-untyped-def]
    """Fills offsets int64 [4, lines + 1], valid bool [4, lines], documents int64 [lines] -> number of documents."""
    count, positions = 0, np.zeros(4, np.int64)
    for line in range(len(lines) - 1):
        start, end = lines[line], lines[line + 1]
        if end > start and data[end - 1] == NEWLINE:
            end -= 1
        found = _scan_line(data, start, end, outs, positions, scratch)
        if found == 0:
            positions[:] = offsets[:, count]
            continue
        documents[count] = line
        count += 1
        offsets[:, count] = positions
        for slot in range(4):
            valid[slot, count - 1] = found & (1 << slot) != 0
    return count


@numba.njit(cache=True)
def _line_starts(data, count):  # type: ignore[no-untyped-def]
    lines, line = np.zeros(count + 1, np.int64), 0
    for i in range(len(data)):
        if data[i] == NEWLINE:
            line += 1
            lines[line] = i + 1
    lines[count] = len(data)
    return lines


def scan(data: np.ndarray) -> Scan:
    """uint8 [bytes], whole lines (the last may lack its LF) -> the accepted documents, in order."""
    count = int(np.count_nonzero(data == NEWLINE)) + int(len(data) > 0 and data[-1] != NEWLINE)
    lines = _line_starts(data, count)
    outs = tuple(np.empty(len(data) + PADDING, np.uint8) for _ in range(4))
    offsets, valid, documents = (
        np.zeros((4, count + 1), np.int64),
        np.zeros((4, count), np.bool_),
        np.empty(count, np.int64),
    )
    n = _scan_lines(data, lines, outs, offsets, valid, documents, np.empty(len(data) + PADDING, np.uint8))
    columns = [Strings(offsets[k, : n + 1], outs[k], valid[k, :n]) for k in range(4)]
    return Scan(lines, documents[:n], *columns)
