"""Lengths of a text: bytes, characters, whitespace words, lines.

Columns int64: bytes (UTF-8), characters (code points), words (`str.split`), lines (`str.splitlines`).
"""

import numpy as np
import pyarrow as pa

from dataplane.documents import Batch
from dataplane.kernels.lengths import count_characters
from dataplane.tagger import NoParams, Tagger

SCHEMA = pa.schema([(name, pa.int64()) for name in ("bytes", "characters", "words", "lines")])


def columns(params: NoParams) -> pa.Schema:
    return SCHEMA


def tag(batch: Batch, params: NoParams) -> pa.RecordBatch:
    offsets, data = batch.text_buffers()
    values = [np.diff(offsets), count_characters(offsets, data), np.diff(batch.words.first), batch.words.lines]
    return pa.record_batch([pa.array(value) for value in values], schema=SCHEMA)


TAGGER = Tagger("lengths", 1, NoParams, columns, tag)
