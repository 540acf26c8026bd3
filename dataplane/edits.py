"""Edits: what a tagger cuts from texts, as spans beside them; whoever reads the text later applies them again.

A tagger that edits is one that writes `{its name}_spans`, list<int64>: start, end, start, end, ... in bytes of the UTF-8 text that it was given,
ends exclusive, in any order, overlapping or not. Edits are applied in declared order: the spans of the second are of the text that the first
left. Nothing is written twice: documents stay as they are, and `taggers/edited.py` and `tokenize` cut the same spans.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dataplane.documents import string_buffers
from dataplane.kernels import cutting
from triplane.errors import Refused

SPANS = pa.list_(pa.int64())


def column(name: str) -> str:
    """The column of the edits of a tagger."""
    return f"{name}_spans"


def applied(text: pa.LargeStringArray, spans: pa.Array) -> pa.LargeStringArray:
    """The texts [n] without their spans, list<int64> [n]; null: nothing is cut. Refused when a span is not one of its text."""
    counts = spans.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    if not counts.any():
        return text
    bounds = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    try:
        offsets, data = cutting.cut(
            *string_buffers(text), bounds, spans.flatten().to_numpy(zero_copy_only=False).copy()
        )
    except ValueError as error:
        raise Refused(
            f"document {error} of a batch has spans that do not lie within its text, between characters: remove the attributes and build again"
        ) from error
    return pa.Array.from_buffers(pa.large_string(), len(text), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def applied_all(text: pa.LargeStringArray, columns: Sequence[pa.Array]) -> pa.LargeStringArray:
    """As `applied`, edit after edit."""
    for spans in columns:
        text = applied(text, spans)
    return text
