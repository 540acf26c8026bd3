"""How much of a GPU does training use? The 1B configuration and layers of 7B's width, bf16, sequence 4096, compiled; MFU by OLMo-core's formula.

torch and numpy are enough to run it: copy `trainplane/`, `triplane/` and this file. Each case trains on random tokens, the optimizer's step included;
the first steps (compilation, the allocator) are not counted. MFU = FLOPs a token x tokens/s / peak. FLOPs are `trainplane.flops`: 6 a parameter but
the input embedding, and 12 x layers x width x sequence. The peak is 989.5e12 for an H100 or H200; on other devices MFU is null. With
`--sync-check` every wait of the host for the device inside a step is an error. The last line is one JSON object.

    python bench/train_gpu.py [--quick] [--sync-check]
    python bench/train_gpu.py --device cpu      # the same path at toy size, to try it without a GPU; no MFU
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from trainplane.flops import flops_per_token, peak_flops  # noqa: E402
from trainplane.optim import AdamWSettings, adamw  # noqa: E402
from trainplane.parallel import ParallelSettings, initialize, parallelize  # noqa: E402
from trainplane.schedule import Schedule  # noqa: E402
from trainplane.step import StepSettings, device_step, read  # noqa: E402
from triplane.lm.model import ModelConfig, Olmo2  # noqa: E402

WARM_UP_STEPS = 5
Case = tuple[ModelConfig, int, int, int]  # model, instances of a micro-batch, micro-batches of a step, sequence
CASES: dict[str, Case] = {
    # OLMo 2 1B as released (0425); eight of the 32 layers of 7B (1124), as many as fit with fp32 masters and moments.
    "1B": (ModelConfig(100352, 2048, 8192, 16, 16, 16), 4, 4, 4096),
    "7B_width": (ModelConfig(100352, 4096, 11008, 8, 32, 32), 2, 4, 4096),
}
TOY: Case = (ModelConfig(512, 64, 96, 2, 4, 2, eos_token_id=1, pad_token_id=0), 2, 2, 64)
LAYOUT = ParallelSettings(precision="bf16", compile=True)
ADAMW = AdamWSettings(0.9, 0.95, 1e-8, 0.1, decay_embeddings=False, decay_norms=True)


def train(case: Case, steps: int, device: str, check: bool) -> dict[str, Any]:
    """Seconds and tokens of `steps` steps after the first ones, peak memory, first and last loss."""
    config, rows, micro_batches, length = case
    with torch.device("meta"):
        model = Olmo2(config)
    parallelize(model, LAYOUT, None)
    initialize(model, 0, device)
    optimizer = adamw(model, ADAMW)
    constant = Schedule(3e-4, warmup_tokens=0, decay="linear", decay_tokens=10**15, final_lr_fraction=1.0)
    settings = StepSettings(constant, 1e-5, 1.0, rows, measure_update_norm=False, compile_loss=True)
    shape = (rows * micro_batches, length)
    tokens_BT = torch.randint(2, config.vocab_size, shape, generator=torch.Generator().manual_seed(0)).to(device)
    every_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
    taken = []
    start = time.perf_counter()
    for number in range(1, WARM_UP_STEPS + steps + 1):
        if number == WARM_UP_STEPS + 1:
            start = _now(device)
            if check and device == "cuda":
                torch.cuda.set_sync_debug_mode("error")
        taken.append(device_step(model, optimizer, tokens_BT, every_BT, number * tokens_BT.numel(), settings))
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("default")
    seconds = _now(device) - start
    losses = [metrics.loss for metrics in read(taken)]
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {
        "seconds": seconds,
        "tokens": steps * tokens_BT.numel(),
        "peak_bytes": peak,
        "losses": [losses[0], losses[-1]],
    }


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(name: str, steps: int, device: str, check: bool) -> dict[str, Any]:
    case = CASES[name] if device == "cuda" else TOY
    config, rows, micro_batches, length = case
    found = train(case, steps, device, check)
    rate = found["tokens"] / found["seconds"]
    peak = peak_flops(torch.cuda.get_device_name()) if device == "cuda" else None
    mfu = flops_per_token(config, length) * rate / peak if peak else None
    print(f"{name} on {device}: {rate:.0f} tokens/s, MFU {mfu}, {found}", file=sys.stderr, flush=True)
    return {
        "tokens_per_second": round(rate, 1),
        "mfu": mfu and round(mfu, 4),
        "flops_per_token": flops_per_token(config, length),
        "peak_memory_gib": found["peak_bytes"] and round(found["peak_bytes"] / 2**30, 1),
        "losses": found["losses"],
        "model": dataclasses.asdict(config),
        "sequence": length,
        "instances": rows * micro_batches,
        "layout": dataclasses.asdict(LAYOUT),
    }


def main(device: str, steps: int, check: bool) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device: nothing was measured; --device cpu runs the same path at toy size")
    found: dict[str, Any] = {}
    for name in CASES:
        found[name] = measure(name, steps, device, check)
        torch._dynamo.reset()
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    rates = [case["mfu"] for case in found.values() if case["mfu"] is not None]
    name = torch.cuda.get_device_name() if device == "cuda" else "no CUDA device"
    result = {"bench": "train_gpu", "unit": "MFU", "mfu": min(rates) if rates else None, "target": 0.5, "device": name}
    print(json.dumps({**result, "sync_checked": check and device == "cuda", **found, "torch": torch.__version__}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="5 steps instead of 20")
    parser.add_argument("--sync-check", action="store_true")
    chosen = parser.parse_args()
    main(chosen.device, 2 if chosen.device == "cpu" else 5 if chosen.quick else 20, chosen.sync_check)
