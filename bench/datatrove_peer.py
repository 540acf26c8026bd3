"""datatrove, timed: run by the benchmarks with the Python of datatrove's own environment. One JSON line out.

JSONL.zst folder -> the blocks of `tag`, the whole build or MinHash signatures, on as many documents as `--seconds` of CPU time are enough for.
CPU time from the start of the executor: imports do not count. `--splitter shipped` is spaCy's, as the blocks come; `whitespace` is `str.split`.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer, TokensCounter
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.word_tokenizers import WordTokenizer, load_word_tokenizer
from loguru import logger

CONFIG = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
# Of the time, while documents are let in: the tokenizer and MinHash work on those that wait when the clock stops.
SHARES = {"tag": 0.55, "build": 0.55}


class Whitespace(WordTokenizer):
    """Words as `str.split` and dolma have them."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


class Clock:
    """Lets documents through for some seconds of CPU time, and counts their bytes."""

    def __init__(self, seconds: float) -> None:
        self.start, self.seconds, self.bytes, self.documents = time.process_time(), seconds, 0, 0

    def __call__(self, data: Iterator[Any], rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        for document in data:
            if time.process_time() - self.start > self.seconds:
                return
            self.bytes += len(document.text.encode())
            self.documents += 1
            yield document

    def __deepcopy__(self, memo: dict[int, Any]) -> "Clock":
        """The executor copies its steps: there is one clock."""
        return self

    @property
    def cpu(self) -> float:
        return time.process_time() - self.start


def execute(*steps: Any, tasks: int = 1) -> None:
    with TemporaryDirectory() as logs:  # without one it writes ./logs
        LocalPipelineExecutor(list(steps), tasks=tasks, workers=1, skip_completed=False, logging_dir=logs).run()


def tag(documents: Path, output: Path, tokenizer: str, splitter: Any, clock: Clock) -> list[Any]:
    """Every block on every document -> (id, quality's reason, repetition's reason, tokens)."""
    quality, repetition = GopherQualityFilter(language=splitter), GopherRepetitionFilter(language=splitter)
    judged: list[Any] = []

    def judge(data: Iterator[Any], rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        for document in data:
            verdicts = [block.filter(document) for block in (quality, repetition)]
            document.metadata["judged"] = [verdict[1] if isinstance(verdict, tuple) else None for verdict in verdicts]
            yield document

    def keep(data: Iterator[Any], rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        for document in data:
            judged.append([document.id, *document.metadata["judged"], document.metadata["token_count"]])
            yield document

    execute(
        JsonlReader(str(documents)),
        clock,
        judge,
        TokensCounter(tokenizer),
        keep,
        MinhashDedupSignature(str(output / "signatures"), config=CONFIG, language=splitter),
    )
    return judged


def build(documents: Path, output: Path, tokenizer: str, splitter: Any, clock: Clock) -> list[Any]:
    """Documents -> token shards, by the stages of datatrove's own MinHash example, filters before them and the tokenizer behind."""
    kept, signatures, buckets, removed = (str(output / name) for name in ("kept", "signatures", "buckets", "removed"))
    filters = GopherQualityFilter(language=splitter), GopherRepetitionFilter(language=splitter)
    execute(JsonlReader(str(documents)), clock, *filters, JsonlWriter(kept))
    execute(JsonlReader(kept), MinhashDedupSignature(signatures, config=CONFIG, language=splitter))
    execute(MinhashDedupBuckets(signatures, buckets, config=CONFIG), tasks=CONFIG.num_buckets)
    execute(MinhashDedupCluster(buckets, removed, config=CONFIG))
    writer = DocumentTokenizer(str(output / "tokens"), tokenizer, eos_token="<|endoftext|>", seed=0)
    execute(JsonlReader(kept), MinhashDedupFilter(removed), writer)
    return []


def quality(documents: Path, output: Path, tokenizer: str, splitter: Any, clock: Clock) -> list[Any]:
    """One block alone on every document."""
    execute(JsonlReader(str(documents)), clock, GopherQualityFilter(language=splitter))
    return []


def repetition(documents: Path, output: Path, tokenizer: str, splitter: Any, clock: Clock) -> list[Any]:
    execute(JsonlReader(str(documents)), clock, GopherRepetitionFilter(language=splitter))
    return []


def minhash(documents: Path, output: Path, tokenizer: str, splitter: Any, clock: Clock) -> list[Any]:
    execute(
        JsonlReader(str(documents)),
        clock,
        MinhashDedupSignature(str(output / "signatures"), config=CONFIG, language=splitter),
    )
    return []


def recall(documents: Path, output: Path, tokenizer: str, splitter: Any, clock: Clock) -> list[Any]:
    """(id, the bands as strings) of every document."""
    block = MinhashDedupSignature(str(output / "signatures"), config=CONFIG, language=splitter)
    found = []
    for document in JsonlReader(str(documents)).run():
        shingles = block.get_shingles(document.text)
        bands = [str(band) for band in block.get_signature(shingles)] if shingles.size else []
        found.append([document.id, bands])
    return found


JOBS = {
    "tag": tag,
    "build": build,
    "quality": quality,
    "repetition": repetition,
    "minhash": minhash,
    "recall": recall,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=sorted(JOBS))
    parser.add_argument("documents", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tokenizer", default="")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--splitter", choices=("shipped", "whitespace"), default="shipped")
    arguments = parser.parse_args()
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    splitter: Any = Whitespace() if arguments.splitter == "whitespace" else "en"
    load_word_tokenizer(splitter).word_tokenize("Loaded before the clock starts.")
    clock = Clock(arguments.seconds * SHARES.get(arguments.job, 1.0))
    found = JOBS[arguments.job](arguments.documents, arguments.output, arguments.tokenizer, splitter, clock)
    cpu = clock.cpu
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "found.json").write_text(json.dumps(found))
    print(json.dumps({"bytes": clock.bytes, "documents": clock.documents, "cpu": cpu}))


if __name__ == "__main__":
    main()
