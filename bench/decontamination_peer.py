"""datatrove's n-gram decontamination, timed: run by `bench/decontamination.py` with the Python of datatrove's own environment. One JSON line out.

Items (JSON lines: task, query, label) and documents (JSONL.zst folder) -> hashes by the indexer's own `compute_hashes`, documents by the filter's own
`filter`, for `--seconds` of CPU time. The indexer asks for lighteval, which it needs only to download tasks.
Loading, imports and the index are not in the rate. Settings: n = 12, `find_query_ngrams=True`, all else as shipped.
"""

import argparse
import json
import time
from pathlib import Path

import orjson
import zstandard
from datatrove.data import Document
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter, NGramsDecontIndexer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("items", type=Path)
    parser.add_argument("documents", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    NGramsDecontIndexer._requires_dependencies = []
    config = NGramsDecontConfig(find_query_ngrams=True)
    indexer, start = NGramsDecontIndexer(str(options.items.parent), config=config), time.process_time()
    hashes = {}
    for line in options.items.read_bytes().splitlines():
        row = orjson.loads(line)
        hashes |= dict.fromkeys(indexer.compute_hashes(row["label"], row["query"]), row["task"])
    build = time.process_time() - start
    step = NGramsDecontFilter(str(options.items.parent), config)
    step._index_hashes = hashes
    size, count, dropped, start = 0, 0, [], time.process_time()
    for path in sorted(options.documents.glob("*.jsonl.zst")):
        with path.open("rb") as stream:
            lines = zstandard.ZstdDecompressor().stream_reader(stream).read().splitlines()
        for line in lines:
            row = orjson.loads(line)
            if time.process_time() - start > options.seconds:
                break
            if step.filter(Document(text=row["text"], id=row["id"])) is not True:
                dropped.append(row["id"])
            size, count = size + len(row["text"].encode()), count + 1
    figures = {"build": build, "hashes": len(hashes), "bytes": size, "documents": count, "dropped": len(dropped)}
    print(json.dumps({**figures, "cpu": time.process_time() - start}))


if __name__ == "__main__":
    main()
