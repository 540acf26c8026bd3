"""Every byte of a compressed stream is given or its damage is said; what counts as a document file."""

import bz2
import gzip
import io
import random
import time
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from triplane import decompression

PLAIN = b"".join(b"line %d\n" % number for number in range(2000))
COMPRESS = {"a.gz": gzip.compress, "a.zst": zstandard.compress}


def read(data: bytes, name: str) -> bytes:
    return b"".join(decompression.chunks(io.BytesIO(data), name))


@pytest.mark.parametrize("name", COMPRESS)
def test_frames_follow_each_other(name: str) -> None:
    frames = [COMPRESS[name](PLAIN[at : at + 5000]) for at in range(0, len(PLAIN), 5000)]
    assert read(b"".join(frames), name) == PLAIN
    assert read(COMPRESS[name](PLAIN), "a.jsonl") == PLAIN  # misnamed: known by its first bytes


@given(name=st.sampled_from(sorted(COMPRESS)), at=st.floats(0, 1, exclude_max=True))
def test_a_cut_stream_gives_what_it_holds_and_then_says_so(name: str, at: float) -> None:
    data = COMPRESS[name](PLAIN)
    found = b""
    with pytest.raises(decompression.Damaged, match="truncated_stream"):
        for chunk in decompression.chunks(io.BytesIO(data[: int(at * len(data))]), name):
            found += chunk
    assert PLAIN.startswith(found)


def test_what_is_no_frame_is_corrupt() -> None:
    for name in COMPRESS:
        with pytest.raises(decompression.Damaged, match="corrupt_stream"):
            read(b"not what its name says", name)


def test_a_reader_that_ends_quietly_would_be_caught(shared: Path) -> None:
    """The control: the library's own stream reader says nothing about the cut frame, which is why it is not used."""
    path = shared / "data/corpus/defects/part-truncated.jsonl.zst"
    with path.open("rb") as stream:
        assert zstandard.ZstdDecompressor().stream_reader(stream).read() == b""
    with path.open("rb") as stream, pytest.raises(decompression.Damaged, match="truncated_stream"):
        list(decompression.chunks(stream, path.name))


def test_what_is_a_document_file() -> None:
    stems, codecs = ("a.json", "b/a.jsonl", "a.ndjson"), ("", ".gz", ".zst", ".zstd")
    assert all(decompression.DOCUMENT_SUFFIX.search(stem + codec) for stem in stems for codec in codecs)
    assert not any(decompression.DOCUMENT_SUFFIX.search(name) for name in ("a.txt", "a.jsonl.bz2", "ajson", "a.gz"))
    assert read(bz2.compress(b"x"), "a.jsonl.bz2").startswith(b"BZh")  # another codec is bytes, never guessed


def zstd_bomb(megabytes: int) -> bytes:
    compressor = zstandard.ZstdCompressor().compressobj()
    return b"".join(compressor.compress(b"\0" * (1 << 20)) for _ in range(megabytes)) + compressor.flush()


def gzip_bomb(megabytes: int) -> bytes:
    compressor = zlib.compressobj(9, wbits=31)
    return b"".join(compressor.compress(b"\0" * (1 << 20)) for _ in range(megabytes)) + compressor.flush()


BOMBS = {  # name -> a stream of 10 GiB when it is decoded, in a few megabytes
    "one.zst": lambda: zstd_bomb(1024) * 10,
    "many.zst": lambda: zstandard.compress(b"\0" * 128_000) * (10 * 2**30 // 128_000),
    "one.gz": lambda: gzip_bomb(256) * 40,
    "many.gz": lambda: gzip.compress(b"\0" * 1_000_000) * (10 * 2**30 // 1_000_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_left_early_and_said_to_be_one(name: str) -> None:
    bomb, given, largest = BOMBS[name](), 0, 0
    assert len(bomb) < 16 << 20
    before = time.process_time()
    with pytest.raises(decompression.Damaged, match="decompression_bomb: the data expands more than 500 times"):
        for chunk in decompression.chunks(io.BytesIO(bomb), name):
            given, largest = given + len(chunk), max(largest, len(chunk))
    assert time.process_time() - before < 5
    assert largest <= 64 << 20
    assert 32 << 20 <= given <= 200 << 20  # of 10 GiB


def test_ordinary_data_before_a_bomb_pays_nothing_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the whole stream's ratio would let 4 MB of good data bring 2 GB along."""
    monkeypatch.setattr(decompression, "EXPANSION_ALLOWANCE_BYTES", 1 << 20)
    good, found = zstandard.compress(random.Random(1).randbytes(4 << 20)), 0
    with pytest.raises(decompression.Damaged, match="decompression_bomb"):
        for chunk in decompression.chunks(io.BytesIO(good + zstd_bomb(64)), "a.zst"):
            found += len(chunk)
    assert 4 << 20 <= found <= 8 << 20


@pytest.mark.parametrize("name", COMPRESS)
def test_what_compresses_well_is_no_bomb(name: str) -> None:
    lines = b"".join(b'{"id": "%d", "text": "%s"}\n' % (number, b"the same text " * 200) for number in range(60_000))
    data = COMPRESS[name](lines)
    assert len(lines) > 150 << 20 and len(lines) / len(data) > 80
    assert sum(map(len, decompression.chunks(io.BytesIO(data), name))) == len(lines)
    largest_document = COMPRESS[name](b"x" * (64 << 20))
    assert sum(map(len, decompression.chunks(io.BytesIO(largest_document), name))) == 64 << 20
