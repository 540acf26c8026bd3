"""How fast are evaluation items found, how large is the index, and what does having all sets cost? Ours and datatrove's in one run.

Rates are MB of UTF-8 text per second of CPU time on one core, on the shared corpus: our words and preset `strict` on all of it, datatrove's filter
(`find_query_ngrams=True`) on as much of it as `--seconds` allow, in a fixed mixed order; without reading, imports, the index or the loading of
kernels. `all_to_one`: our time with all sets over that with GSM8K alone. Items: those of `triplane eval export-prompts` for every task whose data
is here, and the data files that no task describes. The last line is one JSON object.

    python bench/decontamination.py [--seconds 20]
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring

EVAL = measuring.SHARED / "data/eval"
NO_ITEMS = ("arithmetic", "held_out_bits_per_byte", "gsm8k_star")  # documents of a build; a part of gsm8k
FILES = (
    ("ifeval", "ifeval/input_data.jsonl", {"question": "prompt", "item": "key"}),
    ("ifbench", "ifbench/IFBench_test.jsonl", {"question": "prompt", "item": "key"}),
    ("truthfulqa", "truthfulqa/TruthfulQA.csv", {"question": "Question", "answer": "Best Answer"}),
    ("xstest", "xstest/xstest_prompts.csv", {"question": "prompt"}),
    ("harmbench", "harmbench/harmbench_behaviors_text_all.csv", {"question": "Behavior", "passage": "ContextString"}),
    ("alpaca_eval", "alpaca_eval/gpt4_1106_preview_model_outputs.json", {"question": "instruction"}),
    ("gaokao_english", "agieval/v1/gaokao-english.jsonl", {"question": "question", "passage": "passage"}),
)
ROUNDS = 5


def items(folder: Path) -> Any:
    """Every offline set, whole where a task draws a sample -> a table of items."""
    from dataplane import contamination_artifact
    from evalplane import data, export_prompts
    from evalplane.task import load_task, task_names
    from triplane.errors import NotFound, UsageError

    tasks = []
    for name in task_names():
        if name not in NO_ITEMS:
            try:
                whole = load_task(f"{name}:full")
                data.inputs(whole.data, [str(EVAL)], str(folder))
                tasks.append(whole)
            except (UsageError, NotFound):  # nothing is drawn, or the rest is not here
                tasks.append(load_task(name))
    files = [export_prompts.File(str(EVAL / path), task, "test", fields) for task, path, fields in FILES]
    made = export_prompts.export(str(folder), "all", tasks, files, [str(EVAL)])
    return contamination_artifact.read_items(str(folder), made.reference)[1]


def index(table: Any, path: Path) -> tuple[Any, int, float]:
    """(the index, mapped; its bytes; CPU seconds)."""
    from dataplane import contamination_build, contamination_index

    start = time.process_time()
    path.write_bytes(contamination_index.to_bytes(contamination_build.build(table, "0" * 64)))
    seconds = time.process_time() - start
    return contamination_index.open_file(path), path.stat().st_size, seconds


def rates(texts: list[str], indexes: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By index: bytes, the median CPU seconds of words and `strict`, and pairs; one index after the other in every round."""
    import pyarrow as pa

    from dataplane import contamination
    from dataplane.documents import string_buffers
    from dataplane.kernels import contamination_words

    batches = [string_buffers(pa.array(texts[i : i + 4000], pa.large_string())) for i in range(0, len(texts), 4000)]
    seconds: dict[str, list[float]] = {name: [] for name in indexes}
    pairs = dict.fromkeys(indexes, 0)
    for _ in range(ROUNDS + 1):  # the first loads the kernels
        for name, one in indexes.items():
            start, pairs[name] = time.process_time(), 0
            for batch in batches:
                words = contamination_words.fold(*batch)
                pairs[name] += len(contamination.match(*batch, words, one, "strict", 8).item)
            seconds[name].append(time.process_time() - start)
    size = float(sum(int(offsets[-1]) for offsets, _ in batches))
    return {
        name: {"bytes": size, "cpu": statistics.median(spent[1:]), "pairs": pairs[name]}
        for name, spent in seconds.items()
    }


def peer(table: Any, documents: Path, seconds: float, folder: Path) -> dict[str, Any]:
    import orjson

    path = folder / "items.jsonl"
    lines = (
        {"task": row["task"], "query": f"{row['passage']}\n{row['question']}".strip(), "label": row["answer"]}
        for row in table.to_pylist()
    )
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    command: list[str | Path] = [
        measuring.DATATROVE,
        measuring.ROOT / "bench/decontamination_peer.py",
        path,
        documents,
        "--seconds",
        str(seconds),
    ]
    return measuring.child(command, folder)


def measured(seconds: float, folder: Path) -> dict[str, Any]:
    corpus, table = measuring.corpus(), items(folder)
    gsm8k = table.filter([task == "gsm8k" for task in table.column("task").to_pylist()])
    everything, size, build_seconds = index(table, folder / "all.index")
    one, one_size, _ = index(gsm8k, folder / "one.index")
    ours = rates([document["text"] for document in corpus], {"all": everything, "one": one})
    measuring.write_shards(corpus, folder / "documents", 1 << 30)
    theirs = peer(table, folder / "documents", seconds, folder)
    rate = {
        name: measuring.note(f"ours, {name}", figures["bytes"] / 1e6, figures["cpu"]) for name, figures in ours.items()
    }
    their_rate = measuring.note("datatrove, all", theirs["bytes"] / 1e6, theirs["cpu"])
    return {
        "items": table.num_rows,
        "indexed": sum(one.indexed for one in everything.sets),
        "index_bytes": {"all": size, "gsm8k": one_size},
        "build_cpu_seconds": {"ours": round(build_seconds, 1), "datatrove": round(theirs["build"], 1)},
        "mb_per_s": {"all": round(rate["all"], 1), "one": round(rate["one"], 1), "datatrove_all": round(their_rate, 3)},
        "pairs": ours["all"]["pairs"],
        "datatrove_dropped": [theirs["dropped"], theirs["documents"]],
        "ratio": round(rate["all"] / their_rate, 1),
        "all_to_one": round(ours["all"]["cpu"] / ours["one"]["cpu"], 3),
        "versions": measuring.versions("datatrove", python=measuring.DATATROVE),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="CPU seconds of datatrove's filter")
    options = parser.parse_args()
    measuring.require(measuring.DATATROVE)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(options.seconds, Path(folder))
    found["meets"] = {
        "200 times datatrove": found["ratio"] >= 200,
        "index of at most 250 MB": found["index_bytes"]["all"] <= 250e6,
        "all sets at most 1.7 times one": found["all_to_one"] <= 1.7,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
