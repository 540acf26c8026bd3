"""How fast are MinHash signatures (14x8, 5-word shingles), and do they find what datatrove's find? Both on the same documents, in one run.

Rates are MB of UTF-8 text per second of CPU time on one core: signatures and band hashes, without imports, reading or the loading of
kernels (datatrove reads inside its executor: about 1 % of its time). Recall: documents of 100 words or more against copies with a given
fraction of words replaced; a pair is found if it shares a band. Controls are pairs of different documents: none may share a band. Recall is
as good when no fraction is lower by more than three standard errors of the difference, pair by pair. Numbers count as zero, as they do for
datatrove; `recall_numbers_kept` is ours without that. The last line is one JSON object.

    python bench/minhash.py [--quick]
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring

CHANGED = (0.01, 0.02, 0.05, 0.1, 0.2)
BATCH_BYTES = 16 << 20
TOLERANCE = 3.0  # standard errors by which a recall may be lower by chance
WORDS = (100, 300)  # of a document, so that there are thousands and datatrove reads them in seconds


def our_rate(documents: Path) -> dict[str, Any]:
    """Signatures and bands of all documents, batch by batch."""
    from dataplane import documents as reading
    from dataplane.kernels import minhash

    params = minhash.MinhashParams(**measuring.MINHASH, zero_numbers=True)
    size, cpu, warm = 0, 0.0, False
    for shard in reading.shards(str(documents)):
        for batch in reading.read(shard, BATCH_BYTES):
            buffers = batch.text_buffers()
            if not warm:
                minhash.band_hashes(minhash.signatures(buffers[0][:2], buffers[1], params)[0], params)
                warm = True
            start = time.process_time()
            minhash.band_hashes(minhash.signatures(*buffers, params)[0], params)
            cpu += time.process_time() - start
            size += int(buffers[0][-1] - buffers[0][0])
    return {"bytes": size, "cpu": cpu}


def our_bands(documents: Path, zero_numbers: bool) -> dict[str, list[str]]:
    """Document id -> its bands."""
    from dataplane import documents as reading
    from dataplane.kernels import minhash

    params, found = minhash.MinhashParams(**measuring.MINHASH, zero_numbers=zero_numbers), {}
    for shard in reading.shards(str(documents)):
        for batch in reading.read(shard):
            bands = minhash.band_hashes(minhash.signatures(*batch.text_buffers(), params)[0], params)
            found |= dict(zip(batch.id.to_pylist(), bands.astype(str).tolist(), strict=True))
    return found


def pairs(number: int, folder: Path) -> list[str]:
    """Writes `number` documents (id k) and their copies (id k/fraction) -> the texts of the documents."""
    chosen = [document for document in measuring.corpus() if WORDS[0] <= document["text"].count(" ") <= WORDS[1]]
    written = []
    for k, document in enumerate(chosen[:number]):
        written.append({"id": f"{k}", "text": document["text"]})
        for fraction in CHANGED:
            text = measuring.edited(document["text"], (k, round(1000 * fraction)), 1 / fraction)
            written.append({"id": f"{k}/{fraction}", "text": text})
    measuring.write_shards(written, folder, 1 << 30)
    return [document["text"] for document in chosen[:number]]


def are_alike(a: str, b: str) -> bool:
    """Whether two texts share at least a third of their 5-word shingles: the corpus has such copies of its own."""
    words = [text.lower().split() for text in (a, b)]
    one, other = ({tuple(w[i : i + 5]) for i in range(len(w) - 4)} for w in words)
    return 3 * len(one & other) >= len(one | other)


def found_pairs(bands: dict[str, list[str]], texts: list[str]) -> tuple[dict[str, list[bool]], int]:
    """By changed fraction, which pairs share a band; and how many of the pairs (k, k + 1) do that are not alike."""
    number = len(texts)

    def together(a: str, b: str) -> bool:
        return any(x == y for x, y in zip(bands[a], bands[b], strict=True))

    found = {str(f): [together(f"{k}", f"{k}/{f}") for k in range(number)] for f in CHANGED}
    neighbours = [k for k in range(number - 1) if together(f"{k}", f"{k + 1}")]
    return found, sum(not are_alike(texts[k], texts[k + 1]) for k in neighbours)


def recall(found: dict[str, list[bool]]) -> dict[str, float]:
    return {fraction: round(sum(pairs) / len(pairs), 5) for fraction, pairs in found.items()}


def standard_errors(ours: dict[str, list[bool]], theirs: dict[str, list[bool]]) -> dict[str, float]:
    """Of the difference of the two recalls, pair by pair."""
    differences = {f: [a - b for a, b in zip(ours[f], theirs[f], strict=True)] for f in ours}
    return {f: round(statistics.stdev(values) / len(values) ** 0.5, 5) for f, values in differences.items()}


def peer(job: str, splitter: str, seconds: float, documents: Path, folder: Path) -> tuple[float, Any]:
    """-> (MB/s, what it found)."""
    output = folder / f"{job}-{splitter}"
    command = [measuring.DATATROVE, measuring.ROOT / "bench/datatrove_peer.py", job, documents, output]
    figures = measuring.child([*command, "--seconds", str(seconds), "--splitter", splitter], folder)
    found = json.loads((output / "found.json").read_text())
    rate = (
        measuring.note(f"datatrove {job} ({splitter})", figures["bytes"] / 1e6, figures["cpu"])
        if figures["bytes"]
        else 0.0
    )
    return rate, found


def measured(quick: bool, folder: Path) -> dict[str, Any]:
    seconds, number = (5.0, 1000) if quick else (15.0, 5000)
    documents, copies = folder / "documents", folder / "pairs"
    measuring.write_shards(measuring.corpus(), documents, 32 << 20)
    texts = pairs(number, copies)
    mine = measuring.child([sys.executable, __file__, "--child", documents], folder)
    rate = measuring.note("ours", mine["bytes"] / 1e6, mine["cpu"])
    shipped, _ = peer("minhash", "shipped", seconds, documents, folder)
    split, _ = peer("minhash", "whitespace", seconds, documents, folder)
    our_pairs, our_controls = found_pairs(our_bands(copies, zero_numbers=True), texts)
    kept_pairs, _ = found_pairs(our_bands(copies, zero_numbers=False), texts)
    _, found = peer("recall", "whitespace", seconds, copies, folder)
    their_pairs, their_controls = found_pairs(dict(found), texts)
    ours, theirs, errors = recall(our_pairs), recall(their_pairs), standard_errors(our_pairs, their_pairs)
    as_good = all(ours[f] >= theirs[f] - TOLERANCE * errors[f] for f in ours)
    return {
        "ours": round(rate, 1),
        "peer": round(shipped, 3),
        "ratio": round(rate / shipped, 1),
        "same_output": as_good and our_controls == 0,
        "peer_whitespace": round(split, 3),
        "ratio_whitespace": round(rate / split, 1),
        "recall": ours,
        "recall_peer": theirs,
        "standard_errors": errors,
        "recall_numbers_kept": recall(kept_pairs),
        "pairs_a_fraction": number,
        "false_pairs": our_controls,
        "false_pairs_peer": their_controls,
    }


def main(quick: bool) -> None:
    measuring.require(measuring.DATATROVE)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        figures = measured(quick, Path(name))
    report = {"bench": "minhash", "unit": "MB/s per core", "peer_name": "datatrove MinhashDedupSignature", **figures}
    versions = measuring.versions("numba") | measuring.versions("datatrove", "spacy", python=measuring.DATATROVE)
    print(json.dumps(report | {"quick": quick, "versions": versions}))


if __name__ == "__main__":
    os.environ.setdefault("NUMBA_CACHE_DIR", str(measuring.ROOT / ".numba_cache"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", type=Path)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(our_rate(arguments.child)))
    else:
        main(arguments.quick)
