"""How many tokens a second does one thread train? Our step, Hugging Face's `Trainer` and OLMo-core's, same model, same weights, same data, one run.

d 256, 6 layers, vocabulary 100,352, AdamW, clipping at 1; sequence 512, micro-batch 4, fp32 and bf16 (`--quick`: fp32, sequence 128, micro-batch 2).
Each trains in a process of its own, pinned to one core; the first steps are not counted (ours compile in them). Rates are tokens per second of the
process's CPU time, so that a busy machine hardly moves them. The losses of all steps must agree. The last line is one JSON object: `ratio` (ours /
Hugging Face), `ratio_olmo_core`, `memory_ratio` (peak RSS, ours / Hugging Face); keys without a precision are the worse of both.

    python bench/train_cpu.py [--quick] [--precision fp32|bf16]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measuring import ONE_CORE, ROOT, require, versions

PEERS = ROOT / ".bench/olmo_core/bin/python"
MODEL = {
    "vocab_size": 100_352, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 512,
}  # fmt: skip
WARM_UP_STEPS = 2
STEPS = {"quick": 8, "fp32": 4, "bf16": 5}
# Relative; bf16 rounds at 2^-9, and trainers differ in what they keep in bf16.
SAME_LOSS = {"fp32": 2e-5, "bf16": 2e-3}
TARGETS = {"ratio": 1.4, "ratio_olmo_core": 2.0, "memory_ratio": 0.6}


def prepare(folder: Path, shape: tuple[int, int, int]) -> None:
    """Writes weights, tokens [steps, rows, length] and their description: ids of a Zipf distribution, none of them special."""
    import numpy as np
    from safetensors.torch import save_file

    from triplane.lm.model import ModelConfig, Olmo2, init_weights

    config = ModelConfig(**MODEL)
    model = Olmo2(config)
    init_weights(model, seed=0)
    save_file(model.state_dict(), folder / "weights.safetensors")
    tokens = np.random.default_rng(0).zipf(1.2, shape).astype(np.int64) % 100_000
    tokens.tofile(folder / "tokens.i64")
    (folder / "job.json").write_text(json.dumps({"model": asdict(config), "shape": shape}))


def ours(folder: Path, precision: str) -> dict[str, Any]:
    """The platform's step on the prepared job."""
    import numpy as np
    import torch
    from safetensors.torch import load_file

    from trainplane import memory
    from trainplane.optim import AdamWSettings, adamw
    from trainplane.parallel import ParallelSettings, parallelize
    from trainplane.schedule import Schedule
    from trainplane.step import StepSettings, train_step
    from triplane.lm.model import ModelConfig, Olmo2

    torch.set_num_threads(1)
    job = json.loads((folder / "job.json").read_text())
    model = Olmo2(ModelConfig(**job["model"]))
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    optimizer = adamw(model, AdamWSettings(0.9, 0.95, 1e-8, 0.0, decay_embeddings=True, decay_norms=True))
    parallelize(model, ParallelSettings(precision=precision, compile=True), None)  # type: ignore[arg-type]
    constant = Schedule(3e-4, warmup_tokens=0, decay="linear", decay_tokens=10**12, final_lr_fraction=1.0)
    settings = StepSettings(constant, 0.0, 1.0, job["shape"][1], measure_update_norm=False)
    cpu, wall, losses = [], [], []
    with ExitStack() as later:
        for number, batch in enumerate(np.fromfile(folder / "tokens.i64", np.int64).reshape(job["shape"]), start=1):
            tokens = torch.from_numpy(batch)
            every = torch.ones_like(tokens, dtype=torch.bool)
            metrics = train_step(model, optimizer, tokens, every, number * tokens.numel(), settings)
            cpu.append(time.process_time())
            wall.append(time.perf_counter())
            losses.append(metrics.loss)
            if number == 1:
                later.enter_context(memory.kept())
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"cpu": cpu, "wall": wall, "losses": losses, "peak_rss": rss}


def timed(name: str, folder: Path, precision: str, tokens_per_step: int) -> dict[str, Any]:
    """Runs one trainer on one core -> its figures with `rate` (tokens per CPU second) and `wall_rate`."""
    script = (
        [sys.executable, __file__, "--child"]
        if name == "ours"
        else [str(PEERS), str(ROOT / "bench/train_peers.py"), name]
    )
    done = subprocess.run(
        [*script, str(folder), "--precision", precision],
        env=os.environ | ONE_CORE | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}),
    )
    if done.returncode:
        raise SystemExit(f"{name} in {precision} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for clock, rate in (("cpu", "rate"), ("wall", "wall_rate")):
        ends = figures[clock][WARM_UP_STEPS - 1 :]
        figures[rate] = tokens_per_step * (len(ends) - 1) / (ends[-1] - ends[0])
    note = f"{name}, {precision}: {figures['rate']:.0f} tokens/s of CPU time ({figures['wall_rate']:.0f} of wall time)"
    print(
        f"{note}, peak {figures['peak_rss'] / 1e6:.0f} MB, losses {figures['losses'][:2]}", file=sys.stderr, flush=True
    )
    return figures


def compare(precision: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, shape)
        found = {
            who: timed(who, folder, precision, shape[1] * shape[2]) for who in ("ours", "huggingface", "olmo_core")
        }
    mine, trainer, core = found["ours"], found["huggingface"], found["olmo_core"]
    pairs = [zip(mine["losses"], peer["losses"], strict=True) for peer in (trainer, core)]
    difference = max(abs(a - b) / b for pair in pairs for a, b in pair)
    return {
        "ours": round(mine["rate"], 1),
        "huggingface": round(trainer["rate"], 1),
        "olmo_core": round(core["rate"], 1),
        "ratio": round(mine["rate"] / trainer["rate"], 2),
        "ratio_olmo_core": round(mine["rate"] / core["rate"], 2),
        "memory_ratio": round(mine["peak_rss"] / trainer["peak_rss"], 2),
        "peak_rss_mb": {who: round(figures["peak_rss"] / 1e6) for who, figures in found.items()},
        "largest_loss_difference": float(f"{difference:.2g}"),
        "same_losses": difference <= SAME_LOSS[precision],
    }


def main(quick: bool, precisions: list[str]) -> None:
    require(PEERS)
    rows, length = (2, 128) if quick else (4, 512)
    found = {p: compare(p, (WARM_UP_STEPS + STEPS["quick" if quick else p], rows, length)) for p in precisions}
    worst = {key: (max if key == "memory_ratio" else min)(each[key] for each in found.values()) for key in TARGETS}
    same = all(each["same_losses"] for each in found.values())
    result = {
        "bench": "train_cpu",
        "unit": "tokens per CPU second, one thread",
        **worst,
        "same_losses": same,
        **found,
        "sequence": length,
        "micro_batch": rows,
        "quick": quick,
        "targets": TARGETS,
        "versions": versions("torch") | versions("torch", "transformers", "accelerate", "ai2-olmo-core", python=PEERS),
    }
    print(json.dumps(result))
    if not same:
        raise SystemExit("the losses differ: the trainers did not do the same work")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    parser.add_argument("--child", type=Path)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(ours(chosen.child, chosen.precision)))
    else:
        main(chosen.quick, [chosen.precision] if chosen.precision else ["fp32"] if chosen.quick else ["fp32", "bf16"])
