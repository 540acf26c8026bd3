"""Where a document repeats one n-gram of tokens 32 times or more: what a trainer's labels leave out.

Columns: ngram_regions list<int64>: start, end, start, end, ... in tokens of the document, ends exclusive, no end-of-document token counted;
almost always empty. Only documents whose bytes repeat so often are tokenised.

Sources: OLMo 2 (arXiv 2501.00656, section 3.1); `kernels/repeated_regions.py`.
"""

import numpy as np
import pyarrow as pa

from dataplane.documents import Batch
from dataplane.kernels import repeated_regions
from dataplane.tagger import Tagger
from dataplane.taggers.ngram_repetition import Params, load_tokenizer

SCHEMA = pa.schema([("ngram_regions", pa.list_(pa.int64()))])


def columns(params: Params) -> pa.Schema:
    return SCHEMA


def tag(batch: Batch, params: Params) -> pa.RecordBatch:
    possible = repeated_regions.can_repeat(*batch.text_buffers())
    ids, offsets = load_tokenizer(params.tokenizer).encode(batch.text.filter(pa.array(possible)))
    bounds, flat = repeated_regions.find(ids, offsets, params.max_period)
    lengths = np.zeros(batch.num_documents, np.int64)
    lengths[possible] = np.diff(bounds)
    list_offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.record_batch([pa.ListArray.from_arrays(pa.array(list_offsets), pa.array(flat))], schema=SCHEMA)


TAGGER = Tagger("ngram_regions", 1, Params, columns, tag)
