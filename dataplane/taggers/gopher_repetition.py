"""The Gopher repetition statistics and the rules on them.

Columns float64: fractions of lines and paragraphs that came before, and the fraction of a document's characters in duplicate lines, duplicate
paragraphs, the commonest 2- to 4-gram and duplicate 5- to 10-grams; 0 for an empty text.

Sources: Rae et al. 2021 (arXiv 2112.11446, table A1); huggingface/datatrove `filters/gopher_repetition_filter.py`, whose order and names the
rules have.
"""

import pyarrow as pa

from dataplane.documents import Batch
from dataplane.kernels import gopher_repetition
from dataplane.tagger import NoParams, Rule, Tagger
from dataplane.taggers.gopher_quality import ratio

TOP_THRESHOLDS = {2: 0.2, 3: 0.18, 4: 0.16}
DUPLICATE_THRESHOLDS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
# column: (part, whole), as the kernel counts them
QUOTIENTS = {
    "gopher_duplicate_paragraphs": ("duplicate_paragraphs", "paragraphs"),
    "gopher_duplicate_paragraph_characters": ("duplicate_paragraph_characters", "characters"),
    "gopher_duplicate_lines": ("duplicate_lines", "lines"),
    "gopher_duplicate_line_characters": ("duplicate_line_characters", "characters"),
    **{f"gopher_top_{n}gram": (f"top_{n}gram_characters", "characters") for n in TOP_THRESHOLDS},
    **{f"gopher_duplicate_{n}grams": (f"duplicate_{n}gram_characters", "characters") for n in DUPLICATE_THRESHOLDS},
}
SCHEMA = pa.schema([(name, pa.float64()) for name in QUOTIENTS])
RULES = (
    Rule("dup_para_frac", "gopher_duplicate_paragraphs", ">", 0.3),
    Rule("dup_para_char_frac", "gopher_duplicate_paragraph_characters", ">", 0.2),
    Rule("dup_line_frac", "gopher_duplicate_lines", ">", 0.3),
    Rule("dup_line_char_frac", "gopher_duplicate_line_characters", ">", 0.2),
    *(Rule(f"top_{n}_gram", f"gopher_top_{n}gram", ">", threshold) for n, threshold in TOP_THRESHOLDS.items()),
    *(Rule(f"duplicated_{n}_n_grams", f"gopher_duplicate_{n}grams", ">", t) for n, t in DUPLICATE_THRESHOLDS.items()),
)


def columns(params: NoParams) -> pa.Schema:
    return SCHEMA


def tag(batch: Batch, params: NoParams) -> pa.RecordBatch:
    counts = gopher_repetition.count(*batch.text_buffers(), batch.words)
    of = dict(zip(gopher_repetition.COUNTS, counts.T, strict=True))
    values = [ratio(of[part], of[whole]) for part, whole in QUOTIENTS.values()]
    return pa.record_batch([pa.array(value) for value in values], schema=SCHEMA)


TAGGER = Tagger("gopher_repetition", 1, NoParams, columns, tag, RULES)
