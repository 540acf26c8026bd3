"""Every byte of a compressed stream is given or its damage is said; what counts as a document file."""

import bz2
import gzip
import io
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
