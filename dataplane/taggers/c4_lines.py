"""The lines that C4 drops, as an edit: what stays is the text of datatrove's `C4QualityFilter`.

Columns: c4_lines_spans list<int64>, what to cut (`dataplane/edits.py`): lines without a terminal mark, of fewer than 3 words, with a word of more
than 1000 characters, on JavaScript or on policies, and citations such as [12]; c4_lines_left_bytes int64, the bytes that stay. C4's rules on
whole documents are those of the tagger `c4`.

Source: `kernels/c4_lines.py`.
"""

import numpy as np
import pyarrow as pa
from pydantic import Field

from dataplane.documents import Batch
from dataplane.edits import SPANS
from dataplane.kernels import c4, c4_lines
from dataplane.tagger import Rule, Tagger
from triplane.recipe import Strict

SCHEMA = pa.schema([("c4_lines_spans", SPANS), ("c4_lines_left_bytes", pa.int64())])
RULES = (Rule("no_lines_left", "c4_lines_left_bytes", "=", 0),)


class Params(Strict):
    """The line rules, datatrove's options; the defaults are C4's. A limit of -1 is none."""

    remove_citations: bool = True
    filter_no_terminal_punct: bool = True
    min_words_per_line: int = Field(3, ge=1)
    max_word_characters: int = 1000
    filter_javascript: bool = True
    filter_policy: bool = True


def columns(params: Params) -> pa.Schema:
    return SCHEMA


def tag(batch: Batch, params: Params) -> pa.RecordBatch:
    options = c4.Options(**params.model_dump(), filter_lorem_ipsum=False, filter_curly_bracket=False)
    offsets, data = batch.text_buffers()
    bounds, flat = c4_lines.find(offsets, data, batch.words, options)
    cut = np.concatenate([[0], np.cumsum(flat[1::2] - flat[::2])])[bounds // 2]  # bytes up to each document's spans
    spans = pa.ListArray.from_arrays(pa.array(bounds.astype(np.int32)), pa.array(flat))
    return pa.record_batch([spans, pa.array(np.diff(offsets) - np.diff(cut))], schema=SCHEMA)


TAGGER = Tagger("c4_lines", 1, Params, columns, tag, RULES)
