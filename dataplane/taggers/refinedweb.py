"""The RefinedWeb rules on documents, as DCLM-Baseline applies them.

Columns: refinedweb_words int64 (words that begin with a letter or a digit), refinedweb_stop_words int64 (each time); float64, 0 where there
is nothing to divide by: refinedweb_mean_word_length, refinedweb_symbol_ratio, refinedweb_bullet_lines, refinedweb_ellipsis_lines,
refinedweb_non_alphabetic_words, refinedweb_removed_words (the share of words in lines that the line rules would remove; the text itself is
not edited here). Words are whitespace words. The repetition rules of the same recipe are those of the tagger `gopher_repetition`: name it
too. (DCLM counts an n-gram's or line's first occurrence as repeated as well, and characters without white space.)

Source: mlfoundations/dclm `baselines/baselines_configs/dclm_baseline_refinedweb.yaml`, whose order and thresholds the rules have; Penedo et
al. 2023 (arXiv 2306.01116).
"""

import re

import numpy as np
import pyarrow as pa

from dataplane.documents import Batch
from dataplane.kernels import refinedweb
from dataplane.tagger import NoParams, Rule, Tagger
from dataplane.taggers.gopher_quality import ratio

SCHEMA = pa.schema(
    [
        ("refinedweb_words", pa.int64()),
        ("refinedweb_mean_word_length", pa.float64()),
        ("refinedweb_symbol_ratio", pa.float64()),
        ("refinedweb_bullet_lines", pa.float64()),
        ("refinedweb_ellipsis_lines", pa.float64()),
        ("refinedweb_non_alphabetic_words", pa.float64()),
        ("refinedweb_stop_words", pa.int64()),
        ("refinedweb_removed_words", pa.float64()),
    ]
)
RULES = (
    Rule("refinedweb_short", "refinedweb_words", "<", 50),
    Rule("refinedweb_long", "refinedweb_words", ">", 100_000),
    Rule("refinedweb_short_words", "refinedweb_mean_word_length", "<", 3.0),
    Rule("refinedweb_long_words", "refinedweb_mean_word_length", ">", 10.0),
    Rule("refinedweb_symbols", "refinedweb_symbol_ratio", ">", 0.1),
    Rule("refinedweb_bullets", "refinedweb_bullet_lines", ">", 0.9),
    Rule("refinedweb_ellipses", "refinedweb_ellipsis_lines", ">", 0.3),
    Rule("refinedweb_non_alphabetic", "refinedweb_non_alphabetic_words", ">", 0.2),
    Rule("refinedweb_stop_words", "refinedweb_stop_words", "<", 2),
    Rule("refinedweb_removed_words", "refinedweb_removed_words", ">", 0.05),
)
COUNTER_LINE = re.compile(r"^\W*\d(?:,|\.|\d)*(?:K|k|M|m|B|b)?\s+(?:" + "|".join(refinedweb.COUNTERS) + r")\W*$")
# In the recipe's order, its unescaped dots kept: "Read more" and any three characters.
PHRASES = tuple(
    re.compile(pattern, re.IGNORECASE) for pattern in (r"\s?items in cart", r"\s?Read more...$", r"^Sign-in\s?")
)


def columns(params: NoParams) -> pa.Schema:
    return SCHEMA


def tag(batch: Batch, params: NoParams) -> pa.RecordBatch:
    counts = refinedweb.count(*batch.text_buffers(), batch.words)
    of = dict(zip(refinedweb.COUNTS, counts.T, strict=True))
    removed = of["removed_words"].copy()
    for document in np.flatnonzero(of["has_phrases"]).tolist():
        removed[document] = of["counted_words"][document] - _count_words(_edited(batch.text[document].as_py()))
    values = [
        of["counted_words"].copy(),
        ratio(of["word_characters"], of["words"]),
        ratio(of["symbols"], of["words"]),
        ratio(of["bullet_lines"], of["lines"]),
        ratio(of["ellipsis_lines"], of["lines"]),
        ratio(of["non_alphabetic_words"], of["words"]),
        of["stop_words"].copy(),
        ratio(removed, of["counted_words"]),
    ]
    return pa.record_batch([pa.array(value) for value in values], schema=SCHEMA)


def _count_words(text: str) -> int:
    return sum(word[0].isalnum() for word in text.split())


def _edited(text: str) -> str:
    """The text as the line modifiers leave it, in their order; each begins and ends with what the one before left."""
    lines = [line for line in text.split("\n") if not line or sum(map(str.isupper, line)) / len(line) <= 0.5]
    lines = "\n".join(lines).strip().split("\n")  # a line of digits alone is one word: the rule on length takes it too
    lines = [line for line in lines if not COUNTER_LINE.search(line.lower())]
    lines = [line for line in "\n".join(lines).strip().split("\n") if not line or len(line.split()) >= 2]
    for phrase in PHRASES:
        edited = [phrase.sub("", line) if len(line.split()) <= refinedweb.MAX_PHRASE_WORDS else line for line in lines]
        lines = "\n".join(edited).strip().split("\n")
    return "\n".join(lines)


TAGGER = Tagger("refinedweb", 1, NoParams, columns, tag, RULES)
