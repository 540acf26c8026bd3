"""Which tokens a trainer's labels leave out: the regions that a tagger wrote, as masks of token shards.

A column list<int64> of attributes (start, end, start, end, ... in tokens of the document, ends exclusive) -> bool, one a token, False in a
region. The table of the first pass carries the regions beside each document, so that they follow it to its place in the shuffle.

Source: OLMo 2 (arXiv 2501.00656, section 3.1) leaves a whole instance out; OLMo-core's `label_mask_paths` can leave out the tokens alone.
"""

import numpy as np
import pyarrow as pa

from triplane.errors import Refused

VERSION = 1
REGIONS = pa.list_(pa.int64())


def checked(regions: pa.Array, lengths: np.ndarray, shard: str) -> pa.Array:
    """The regions, one list a document of `lengths` tokens. Refused unless each lies within its document."""
    flat, document = pairs(regions)
    inside = (flat[:, 0] >= 0) & (flat[:, 0] <= flat[:, 1]) & (flat[:, 1] <= lengths[document])
    if not inside.all():
        start, end = flat[~inside][0].tolist()
        raise Refused(
            f"document shard {shard}: the region [{start}, {end}) reaches beyond a document of {lengths[document[~inside][0]]} tokens: "
            "remove the attributes and build again"
        )
    return regions


def pairs(regions: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """list<int64> [documents] -> (start and end of each region, int64 [regions, 2]; the document each is of, int64 [regions])."""
    counts = regions.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return regions.flatten().to_numpy().reshape(-1, 2), np.repeat(np.arange(len(regions)), counts // 2)


def mask(regions: pa.Array, starts: np.ndarray, num_tokens: int) -> np.ndarray:
    """bool [num_tokens], False in the regions; document d begins at token starts[d]."""
    found = np.ones(num_tokens, np.bool_)
    flat, document = pairs(regions)
    for start, end in (flat + starts[document, None]).tolist():
        found[start:end] = False
    return found
