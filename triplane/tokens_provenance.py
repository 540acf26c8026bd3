"""Which document each token of a shard is from: `.csv.gz` rows start,end,id,src,loc -> checked `Provenance`, streamed.

Source: dolma's tokenizer output; the format is described in `triplane/tokens.py`.
"""

import csv
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from triplane import storage
from triplane.errors import Corrupt


@dataclass(frozen=True)
class Provenance:
    """Where the tokens [start, end) of a shard come from: document `id` at line `loc` (from 1) of `src`; EOS included."""

    start: int
    end: int
    id: str
    src: str
    loc: int


def read(url: str, num_tokens: int) -> Iterator[Provenance]:
    """The documents of a shard in order. Raises NotFound, and Corrupt unless they are contiguous and cover all tokens."""
    csv.field_size_limit(2**31 - 1)  # an id may be of any length
    end = 0
    with storage.open_stream(url) as raw:
        for row in _csv_rows(url, raw):
            entry = _parsed(url, row)
            if entry.start != end or entry.end <= entry.start:
                raise Corrupt(
                    f"{url}: document {entry.id[:80]!r} spans [{entry.start}, {entry.end}) after token {end}; "
                    "make the shard again"
                )
            end = entry.end
            yield entry
    if end != num_tokens:
        raise Corrupt(f"{url} covers {end} tokens, expected {num_tokens}; make the shard again")


def _parsed(url: str, row: list[str]) -> Provenance:
    try:
        start, end, name, src, loc = row
        return Provenance(int(start), int(end), name, src, int(loc))
    except ValueError as error:
        shown = [field[:80] for field in row[:5]]
        raise Corrupt(f"{url} holds the row {shown}, not start,end,id,src,loc; make the shard again") from error


def _csv_rows(url: str, raw: BinaryIO) -> Iterator[list[str]]:
    try:
        with gzip.open(raw, "rt", encoding="utf-8", errors="surrogatepass", newline="") as text:
            yield from csv.reader(text)
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise Corrupt(f"{url} is not the .csv.gz that was written ({error}); restore it") from error
