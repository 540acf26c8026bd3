"""How fast are MinHash signatures (14x8, 5-word shingles), and do they find what datatrove's find? Both on the same documents, in one run.

Rates are MB of UTF-8 text per second of CPU time on one core: signatures and band hashes, without imports, reading or the loading of
kernels (datatrove reads inside its executor: about 1 % of its time). Recall: documents of 100 words or more against copies with a given
fraction of words replaced; a pair is found if it shares a band. Controls are pairs of different documents: none may share a band. Recall is
as good when no fraction is lower by more than three standard errors. The last line is one JSON object.

    python bench/minhash.py [--quick]
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring

CHANGED = (0.01, 0.02, 0.05, 0.1, 0.2)
BATCH_BYTES = 16 << 20
TOLERANCE = 3.0  # standard errors by which a recall may be lower by chance


def our_rate(documents: Path) -> dict[str, Any]:
    """Signatures and bands of all documents, batch by batch."""
    from dataplane import documents as reading
    from dataplane.kernels import minhash

    params = minhash.MinhashParams(**measuring.MINHASH)
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


def our_bands(documents: Path) -> dict[str, list[str]]:
    """Document id -> its bands."""
    from dataplane import documents as reading
    from dataplane.kernels import minhash

    params, found = minhash.MinhashParams(**measuring.MINHASH), {}
    for shard in reading.shards(str(documents)):
        for batch in reading.read(shard):
            bands = minhash.band_hashes(minhash.signatures(*batch.text_buffers(), params)[0], params)
            found |= dict(zip(batch.id.to_pylist(), bands.astype(str).tolist(), strict=True))
    return found


def pairs(number: int, folder: Path) -> None:
    """Writes `number` documents (id k) and their copies (id k/fraction)."""
    chosen = [document for document in measuring.corpus() if 100 <= document["text"].count(" ") <= 2000]
    written = []
    for k, document in enumerate(chosen[:number]):
        written.append({"id": f"{k}", "text": document["text"]})
        for fraction in CHANGED:
            text = measuring.edited(document["text"], (k, round(1000 * fraction)), 1 / fraction)
            written.append({"id": f"{k}/{fraction}", "text": text})
    measuring.write_shards(written, folder, 1 << 30)


def recall(bands: dict[str, list[str]], number: int) -> tuple[dict[str, float], int]:
    """Found by changed fraction, and how many of the pairs (k, k + 1) share a band."""

    def together(a: str, b: str) -> bool:
        return any(x == y for x, y in zip(bands[a], bands[b], strict=True))

    found = {str(f): sum(together(f"{k}", f"{k}/{f}") for k in range(number)) / number for f in CHANGED}
    return found, sum(together(f"{k}", f"{k + 1}") for k in range(number - 1))


def not_below(ours: float, theirs: float, number: int) -> bool:
    return bool(ours >= theirs - TOLERANCE * (2 * theirs * (1 - theirs) / number) ** 0.5)


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
    seconds, number = (5.0, 200) if quick else (15.0, 1000)
    documents, copies = folder / "documents", folder / "pairs"
    measuring.write_shards(measuring.corpus(), documents, 32 << 20)
    pairs(number, copies)
    mine = measuring.child([sys.executable, __file__, "--child", documents], folder)
    rate = measuring.note("ours", mine["bytes"] / 1e6, mine["cpu"])
    shipped, _ = peer("minhash", "shipped", seconds, documents, folder)
    split, _ = peer("minhash", "whitespace", seconds, documents, folder)
    our_recall, our_controls = recall(our_bands(copies), number)
    _, found = peer("recall", "whitespace", seconds, copies, folder)
    their_recall, their_controls = recall(dict(found), number)
    as_good = all(not_below(our_recall[f], their_recall[f], number) for f in our_recall)
    return {
        "ours": round(rate, 1),
        "peer": round(shipped, 3),
        "ratio": round(rate / shipped, 1),
        "same_output": as_good and our_controls == 0,
        "peer_whitespace": round(split, 3),
        "ratio_whitespace": round(rate / split, 1),
        "recall": our_recall,
        "recall_peer": their_recall,
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
