"""MinHash bands of a text: documents that share one are candidates for near duplicates.

Columns: minhash_bands list<int64> (one hash a band, bits of a uint64; empty for a text without words), minhash_shingles int64.

Source: `kernels/minhash.py`.
"""

from typing import Literal

import numpy as np
import pyarrow as pa

from dataplane.documents import Batch
from dataplane.kernels import minhash
from dataplane.tagger import Tagger
from triplane.recipe import Strict

SCHEMA = pa.schema([("minhash_bands", pa.list_(pa.int64())), ("minhash_shingles", pa.int64())])


class Params(Strict):
    """`bands` x `rows` hash functions over shingles of `shingle_words` words. numbers: `zero`: all of them count as 0, as in datatrove."""

    bands: int
    rows: int
    shingle_words: int
    seed: int
    numbers: Literal["kept", "zero"] = "kept"


def columns(params: Params) -> pa.Schema:
    return SCHEMA


def tag(batch: Batch, params: Params) -> pa.RecordBatch:
    scheme = (params.bands, params.rows, params.shingle_words, params.seed)
    settings = minhash.MinhashParams(*scheme, zero_numbers=params.numbers == "zero")
    signatures, shingles = minhash.signatures(*batch.text_buffers(), settings)
    has_words = shingles > 0
    bands = minhash.band_hashes(signatures, settings)[has_words].view(np.int64).reshape(-1)
    offsets = np.concatenate([[0], np.cumsum(has_words * params.bands)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(bands))
    return pa.record_batch([lists, pa.array(shingles)], schema=SCHEMA)


TAGGER = Tagger("minhash", 1, Params, columns, tag)
