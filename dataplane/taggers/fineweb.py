"""FineWeb's quality statistics and the rules on them.

Columns: fineweb_lines int64 (lines with more than white space); the rest float64, each the quotient of two counts, 0 where there is nothing
to divide by: fineweb_punctuated_lines, fineweb_short_lines (fractions of lines), fineweb_duplicate_characters (of lines that came before,
of all characters but newlines), fineweb_newlines (a word). Words are whitespace words.

Source: Penedo et al. 2024 (arXiv 2406.17557, section 3.6); huggingface/datatrove `filters/fineweb_quality_filter.py`, whose order and names
the rules have.
"""

import pyarrow as pa

from dataplane.documents import Batch
from dataplane.kernels import fineweb
from dataplane.tagger import Rule, Tagger
from dataplane.taggers.gopher_quality import ratio
from triplane.recipe import Strict

SCHEMA = pa.schema(
    [
        ("fineweb_lines", pa.int64()),
        ("fineweb_punctuated_lines", pa.float64()),
        ("fineweb_short_lines", pa.float64()),
        ("fineweb_duplicate_characters", pa.float64()),
        ("fineweb_newlines", pa.float64()),
    ]
)
RULES = (
    Rule("fineweb_empty", "fineweb_lines", "=", 0),
    Rule("line_punct_ratio", "fineweb_punctuated_lines", "<", 0.12),
    Rule("short_line_ratio", "fineweb_short_lines", ">", 0.67),
    Rule("char_dup_ratio", "fineweb_duplicate_characters", ">", 0.01),
    Rule("list_ratio", "fineweb_newlines", ">", 0.3),
)


class Params(Strict):
    """short_line_characters: a line of at most this many is short."""

    short_line_characters: int = 30


def columns(params: Params) -> pa.Schema:
    return SCHEMA


def tag(batch: Batch, params: Params) -> pa.RecordBatch:
    counts = fineweb.count(*batch.text_buffers(), batch.words, params.short_line_characters)
    of = dict(zip(fineweb.COUNTS, counts.T, strict=True))
    values = [
        of["lines"].copy(),
        ratio(of["punctuated_lines"], of["lines"]),
        ratio(of["short_lines"], of["lines"]),
        ratio(of["duplicate_characters"], of["characters"]),
        ratio(of["newlines"], of["words"]),
    ]
    return pa.record_batch([pa.array(value) for value in values], schema=SCHEMA)


TAGGER = Tagger("fineweb", 1, Params, columns, tag, RULES)
