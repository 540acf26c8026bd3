"""How fast does a core score documents with a fastText model? Our kernel and the library's `predict`, the same model and documents, in one run.

A quality classifier (dim 100, word bigrams, 2 M buckets, two labels) is trained on the spot from the shared corpus; each side loads it in a
process of its own and scores Arrow batches of text, one line a document. MB of UTF-8 text per second of CPU time on one core, loading not counted.
Output compared: labels, and the largest difference of probabilities, on the documents that the library scored. The last line is one JSON object.

    python bench/fasttext.py [--quick]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measuring

SETTINGS = {"dim": 100, "wordNgrams": 2, "bucket": 2_000_000, "epoch": 3, "lr": 0.5, "thread": 1, "verbose": 0}
GOOD = {"academic", "books", "encyclopedia", "math_web", "math_proofs", "arxiv_latex"}
LINE_WORDS = 100  # more updates, so that few bytes train a model that is sure of something
TRAINING_BYTES = 8_000_000
TOLERANCE = 1e-6


TRAIN = "import fasttext, json, sys; fasttext.train_supervised(sys.argv[1], **json.loads(sys.argv[2])).save_model(sys.argv[3])"


def train(path: Path, folder: Path) -> None:
    """The library never clears its output matrix: only memory fresh from the system is zero, so each allocation is given pages of its own."""
    lines, size = [], 0
    for document in reversed(measuring.corpus()):
        label = "hq" if document["id"].split("/")[0] in GOOD else "cc"
        words = document["text"].split()
        parts = (" ".join(words[i : i + LINE_WORDS]) for i in range(0, len(words), LINE_WORDS))
        lines.extend(f"__label__{label} {part}\n" for part in parts)
        size += len(document["text"])
        if size > TRAINING_BYTES:
            break
    (folder / "train.txt").write_text("".join(lines))
    command = [sys.executable, "-P", "-c", TRAIN, folder / "train.txt", json.dumps(SETTINGS), path]
    subprocess.run(command, env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1024"}, check=True)


def batches(documents: Path) -> Iterator[Any]:
    from dataplane import documents as reading

    for shard in reading.shards(str(documents)):
        yield from reading.read(shard, 2 << 20)


def score_with_kernel(model: Path, documents: Path, seconds: float) -> tuple[dict[str, Any], list[Any]]:
    """Every document -> (bytes and CPU seconds, the best label and its probability of each)."""
    from dataplane.kernels import fasttext as kernel

    loaded, size, cpu, found, warm = kernel.load(model), 0, 0.0, [], False
    for batch in batches(documents):
        offsets, data = batch.text_buffers()
        if not warm:
            kernel.score(loaded, offsets[:2], data, joins_lines=True)
            warm = True
        start = time.process_time()
        scores = kernel.score(loaded, offsets, data, joins_lines=True)
        cpu += time.process_time() - start
        size += int(offsets[-1] - offsets[0])
        found += [[loaded.labels[row.argmax()], float(row.max())] for row in scores]
    return {"bytes": size, "cpu": cpu}, found


def score_with_library(model: Path, documents: Path, seconds: float) -> tuple[dict[str, Any], list[Any]]:
    """Documents until `seconds` are over, each by `predict` on its lines joined by spaces, as DCLM does."""
    import fasttext

    loaded, size, cpu = fasttext.load_model(str(model)), 0, 0.0
    found: list[Any] = []
    for batch in batches(documents):
        texts = batch.text.to_pylist()
        size += sum(len(text.encode()) for text in texts)
        start = time.process_time()
        labels, probabilities = loaded.predict([" ".join(text.splitlines()) for text in texts])
        cpu += time.process_time() - start
        found += [[label[0], float(p[0])] for label, p in zip(labels, probabilities, strict=True)]
        if cpu > seconds:
            break
    return {"bytes": size, "cpu": cpu}, found


SIDES = {"ours": score_with_kernel, "library": score_with_library}


def child(side: str, model: Path, documents: Path, seconds: float, output: Path) -> None:
    figures, found = SIDES[side](model, documents, seconds)
    output.write_text(json.dumps(found))
    print(json.dumps(figures))


def measured(quick: bool, folder: Path) -> dict[str, Any]:
    documents, model = folder / "documents", folder / "model.bin"
    measuring.write_shards(measuring.corpus(), documents, 32 << 20)
    train(model, folder)
    rates, found = {}, {}
    for side in SIDES:
        output = folder / f"{side}.json"
        options = ["--model", model, "--documents", documents, "--output", output]
        command = [sys.executable, __file__, "--child", side, "--seconds", "5" if quick else "15", *options]
        figures = measuring.child(command, folder)
        rates[side] = measuring.note(side, figures["bytes"] / 1e6, figures["cpu"])
        found[side] = json.loads(output.read_text())
    compared = list(zip(found["ours"], found["library"], strict=False))
    difference = max(abs(ours[1] - theirs[1]) for ours, theirs in compared)
    labels = sum(ours[0] != theirs[0] for ours, theirs in compared)
    return {
        "ours": round(rates["ours"], 1),
        "peer": round(rates["library"], 2),
        "ratio": round(rates["ours"] / rates["library"], 2),
        "same_output": labels == 0 and difference <= TOLERANCE,
        "documents_compared": len(compared),
        "mean_probability": round(sum(theirs[1] for _, theirs in compared) / len(compared), 3),
        "labels_differing": labels,
        "largest_difference": difference,
    }


def main(quick: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        figures = measured(quick, Path(name))
    report = {"bench": "fasttext", "unit": "MB/s per core", "peer_name": "fasttext predict", **figures}
    print(json.dumps(report | {"quick": quick, "versions": measuring.versions("fasttext-numpy2-wheel", "numba")}))


if __name__ == "__main__":
    os.environ.setdefault("NUMBA_CACHE_DIR", str(measuring.ROOT / ".numba_cache"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", choices=sorted(SIDES))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--documents", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seconds", type=float, default=0.0)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.model, arguments.documents, arguments.seconds, arguments.output)
    else:
        main(arguments.quick)
