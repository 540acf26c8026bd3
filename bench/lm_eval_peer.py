"""The peer of bench/eval.py, run by the environment `.bench/lm_eval`: lm-eval's Hugging Face back end, and `transformers.generate`.

In: a folder with `model/` and `requests.json`, what to do, the seconds it may take, batch sizes to try. Each size is tried on the first requests
(in turns, twice); the one that takes the least CPU time does all. Requests are asked in pieces of some documents, and `peer.jsonl` in the folder
gets a line a piece: called again, it goes on behind them. The last line says whether all is done.

    python lm_eval_peer.py FOLDER score|generate SECONDS BATCH_SIZE...
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TRIED_DOCUMENTS, DOCUMENTS_AT_ONCE = 2, 5
TRIED_TOKENS = 8
Ask = Callable[[list[int], int, bool], list[Any]]


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, CPU seconds, wall seconds)."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def fastest(sizes: list[int], ask: Ask, some: list[int]) -> dict[str, Any]:
    """The batch size that takes the least CPU time on some requests, and what each took."""
    if len(sizes) == 1:
        return {"batch": sizes[0], "tried": {}}
    tried = dict.fromkeys(sizes, float("inf"))
    for size in [*sizes, *sizes]:
        tried[size] = min(tried[size], timed(lambda size=size: ask(some, size, True))[1])
    return {"batch": min(tried, key=lambda size: tried[size]), "tried": tried}


def score(folder: Path, asked: dict[str, Any]) -> Ask:
    """Log-likelihoods, asked for as lm-eval's own tasks do."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(folder / "model"), device="cpu", dtype=torch.float32, batch_size=1)
    instances = [Instance("loglikelihood", {}, tuple(pair), i) for i, pair in enumerate(asked["pairs"])]

    def ask(some: list[int], size: int, is_trial: bool) -> list[Any]:
        model.batch_size_per_gpu = size
        found = model.loglikelihood([instances[i] for i in some], disable_tqdm=True)
        return [[float(total), bool(is_greedy)] for total, is_greedy in found]

    return ask


def generate(folder: Path, asked: dict[str, Any]) -> Ask:
    """Greedy, padded on the left: the tokens generated, up to the end of text."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    prompts, eos = asked["prompts"], model.config.eos_token_id

    @torch.inference_mode()
    def ask(some: list[int], size: int, is_trial: bool) -> list[Any]:
        results: dict[int, list[int]] = {}
        order = sorted(some, key=lambda i: -len(prompts[i]))
        new = TRIED_TOKENS if is_trial else asked["max_new_tokens"]
        for batch in (order[start : start + size] for start in range(0, len(order), size)):
            longest = max(len(prompts[i]) for i in batch)
            ids = torch.tensor([[eos] * (longest - len(prompts[i])) + prompts[i] for i in batch])
            mask = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in batch])
            out = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=eos)
            for i, row in zip(batch, out[:, longest:].tolist(), strict=True):
                results[i] = row[: row.index(eos)] if eos in row else row
        return [results[i] for i in some]

    return ask


def run(folder: Path, mode: str, seconds: float, sizes: list[int]) -> bool:
    """Writes what is missing of `peer.jsonl`; whether nothing is."""
    end, log = time.monotonic() + seconds, folder / "peer.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    asked = json.loads((folder / "requests.json").read_text())
    ask = {"score": score, "generate": generate}[mode](folder, asked)

    def write(line: dict[str, Any]) -> None:
        done.append(line)
        with log.open("a") as file:
            file.write(json.dumps(line) + "\n")

    items, at_once = asked["items"], max(sizes) if mode == "generate" else DOCUMENTS_AT_ONCE
    if not done:
        tried = max(sizes) if mode == "generate" else TRIED_DOCUMENTS
        write(fastest(sizes, ask, [i for i, item in enumerate(items) if item < tried]))
    size = done[0]["batch"]
    finished = {line["first"] for line in done[1:]}
    for first in range(0, max(items) + 1, at_once):
        if first in finished:
            continue
        if time.monotonic() > end:
            return False
        some = [i for i, item in enumerate(items) if first <= item < first + at_once]
        found, cpu, wall = timed(lambda some=some: ask(some, size, False))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        results = dict(zip(some, found, strict=True))
        write({"first": first, "results": results, "cpu": cpu, "wall": wall, "peak_mb": peak})
    return True


if __name__ == "__main__":
    torch.set_num_threads(1)
    whole = run(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), [int(size) for size in sys.argv[4:]])
    print(json.dumps({"done": whole}))
