"""The funnel: what came in, what was kept, and where the rest went; it adds up or the build is refused.

Rows of (source, fate, reason, documents, bytes, tokens) -> the same rows, checked; sums; one text table. `in` is counted where documents
are read (tagging), every other fate where it is decided (selection), so the two sides are independent. Bytes are UTF-8 bytes of text, of a
quarantined record its raw bytes; tokens are text tokens, without the end-of-text token that `tokenize` appends to each kept document.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from triplane.errors import Refused

IN, KEPT, DROPPED, QUARANTINED = "in", "kept", "dropped", "quarantined"
FATES = (IN, KEPT, DROPPED, QUARANTINED)


@dataclass(frozen=True)
class FunnelRow:
    """`reason` is "" for what came in and what was kept."""

    source: str
    fate: str
    reason: str
    documents: int
    bytes: int
    tokens: int


def total(rows: Iterable[FunnelRow]) -> list[FunnelRow]:
    """One row for each (source, fate, reason), summed, in the order of first appearance of a source, then fate, then reason."""
    sums: dict[tuple[str, str, str], list[int]] = {}
    sources: dict[str, int] = {}
    for row in rows:
        sources.setdefault(row.source, len(sources))
        entry = sums.setdefault((row.source, row.fate, row.reason), [0, 0, 0])
        for column, value in enumerate((row.documents, row.bytes, row.tokens)):
            entry[column] += value
    ordered = sorted(sums.items(), key=lambda item: (sources[item[0][0]], FATES.index(item[0][1]), item[0][2]))
    return [FunnelRow(*key, *values) for key, values in ordered]


def gaps(rows: Sequence[FunnelRow]) -> list[str]:
    """What does not add up, one sentence each; [] when in = kept + dropped + quarantined in every source and unit."""
    found = []
    for source in dict.fromkeys(row.source for row in rows):
        for unit in ("documents", "bytes", "tokens"):
            came_in = sum(getattr(row, unit) for row in rows if row.source == source and row.fate == IN)
            went_out = sum(getattr(row, unit) for row in rows if row.source == source and row.fate != IN)
            if came_in != went_out:
                found.append(f"source {source}: {came_in} {unit} came in, {went_out} are accounted for")
    return found


def checked(rows: Sequence[FunnelRow]) -> list[FunnelRow]:
    """The rows summed. Refused when they do not add up."""
    summed = total(rows)
    if problems := gaps(summed):
        raise Refused(
            f"the funnel does not add up ({'; '.join(problems)}): remove this build's attributes and build again"
        )
    return summed


def check_tokens(source: str, documents: int, tokens: int, rows: Sequence[FunnelRow]) -> None:
    """Refused unless what `tokenize` wrote is what `select` planned: each kept document once, with one end-of-text token."""
    kept = [row for row in rows if row.source == source and row.fate == KEPT]
    planned_documents = sum(row.documents for row in kept)
    planned_tokens = sum(row.tokens for row in kept) + planned_documents
    if (documents, tokens) != (planned_documents, planned_tokens):
        raise Refused(
            f"source {source}: {planned_documents} documents and {planned_tokens} tokens were planned, "
            f"{documents} and {tokens} were written: remove its tokens artifact and build again"
        )


def overall(rows: Sequence[FunnelRow]) -> list[FunnelRow]:
    """The same rows over all sources, as source "all"."""
    return total(FunnelRow("all", row.fate, row.reason, row.documents, row.bytes, row.tokens) for row in rows)


def to_json(rows: Iterable[FunnelRow]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def from_json(rows: Iterable[dict[str, Any]]) -> list[FunnelRow]:
    return [FunnelRow(**row) for row in rows]


def table(rows: Sequence[FunnelRow]) -> str:
    """The funnel as aligned text, all sources together at the end."""
    lines = [("source", "fate", "documents", "bytes", "tokens")]
    for row in [*rows, *overall(rows)]:
        fate = f"{row.fate}: {row.reason}" if row.reason else row.fate
        lines.append((row.source, fate, f"{row.documents:,}", f"{row.bytes:,}", f"{row.tokens:,}"))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    texts = (
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
    return "\n".join(text.rstrip() for text in texts)
