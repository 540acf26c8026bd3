"""How fast is the native back end? OLMES requests scored by ours and by lm-eval's Hugging Face back end, GSM8K prompts continued by ours and by
`transformers.generate`: the same random-initialised OLMo 2, the same requests, one thread, fp32, in one run.

The peer runs at its best batch size of those tried in the same run. Figures are CPU seconds of the scoring alone, tokenization included, the
loading of the model left out; peak memory is that of each whole process, model included. `ratio` is ARC-Challenge in cloze form with its
unconditioned requests. Output compared: every log-likelihood (<= 1e-4), every greedy flag, every argmax over an item's choices, raw and less the
unconditioned one; an argmax may differ where the two best are closer than twice that, and is then listed; and every metric of the task, as it is
scored from either side's log-likelihoods (`scores`: ours, the peer's). Generated tokens must be identical.
`planner`: input tokens of whole suites beside the fewest possible. The last line is one JSON object.

    python bench/eval.py [--quick] [--part NAME]... [--documents N] [--state FOLDER --seconds S]

With `--state` the peer's results are kept as they come and its part ends after S seconds: the same command again goes on.
"""

import argparse
import itertools
import json
import math
import os
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import measuring

PEER = measuring.ROOT / ".bench/lm_eval/bin/python"
VOCABULARY = 100352
TOLERANCE = 1e-4
DOCUMENTS = 60
PROMPTS, NEW_TOKENS = 32, 64
SUITES = {"core-9": "olmes_core9", "MMLU letters": "mmlu:mc"}


@dataclass(frozen=True)
class Part:
    """What is compared: a task's format by a model of `size`."""

    task: str
    format: str
    size: str
    batch_sizes: tuple[int, ...] = (1, 4)


SIZES = {  # hidden, intermediate, layers, heads
    "20M": (96, 384, 4, 3),
    "136M": (512, 2048, 8, 8),
    "267M": (768, 3072, 12, 12),
}
PARTS = {
    "arc_challenge_cf": Part("arc_challenge", "cloze", "136M"),
    "arc_challenge_mcf": Part("arc_challenge", "mc", "136M"),
    "hellaswag_cf": Part("hellaswag", "cloze", "136M"),
    "arc_challenge_mcf_267m": Part("arc_challenge", "mc", "267M"),
    "gsm8k": Part("gsm8k", "generate", "136M", (8, 16)),
}


def make_model(size: str, folder: Path) -> None:
    """A random-initialised OLMo 2 as a Hugging Face folder."""
    from triplane.lm.export import to_huggingface
    from triplane.lm.model import ModelConfig, Olmo2, init_weights

    hidden, intermediate, layers, heads = SIZES[size]
    model = Olmo2(ModelConfig(VOCABULARY, hidden, intermediate, layers, heads, heads))
    init_weights(model, 0)
    to_huggingface(model, folder, measuring.TOKENIZER.read_bytes())


def items(name: str, count: int | None) -> tuple[Any, Any]:
    """(task, its prepared items and shots) from the shared data."""
    from evalplane import data
    from evalplane.task import load_task

    task, folders = load_task(name), [str(measuring.SHARED / "data/eval")]
    shots = data.shot_inputs(task, folders)
    return task, data.prepare(task, data.inputs(task.data, folders, folders[0]), shots, count)


def requests(part: Part, count: int) -> Any:
    from evalplane import formats

    task, ready = items(part.task, count)
    return formats.requests(task.formats[part.format], ready.items, ready.shots)


def write_requests(part: Part, count: int, folder: Path) -> list[Any]:
    """`requests.json`: pairs of text, or prompts as token ids."""
    from triplane.tokenizer import Tokenizer

    asked = requests(part, count)
    if part.format == "generate":
        ids, ends = Tokenizer.load(str(measuring.TOKENIZER)).encode([one.context for one in asked])
        made: dict[str, Any] = {"prompts": [ids[a:b].tolist() for a, b in itertools.pairwise(ends)]}
        made["max_new_tokens"] = NEW_TOKENS
    else:
        made = {"pairs": [[one.context, one.continuation] for one in asked]}
    made["items"] = [one.item for one in asked]
    (folder / "requests.json").write_text(json.dumps(made))
    return list(asked)


def ours(folder: Path) -> dict[str, Any]:
    """What the peer does, by the native back end."""
    import torch

    from evalplane.backends import native
    from evalplane.task import Request
    from triplane.lm import engine
    from triplane.lm.export import from_huggingface
    from triplane.tokenizer import Tokenizer

    torch.set_num_threads(1)
    asked = json.loads((folder / "requests.json").read_text())
    backend = native.paired(from_huggingface(folder / "model"), Tokenizer.load(str(folder / "model/tokenizer.json")))
    cpu, wall = time.process_time(), time.perf_counter()
    if "prompts" in asked:
        results: Any = engine.generate(backend.model, asked["prompts"], asked["max_new_tokens"])
    else:
        found = backend.loglikelihood([Request(0, 0, *pair) for pair in asked["pairs"]])
        results = [[one.total, one.is_greedy, one.num_tokens] for one in found if one is not None]
    spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    return {"results": results, **spent, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def compare_scores(asked: list[Any], mine: list[Any], theirs: list[Any]) -> dict[str, Any]:
    """The largest difference, greedy flags that differ, and argmaxes that differ: at near-ties, or not."""
    import numpy as np

    one, other = (np.array([result[0] for result in results]) for results in (mine, theirs))
    by_item: dict[tuple[int, str], list[int]] = {}
    for i, request in enumerate(asked):
        by_item.setdefault((request.item, "alone" if request.unconditioned else "raw"), []).append(i)
    ties, wrong = [], 0
    for (item, kind), members in by_item.items():
        alone = by_item.get((item, "alone"))
        values = {"raw": (one[members], other[members])}
        if kind == "raw" and alone:
            values["unconditioned"] = (one[members] - one[alone], other[members] - other[alone])
        for metric, (a, b) in values.items() if kind == "raw" else ():
            if a.argmax() != b.argmax():
                gap = float(np.diff(np.sort(b)[-2:])[0])
                ties.append({"item": item, "metric": metric, "gap": gap})
                wrong += gap > 2 * TOLERANCE * (2 if metric == "unconditioned" else 1)
    greedy = sum(a[1] != b[1] for a, b in zip(mine, theirs, strict=True))
    difference = float(np.abs(one - other).max())
    return {
        "same_output": difference <= TOLERANCE and not greedy and not wrong and len(one) == len(other),
        "max_difference": difference,
        "greedy_differ": greedy,
        "argmax_differ_at_near_ties": ties,
        "argmax_differ": wrong,
    }


def compare_metrics(
    part: Part, count: int, asked: list[Any], mine: list[Any], theirs: list[Any], ties: int
) -> dict[str, Any]:
    """Every metric of the task from both sides' log-likelihoods. They are equal, but for the items of argmaxes at near-ties."""
    from evalplane import scorers
    from evalplane.task import Loglikelihood

    task, ready = items(part.task, count)
    format, values = task.formats[part.format], []
    for results in (mine, theirs):
        found = [Loglikelihood(one[0], one[1], ours[2]) for one, ours in zip(results, mine, strict=True)]
        table = scorers.loglikelihood_rows(format, ready.items, asked, found)
        values.append({name: one["value"] for name, one in scorers.score(format, table, 0, None).metrics.items()})
    scores = {name: [values[0][name], values[1][name]] for name in values[0]}
    allowed = ties / len(ready.items) + TOLERANCE
    return {"scores": scores, "same_scores": all(abs(a - b) <= allowed for a, b in scores.values())}


def peer(folder: Path, mode: str, part: Part, seconds: float, scratch: Path) -> dict[str, Any]:
    """What lm_eval_peer.py found, summed over its pieces. Ends the program where it needs another call."""
    script = Path(__file__).parent / "lm_eval_peer.py"
    command = [PEER, script, folder, mode, str(seconds), *map(str, part.batch_sizes)]
    if not measuring.child(command, scratch)["done"]:
        raise SystemExit(f"{part.task} is not finished after {seconds} s: the same command again goes on")
    first, *pieces = (json.loads(line) for line in (folder / "peer.jsonl").read_text().splitlines())
    results = {int(number): result for piece in pieces for number, result in piece["results"].items()}
    total = {name: sum(piece[name] for piece in pieces) for name in ("cpu", "wall")}
    peak = max(piece["peak_mb"] for piece in pieces)
    return {**first, **total, "peak_mb": peak, "results": [results[number] for number in range(len(results))]}


def compare(name: str, count: int, scratch: Path, state: Path, seconds: float) -> dict[str, Any]:
    """One part: both sides, and whether they agree."""
    part, folder = PARTS[name], state / f"{name}-{count}-{PARTS[name].size}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model/config.json").exists():
        make_model(part.size, folder / "model")
    asked = write_requests(part, count, folder)
    mode = "generate" if part.format == "generate" else "score"
    theirs = peer(folder, mode, part, seconds, scratch)
    mine = measuring.child([sys.executable, __file__, "--child", folder], scratch)
    if mode == "score":
        same = compare_scores(asked, mine["results"], theirs["results"])
        ties = len(same["argmax_differ_at_near_ties"])
        same |= compare_metrics(part, count, asked, mine["results"], theirs["results"], ties)
        same["same_output"] = same["same_output"] and same["same_scores"]
    else:
        differing = sum(a != b for a, b in zip(mine["results"], theirs["results"], strict=True))
        same = {"same_output": differing == 0, "sequences_differ": differing}
        same["new_tokens"] = sum(map(len, mine["results"]))
    found = {
        "ratio": theirs["cpu"] / mine["cpu"],
        "ours": mine["cpu"],
        "peer": theirs["cpu"],
        "ours_wall": mine["wall"],
        "peer_wall": theirs["wall"],
        "ours_peak_mb": mine["peak_mb"],
        "peer_peak_mb": theirs["peak_mb"],
        "peer_batch": theirs["batch"],
        "peer_batches_tried": theirs["tried"],
        "model": part.size,
        "documents": len({one.item for one in asked}),
        "requests": len(asked),
        **same,
    }
    print(f"{name}: {json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def planned(suite: str) -> dict[str, Any]:
    """Input tokens of every log-likelihood request of a suite, as the runner asks them, beside the nodes of their tries."""
    from evalplane import planner
    from evalplane.task import load_suite
    from triplane.tokenizer import Tokenizer

    folders = [str(measuring.SHARED / "data/eval")]
    made = planner.tokens(load_suite(suite), Tokenizer.load(str(measuring.TOKENIZER)), folders)
    total = sum(made.values(), planner.Tokens(0, 0, 0, 0))
    print(f"planner {suite}: {made}", file=sys.stderr, flush=True)
    return asdict(total) | {"over_fewest": total.over_fewest}


def main(names: list[str], arguments: argparse.Namespace, with_planner: bool) -> None:
    measuring.require(PEER)
    if arguments.quick:
        PARTS["arc_challenge_cf"] = Part("arc_challenge", "cloze", "20M")
    tasks = {}
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        for name in names:
            count = PROMPTS if PARTS[name].format == "generate" else arguments.documents
            tasks[name] = compare(name, count, scratch, arguments.state or scratch, arguments.seconds)
    first = tasks.get("arc_challenge_cf") or next(iter(tasks.values()), {})
    print(
        json.dumps(
            {
                "bench": "eval",
                "unit": "s CPU for the requests of ARC-Challenge, cloze and unconditioned",
                "ours": first.get("ours"),
                "peer": first.get("peer"),
                "peer_name": "lm-eval, Hugging Face back end, best batch size",
                "ratio": first.get("ratio"),
                "same_output": all(task["same_output"] for task in tasks.values()),
                "memory_within_peers": all(task["ours_peak_mb"] <= task["peer_peak_mb"] for task in tasks.values()),
                "tasks": tasks,
                "planner": {name: planned(suite) for name, suite in SUITES.items()} if with_planner else None,
                "versions": measuring.versions("lm_eval", "transformers", "torch", python=PEER),
                "load_average": os.getloadavg()[0],
            }
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="ARC-Challenge in cloze form by a 20M model")
    parser.add_argument("--part", action="append", choices=[*PARTS, "planner"], help="only these; all by default")
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help="documents of each multiple-choice task")
    parser.add_argument("--state", type=Path, help="where the peer's results are kept")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which the peer starts no more documents")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.update(measuring.ONE_CORE)
    if arguments.child:
        print(json.dumps(ours(arguments.child)))
    else:
        chosen = arguments.part or (["arc_challenge_cf"] if arguments.quick else [*PARTS, "planner"])
        main([name for name in chosen if name != "planner"], arguments, "planner" in chosen)
