"""C4's rules: which lines a document would lose, and whether what stays is enough.

Columns int64: c4_lines, the lines lost to each rule (c4_long_word_lines, c4_no_terminal_lines, c4_short_lines, c4_javascript_lines,
c4_policy_lines: a line counts for the first that applies), c4_kept_lines and c4_kept_sentences; c4_lorem_ipsum, c4_curly_bracket: 1 if the
first line that drops the whole document does so for this. The rules decide on documents; the text itself is not edited here.

Sources: `kernels/c4.py`; the rules have the order and names of huggingface/datatrove `filters/c4_filters.py`.
"""

import pyarrow as pa

from dataplane.documents import Batch
from dataplane.kernels import c4
from dataplane.tagger import Rule, Tagger
from triplane.recipe import Strict

SCHEMA = pa.schema([(f"c4_{name}", pa.int64()) for name in c4.COUNTS])
RULES = (
    Rule("lorem_ipsum", "c4_lorem_ipsum", "=", 1),
    Rule("curly_bracket", "c4_curly_bracket", "=", 1),
    Rule("too_few_sentences", "c4_kept_sentences", "<", 5),
)


class Params(Strict):
    """The line rules, datatrove's options; the defaults are C4's. A limit of -1 is none."""

    remove_citations: bool = True
    filter_no_terminal_punct: bool = True
    min_words_per_line: int = 3
    max_word_characters: int = 1000
    filter_lorem_ipsum: bool = True
    filter_javascript: bool = True
    filter_curly_bracket: bool = True
    filter_policy: bool = True


def columns(params: Params) -> pa.Schema:
    return SCHEMA


def tag(batch: Batch, params: Params) -> pa.RecordBatch:
    counts = c4.count(*batch.text_buffers(), batch.words, c4.Options(**params.model_dump()))
    return pa.record_batch([pa.array(column.copy()) for column in counts.T], schema=SCHEMA)


TAGGER = Tagger("c4", 1, Params, columns, tag, RULES)
