"""Plain bytes of a stored object, in bounded memory, and never a silent end; and which names are document files.

A binary stream (plain, gzip or zstd by name or by magic number) -> chunks. Everything that can be decoded before damage is yielded first,
then `Damaged` is raised. Concatenated frames and members are read whole; empty ones are fine. A stretch that expands without end (a zip
bomb) is damage too: whatever lies before it, it is followed for `EXPANSION_ALLOWANCE_BYTES` only.

Sources: RFC 1952, RFC 8878. `zstandard.stream_reader` ends quietly at a cut frame, so frames are followed here one by one.
"""

import contextlib
import itertools
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import zstandard

# What is read from a folder of dolma documents, by the data plane and the evaluation plane alike.
DOCUMENT_SUFFIX = re.compile(r"\.(json|jsonl|ndjson)(\.gz|\.zst|\.zstd)?$")
DOCUMENT_FORMS = ".json, .jsonl or .ndjson, plain, .gz or .zst"
READ_BYTES = 1 << 20
# A zstd block of 4 bytes can say 128 KiB: 2 KiB in is at most 64 MiB out. Half of it costs 0.1 ms a MB more, double saves 0.03.
ZSTD_PIECE_BYTES = 2048
GZIP_OUTPUT_BYTES = 1 << 20
# Text compresses 3 to 10 times, JSON lines of one template 50 times; gzip can reach 1032 and zstd 30,000, on repeated bytes only.
MAX_EXPANSION = 500
# What one stretch may expand beyond that: as much as the largest document allowed, so that no document is a bomb by itself.
EXPANSION_ALLOWANCE_BYTES = 64 << 20
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class Damaged(Exception):
    """The stream cannot be read further. reason: `truncated_stream`, `corrupt_stream` or `decompression_bomb`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def codec(name: str, head: bytes) -> str:
    """`gzip`, `zstd` or `none`, by the suffix of the name, else by the first bytes (files are misnamed often)."""
    if name.endswith(".gz") or head.startswith(GZIP_MAGIC):
        return "gzip"
    if name.endswith((".zst", ".zstd")) or head.startswith(ZSTD_MAGIC) or _is_skippable_frame(head):
        return "zstd"
    return "none"


def _is_skippable_frame(head: bytes) -> bool:
    return len(head) >= 4 and head[0] & 0xF0 == 0x50 and head[1:4] == b"\x2a\x4d\x18"


def chunks(stream: BinaryIO, name: str) -> Iterator[bytes]:
    """The decoded bytes of `stream`, chunk by chunk. Raises Damaged after the last good one."""
    raw = _raw_chunks(stream)
    first = next(raw, b"")
    raw = itertools.chain([first] if first else [], raw)
    kind = codec(name, first[:4])
    if kind == "none":
        return raw
    return _gzip_chunks(raw) if kind == "gzip" else _zstd_chunks(raw)


def _raw_chunks(stream: BinaryIO) -> Iterator[bytes]:
    """Pieces of READ_BYTES, but for the last: short reads would move the place where damage is noticed from run to run."""
    pending = bytearray()
    while piece := stream.read(READ_BYTES - len(pending)):
        pending += piece
        if len(pending) == READ_BYTES:
            yield bytes(pending)
            pending.clear()
    if pending:
        yield bytes(pending)


def _excess(before: int, taken: int, given: int) -> int:
    """Bytes of output beyond MAX_EXPANSION times the input: the excess before, and `taken` bytes that gave `given`. Never below 0, so that
    ordinary data ahead of a bomb pays nothing in. Raises Damaged beyond the allowance."""
    excess = max(0, before + given - MAX_EXPANSION * taken)
    if excess > EXPANSION_ALLOWANCE_BYTES:
        raise Damaged(
            "decompression_bomb",
            f"the data expands more than {MAX_EXPANSION} times, by more than {EXPANSION_ALLOWANCE_BYTES} bytes beyond that",
        )
    return excess


def _zstd_chunks(raw: Iterator[bytes]) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor()
    frame, fed, frames, excess = decompressor.decompressobj(), 0, 0, 0
    for piece in (chunk[i : i + ZSTD_PIECE_BYTES] for chunk in raw for i in range(0, len(chunk), ZSTD_PIECE_BYTES)):
        while piece:
            try:
                plain = frame.decompress(piece)
            except zstandard.ZstdError as error:
                raise Damaged("corrupt_stream", f"zstd frame {frames}: {error}") from error
            fed += len(piece)
            excess = _excess(excess, len(piece) - len(frame.unused_data), len(plain))
            if plain:
                yield plain
            if not frame.eof:
                break
            piece = frame.unused_data
            frame, fed, frames = decompressor.decompressobj(), 0, frames + 1
    if fed or not frames:
        raise Damaged("truncated_stream", f"the data ends inside zstd frame {frames}")


def _gzip_chunks(raw: Iterator[bytes]) -> Iterator[bytes]:
    member, is_open, members, excess = zlib.decompressobj(wbits=31), False, 0, 0
    for piece in raw:
        plain = b""
        while piece or len(plain) == GZIP_OUTPUT_BYTES:  # a full output may have more behind it without more input
            if not is_open and members:
                piece = piece.lstrip(b"\0")  # gzip writers may pad with zeros behind the last member
            is_open = is_open or bool(piece)
            before = member.copy()
            try:
                plain = member.decompress(piece, GZIP_OUTPUT_BYTES)
            except zlib.error as error:
                yield _decompressed_until_error(before, piece)
                raise Damaged("corrupt_stream", f"gzip member {members}: {error}") from error
            rest = member.unused_data if member.eof else member.unconsumed_tail
            excess = _excess(excess, len(piece) - len(rest), len(plain))
            if plain:
                yield plain
            piece = rest
            if member.eof:
                member, is_open, members, plain = zlib.decompressobj(wbits=31), False, members + 1, b""
    if is_open or not members:
        raise Damaged("truncated_stream", f"the data ends inside gzip member {members}")


def _decompressed_until_error(member: "zlib._Decompress", piece: bytes) -> bytes:
    """What a piece holds before its damage, byte by byte."""
    plain = bytearray()
    with contextlib.suppress(zlib.error):
        for i in range(len(piece)):
            plain += member.decompress(piece[i : i + 1])
    return bytes(plain)
