"""The Gopher quality statistics and the rules on them.

Columns: gopher_words (words with a character that is not punctuation) and gopher_stop_words (distinct ones) int64; ratios float64, each the
quotient of two counts, 0 where there is nothing to divide by.

Sources: Rae et al. 2021 (arXiv 2112.11446, table A1); huggingface/datatrove `filters/gopher_quality_filter.py`: the rules have its order and names.
"""

import numpy as np
import pyarrow as pa

from dataplane.documents import Batch
from dataplane.kernels import gopher_quality
from dataplane.tagger import NoParams, Rule, Tagger

SCHEMA = pa.schema(
    [
        ("gopher_words", pa.int64()),
        ("gopher_mean_word_length", pa.float64()),
        ("gopher_hash_ratio", pa.float64()),
        ("gopher_ellipsis_ratio", pa.float64()),
        ("gopher_bullet_lines", pa.float64()),
        ("gopher_ellipsis_lines", pa.float64()),
        ("gopher_alphabetic_words", pa.float64()),
        ("gopher_stop_words", pa.int64()),
    ]
)
RULES = (
    Rule("gopher_short_doc", "gopher_words", "<", 50),
    Rule("gopher_long_doc", "gopher_words", ">", 100_000),
    Rule("gopher_below_avg_threshold", "gopher_mean_word_length", "<", 3.0),
    Rule("gopher_above_avg_threshold", "gopher_mean_word_length", ">", 10.0),
    Rule("gopher_too_many_hashes", "gopher_hash_ratio", ">", 0.1),
    Rule("gopher_too_many_ellipsis", "gopher_ellipsis_ratio", ">", 0.1),
    Rule("gopher_too_many_bullets", "gopher_bullet_lines", ">", 0.9),
    Rule("gopher_too_many_end_ellipsis", "gopher_ellipsis_lines", ">", 0.3),
    Rule("gopher_below_alpha_threshold", "gopher_alphabetic_words", "<", 0.8),
    Rule("gopher_enough_stop_words", "gopher_stop_words", "<", 2),
)


def columns(params: NoParams) -> pa.Schema:
    return SCHEMA


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole as float64, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole != 0)


def tag(batch: Batch, params: NoParams) -> pa.RecordBatch:
    counts = gopher_quality.count(*batch.text_buffers(), batch.words)
    of = dict(zip(gopher_quality.COUNTS, counts.T, strict=True))
    values = [
        of["plain_words"],
        ratio(of["plain_word_characters"], of["plain_words"]),
        ratio(of["hashes"], of["words"]),
        ratio(of["ellipses"], of["words"]),
        ratio(of["bullet_lines"], batch.words.lines),
        ratio(of["ellipsis_lines"], batch.words.lines),
        ratio(of["alphabetic_words"], of["words"]),
        of["stop_words"],
    ]
    return pa.record_batch([pa.array(np.ascontiguousarray(value)) for value in values], schema=SCHEMA)


TAGGER = Tagger("gopher_quality", 1, NoParams, columns, tag, RULES)
