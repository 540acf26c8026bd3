"""The rules on StarCoder's files: stars of the repository, and no word that is most of the file.

Columns: code_stars int64 (`metadata.max_stars_count`, else `metadata.stars`; -1 where neither is a number), code_top_word,
code_top_two_words float64 (the share of a document's words that are its commonest, its two commonest; 0 without words).

Source: OLMo 2 (arXiv 2501.00656, section 2.4.1): fewer than 2 stars, over 30 %, over 50 %. It does not say what a word is: `words` does.
"""

from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa

from dataplane.documents import Batch
from dataplane.kernels import common_words
from dataplane.tagger import Rule, Tagger
from dataplane.taggers.gopher_quality import ratio
from triplane.recipe import Strict

SCHEMA = pa.schema([("code_stars", pa.int64()), ("code_top_word", pa.float64()), ("code_top_two_words", pa.float64())])
RULES = (
    Rule("few_stars", "code_stars", "<", 2),
    Rule("top_word", "code_top_word", ">", 0.3),
    Rule("top_two_words", "code_top_two_words", ">", 0.5),
)
STARS_FIELDS = ("max_stars_count", "stars")


class Params(Strict):
    """words: `whitespace`, or `identifier` for runs of letters, digits and underscores."""

    words: Literal["whitespace", "identifier"]


def columns(params: Params) -> pa.Schema:
    return SCHEMA


def tag(batch: Batch, params: Params) -> pa.RecordBatch:
    offsets, data = batch.text_buffers()
    if params.words == "whitespace":
        first, starts, ends = batch.words.first, batch.words.start, batch.words.end
    else:
        first, starts, ends = common_words.identifiers(offsets, data)
    total, top, second = common_words.count(data, first, starts, ends).T
    values = [pa.array(_stars(batch)), pa.array(ratio(top, total)), pa.array(ratio(top + second, total))]
    return pa.record_batch(values, schema=SCHEMA)


def _stars(batch: Batch) -> np.ndarray:
    if batch.metadata is None:
        return np.full(batch.num_documents, -1, np.int64)
    return np.fromiter(map(_stars_of, batch.metadata.to_pylist()), np.int64, batch.num_documents)


def _stars_of(metadata: str | None) -> int:
    fields: Any = orjson.loads(metadata) if metadata else None
    if isinstance(fields, dict):
        for name in STARS_FIELDS:
            if isinstance(fields.get(name), int | float) and not isinstance(fields[name], bool):
                return int(min(fields[name], 2**62))
    return -1


TAGGER = Tagger("code_rules", 1, Params, columns, tag, RULES, needs_metadata=True)
