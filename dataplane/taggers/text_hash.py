"""A 128-bit hash of a text: equal texts, equal hashes.

Columns int64: text_hash_high, text_hash_low, the halves of xxh3_128 of the UTF-8 bytes.
"""

import pyarrow as pa

from dataplane.documents import Batch
from dataplane.kernels import text_hash
from dataplane.tagger import NoParams, Tagger

SCHEMA = pa.schema([("text_hash_high", pa.int64()), ("text_hash_low", pa.int64())])


def columns(params: NoParams) -> pa.Schema:
    return SCHEMA


def tag(batch: Batch, params: NoParams) -> pa.RecordBatch:
    high, low = text_hash.digest(*batch.text_buffers())
    return pa.record_batch([pa.array(high), pa.array(low)], schema=SCHEMA)


TAGGER = Tagger("text_hash", 1, NoParams, columns, tag)
