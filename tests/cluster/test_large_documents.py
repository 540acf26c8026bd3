"""Documents of 5 and 60 MB between ordinary ones: tagged in less than 1.5 GB, to the same bytes in a lane of their own or not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

CHILD = """
import hashlib, json, sys
from pathlib import Path
from dataplane import attributes, documents, spark_worker
from dataplane.taggers.table import TAGGERS

path, output, tokenizer, limit = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
attributes.LARGE_DOCUMENT_BYTES = limit or attributes.LARGE_DOCUMENT_BYTES
params = {"ngram_repetition": {"tokenizer": tokenizer}, "minhash": {"bands": 14, "rows": 8, "shingle_words": 5, "seed": 1}}
names = ("lengths", "gopher_quality", "gopher_repetition", "ngram_repetition", "text_hash", "minhash")
taggers = [(TAGGERS[name], TAGGERS[name].params.model_validate(params.get(name, {}))) for name in names]
schema = attributes.attributes_schema(taggers)
shard = documents.DocumentShard(path.name, str(path), path.stat().st_size)
counted = []
with spark_worker.parquet_writer(output, schema) as writer:
    lanes = (counted.append(b.num_documents) or b for b in attributes.lanes(documents.read(shard)))
    for table in attributes.row_groups(attributes.batch_table(b, taggers, schema, "s", path.name) for b in lanes):
        writer.write_table(table, row_group_size=spark_worker.ROW_GROUP_ROWS)
peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line) << 10
print(json.dumps({"peak": peak, "sha256": hashlib.sha256(output.read_bytes()).hexdigest(), "batches": counted}))
"""


def written(corpus: Path, path: Path) -> int:
    """A shard of web pages, and of long documents made of them with numbers put in -> how many documents."""
    with (corpus / "web/part-00000.jsonl.zst").open("rb") as stream:
        data = zstandard.ZstdDecompressor().stream_reader(stream).read()
    pages = [json.loads(line)["text"] for line in data.splitlines()]
    random = np.random.default_rng(4)

    def long(size: int) -> str:
        pieces: list[str] = []
        left = size
        while left > 0:
            words = pages[random.integers(len(pages))].split(" ")
            for at, number in random.integers(0, [len(words), 10**6], (len(words) // 50, 2)).tolist():
                words[at] = str(number)
            pieces.append(" ".join(words))
            left -= len(pieces[-1])
        return "\n\n".join(pieces)[:size]

    texts = [*pages[:150], long(5 << 20), *pages[150:], long(60_000_000), "the end"]
    lines = [json.dumps({"id": f"{number}", "text": text}, ensure_ascii=False) for number, text in enumerate(texts)]
    path.write_bytes(zstandard.compress("".join(line + "\n" for line in lines).encode()))
    return len(texts)


def tagged(path: Path, tokenizer: Path, limit: int) -> dict[str, Any]:
    command = [sys.executable, "-c", CHILD, path, path.with_suffix(f".{limit}"), tokenizer, limit]
    done = subprocess.run([str(one) for one in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_large_documents_take_bounded_memory_and_change_no_byte(shared: Path, tmp_path: Path) -> None:
    path, tokenizer = tmp_path / "a.jsonl.zst", shared / "data/tokenizer/allenai_dolma2.json"
    count = written(shared / "data/corpus", path)
    apart, together = tagged(path, tokenizer, 0), tagged(path, tokenizer, 1 << 40)
    assert apart["sha256"] == together["sha256"]
    assert sum(apart["batches"]) == sum(together["batches"]) == count
    assert apart["batches"].count(1) == 3 > together["batches"].count(1)  # the last page is behind a large one
    assert apart["peak"] < 1.5e9
