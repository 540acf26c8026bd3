"""How fast are the stages that `triplane data plan` multiplies, on one core? -> a JSON line a stage, for jobs/recipes/rates.yaml.

    python bench/plan_rates.py --corpus ../shared/data/corpus --tokenizer ../shared/data/tokenizer/allenai_dolma2.json

CPU seconds of this process, so that others on the machine do not count; every stage warmed on two shards first. MB are 10^6 bytes of UTF-8
text, but for `ingest`: of stored bytes.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("RAYON_NUM_THREADS", "1")

from dataplane import documents, spark_worker, tagging
from dataplane.taggers.table import TAGGERS
from triplane import hashing, tokens
from triplane.tokenizer import Tokenizer

TAGGED = ("lengths", "ngram_repetition")  # what the sources of OLMo 2 are tagged with
Counts = dict[str, int]


def ingest(shards: Sequence[documents.DocumentShard]) -> Counts:
    """The bytes of each shard are hashed."""
    for shard in shards:
        hashing.sha256_file(Path(shard.url))
    return {"bytes": sum(shard.bytes for shard in shards)}


def tag(shards: Sequence[documents.DocumentShard], tokenizer: str) -> Counts:
    """JSON lines -> attributes in Parquet."""
    taggers = []
    for name in TAGGED:
        params = TAGGERS[name].params
        taggers.append((TAGGERS[name], params.model_validate({"tokenizer": tokenizer} if name != "lengths" else {})))
    schema, counts = tagging.attributes_schema(taggers), {"bytes": 0, "documents": 0, "written_bytes": 0}
    with tempfile.TemporaryDirectory() as folder:
        for number, shard in enumerate(shards):
            path = Path(folder) / f"{number}.parquet"
            with spark_worker.parquet_writer(path, schema) as writer:
                for batch in documents.read(shard):
                    writer.write_table(tagging.batch_table(batch, taggers, schema, "source", shard.name))
                    counts["bytes"] += _text_bytes(batch)
                    counts["documents"] += batch.num_documents
            counts["written_bytes"] += path.stat().st_size
    return counts


def tokenize(shards: Sequence[documents.DocumentShard], tokenizer: Tokenizer) -> Counts:
    """JSON lines -> token shards with provenance and checksums."""
    counts = {"bytes": 0, "documents": 0, "tokens": 0, "provenance_bytes": 0}
    with tempfile.TemporaryDirectory() as folder:
        for number, shard in enumerate(shards):
            with tokens.ShardWriter(Path(folder), str(number), tokenizer.eos_id) as writer:
                for batch in documents.read(shard):
                    ids, offsets = tokenizer.encode(batch.text)
                    names = [shard.name] * batch.num_documents
                    writer.add(ids, offsets, batch.id.to_pylist(), names, (batch.rows + 1).tolist())
                    counts["bytes"] += _text_bytes(batch)
                files = writer.close()
            counts["tokens"] += files.num_tokens
            counts["documents"] += files.num_documents
            counts["provenance_bytes"] += files.provenance.stat().st_size
    return counts


def _text_bytes(batch: documents.Batch) -> int:
    offsets, _ = batch.text_buffers()
    return int(offsets[-1] - offsets[0])


def measured(shards: list[documents.DocumentShard], run: Callable[[Sequence[documents.DocumentShard]], Counts]) -> dict:
    """Counts, CPU seconds and MB/s of one stage."""
    run(shards[:2])
    start = time.process_time()
    counts = run(shards)
    seconds = time.process_time() - start
    return {**counts, "cpu_seconds": round(seconds, 2), "mb_per_s_per_core": round(counts["bytes"] / 1e6 / seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="a folder with a folder of JSON lines a source")
    parser.add_argument("--tokenizer", required=True)
    given = parser.parse_args()
    folders = sorted(path for path in given.corpus.iterdir() if path.is_dir() and path.name != "defects")
    shards = [shard for folder in folders for shard in documents.shards(str(folder))]
    tokenizer = Tokenizer.load(given.tokenizer)
    stages: dict[str, Callable[[Sequence[documents.DocumentShard]], Counts]] = {
        "ingest": ingest,
        "tag": lambda some: tag(some, given.tokenizer),
        "tokenize": lambda some: tokenize(some, tokenizer),
    }
    for stage, run in stages.items():
        print(json.dumps({"stage": stage, **measured(shards, run)}), flush=True)


if __name__ == "__main__":
    main()
