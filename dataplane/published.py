"""What the publisher of a source says of it: data for planning and for checks, never for building.

The `published:` part of a source recipe -> `Published`. Numbers are those of one table, copied; what is not known is null, and why is in
`unpinned`.
"""

from typing import Literal

from triplane.recipe import Bytes, Strict, Tokens


class Applied(Strict):
    """A filter that the published documents have passed: they stay where `signal op value` holds."""

    signal: str
    op: Literal["<", "<=", ">", ">=", "="]
    value: int | float | str
    source: str  # where the threshold is written


class Published(Strict):
    """One row of a table, `table`; tokens are of the dolma2 tokenizer."""

    table: str
    tokens: Tokens
    documents: int | None
    words: int | None
    text_bytes: Bytes | None
    files: int | None  # of documents, as published
    token_files: int | None  # of allenai/OLMo configs/official-1124
    unpinned: str  # what could not be established, and why
    applied: tuple[Applied, ...]
