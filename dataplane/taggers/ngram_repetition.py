"""Tokens of a text, and the longest run of one repeated n-gram of tokens.

Columns int64: token_count (no end-of-document token), ngram_repeat_times, ngram_repeat_period (the n of that n-gram). OLMo 2 drops documents
with 32 or more repeats of an n-gram of 1 to 13 tokens.

Sources: OLMo 2 (arXiv 2501.00656, section 3.1); the rule itself is `triplane.repetition`, which the loader uses too.
"""

from functools import lru_cache

import numpy as np
import pyarrow as pa

from dataplane.documents import Batch
from dataplane.tagger import Rule, Tagger
from triplane import repetition
from triplane.recipe import Strict
from triplane.tokenizer import Tokenizer

SCHEMA = pa.schema([(name, pa.int64()) for name in ("token_count", "ngram_repeat_times", "ngram_repeat_period")])
RULES = (Rule("ngram_repeat", "ngram_repeat_times", ">=", repetition.MAX_TIMES),)


class Params(Strict):
    """tokenizer: what `Tokenizer.load` takes. max_period: the longest n-gram looked at, in tokens."""

    tokenizer: str
    max_period: int = repetition.MAX_PERIOD


def columns(params: Params) -> pa.Schema:
    return SCHEMA


@lru_cache(maxsize=1)
def load_tokenizer(path: str) -> Tokenizer:
    """Loaded once a worker process."""
    return Tokenizer.load(path)


def tag(batch: Batch, params: Params) -> pa.RecordBatch:
    ids, offsets = load_tokenizer(params.tokenizer).encode(batch.text)
    times, period = repetition.longest_repeats(ids, offsets, params.max_period)
    values = [np.diff(offsets), times, period]
    return pa.record_batch([pa.array(np.asarray(value, np.int64)) for value in values], schema=SCHEMA)


TAGGER = Tagger("ngram_repetition", 1, Params, columns, tag, RULES)
