"""The two ranks of the test of sharded models: run as `python -m tests.evalplane.sharded_ranks FOLDER`, which imports once and forks.

Each trains a step, evaluates the sharded model it holds (or not), trains another step, and leaves what came out in the folder.
"""

import json
import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from evalplane import run
from evalplane.backends import native
from evalplane.task import Item, load_task
from trainplane import optim, parallel, step
from trainplane.schedule import Schedule
from triplane.lm import engine, engine_ranks
from triplane.lm.export import from_huggingface
from triplane.tokenizer import Tokenizer

WORLD, LENGTH = 2, 16
ADAMW = optim.AdamWSettings(0.9, 0.95, 1e-8, 0.1, decay_embeddings=False, decay_norms=True)
SETTINGS = step.StepSettings(
    schedule=Schedule(3e-3, warmup_tokens=64, decay="cosine", decay_tokens=6400, final_lr_fraction=0.1),
    z_loss=1e-4, max_grad_norm=1.0, microbatch_instances=2, measure_update_norm=False,
)  # fmt: skip
COLOURS = ("blue", "green", "yellow", "red and white", "black", "violet", "of no colour at all")


def items() -> list[Item]:
    """Unlike on purpose: the second rank's part has longer questions and more choices."""
    short = [Item(f"s{n}", {"question": f"What colour is {n}?"}, COLOURS[:2], n % 2) for n in range(3)]
    return short + [Item(f"l{n}", {"question": f"Colour of {n} {n} {n}?"}, COLOURS, n % 7) for n in range(3)]


def evaluate(model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """Scores and per-item sums; few tokens a forward, so that there are many forwards."""
    backend = native.Native(model, tokenizer, native.paired(model, tokenizer).tokenized, batch_tokens=64)
    score, tables = run.evaluate_task(load_task("arc_easy"), items(), items()[:1], backend)
    return {
        "score": json.loads(json.dumps(score)),
        "sums": {name: table["loglikelihoods"].to_pylist() for name, table in tables.items()},
    }


def train_step(model: Any, optimizer: torch.optim.Optimizer, number: int, rank: int, world: int) -> None:
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(1, model.config.vocab_size, (8, LENGTH), generator=generator)
    step.train_step(
        model, optimizer, tokens[rank::world], torch.ones(8 // world, LENGTH, dtype=torch.bool), number * 128, SETTINGS
    )


def whole(model: Any) -> dict[str, torch.Tensor]:
    return {
        name: one.full_tensor() if isinstance(one, DTensor) else one.detach() for name, one in model.named_parameters()
    }


def go(folder: Path, rank: int, shard: Any, is_evaluated: bool) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(what the evaluation found, weights after the second step)."""
    tokenizer = Tokenizer.load(str(folder / "model/tokenizer.json"))
    model = from_huggingface(folder / "model")
    settings = parallel.ParallelSettings(shard)
    parallel.parallelize(model, settings, parallel.mesh(settings, "cpu"))
    optimizer, world = optim.adamw(model, ADAMW), WORLD if shard != "none" else 1
    train_step(model, optimizer, 1, rank if world > 1 else 0, world)
    found = evaluate(model, tokenizer) if is_evaluated else {}
    train_step(model, optimizer, 2, rank if world > 1 else 0, world)
    return found, whole(model)


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60))
    counts = {"forwards": 0, "idle": 0}
    real_score, real_idle = engine._run, engine_ranks.idle

    def counted_run(*arguments: Any) -> Any:
        counts["forwards"] += 1
        return real_score(*arguments)

    def counted_idle(model: Any) -> None:
        counts["idle"] += 1
        real_idle(model)

    engine._run, engine_ranks.idle = counted_run, counted_idle
    found, evaluated = go(folder, rank, "fsdp", True)
    _, left_alone = go(folder, rank, "fsdp", False)
    same = all(torch.equal(evaluated[name], left_alone[name]) for name in evaluated)
    (folder / f"rank-{rank}.json").write_text(json.dumps({**found, "counts": counts, "trains_on_alike": same}))
    dist.destroy_process_group()


def fork(rank: int, folder: Path) -> int:
    """A process of this rank -> its pid."""
    if child := os.fork():
        return child
    code = 1
    try:
        main(rank, folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    children = [fork(rank, Path(sys.argv[1])) for rank in range(WORLD)]
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
