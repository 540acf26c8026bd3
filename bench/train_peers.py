"""Hugging Face's and OLMo-core's own trainers, timed: run by `train_cpu.py` with the Python of their environment. One JSON line out.

(weights as safetensors under our names, tokens as a raw int64 file, sizes) -> CPU and wall seconds at the end of every step, the losses, peak RSS.
Both train as they come: neither compiles, both use the attention PyTorch has. AdamW is torch's, fused where the trainer's default is.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from triplane.lm import layouts
from triplane.lm.model import ModelConfig

ADAMW = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}


class Times:
    """CPU and wall seconds when each step ended; losses of the steps."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self.losses: list[float] = []

    def step_ended(self) -> None:
        self.cpu.append(time.process_time())
        self.wall.append(time.perf_counter())

    def line(self) -> str:
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return json.dumps({"cpu": self.cpu, "wall": self.wall, "losses": self.losses, "peak_rss": rss})


def huggingface(config: ModelConfig, weights: Path, batches: np.ndarray, precision: str, folder: Path) -> Times:
    """`transformers.Trainer`, its defaults but for what the comparison needs: constant learning rate, data in order, no files."""
    import transformers

    times = Times()

    class Stopwatch(transformers.TrainerCallback):
        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            times.step_ended()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **options: Any) -> None:
            if "loss" in logs:
                times.losses.append(logs["loss"])

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *arguments: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    model = transformers.Olmo2ForCausalLM(
        transformers.Olmo2Config(**layouts.config_to_huggingface(config, "float32") | {"use_cache": False})
    )
    model.load_state_dict(layouts.to_huggingface_names(load_file(weights)))
    rows = torch.from_numpy(batches).flatten(0, 1)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, bf16=precision == "bf16", max_steps=len(batches), save_strategy="no", report_to=[],
        per_device_train_batch_size=batches.shape[1], learning_rate=ADAMW["lr"], adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=ADAMW["eps"],
        weight_decay=0.0, max_grad_norm=1.0, lr_scheduler_type="constant", logging_steps=1, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    dataset = [{"input_ids": row, "labels": row} for row in rows]
    InOrder(model=model, args=arguments, train_dataset=dataset, callbacks=[Stopwatch()]).train()
    return times


def olmo_core(config: ModelConfig, weights: Path, batches: np.ndarray, precision: str, folder: Path) -> Times:
    """OLMo-core's `Trainer` with its transformer train module, no checkpoints, no evaluation."""
    from olmo_core.config import DType
    from olmo_core.data.collator import DataCollator
    from olmo_core.data.data_loader import TextDataLoaderBase
    from olmo_core.nn.feed_forward import FeedForwardConfig
    from olmo_core.nn.transformer import TransformerBlockType, TransformerConfig
    from olmo_core.optim import AdamWConfig, ConstantScheduler
    from olmo_core.train import Duration, TrainerConfig
    from olmo_core.train.callbacks import Callback
    from olmo_core.train.train_module import TransformerTrainModuleConfig

    times = Times()
    rows, length = batches.shape[1:]

    class Stopwatch(Callback):
        def post_step(self) -> None:
            times.step_ended()

        def log_metrics(self, step: int, metrics: dict[str, float]) -> None:
            if "train/CE loss" in metrics:
                times.losses.append(metrics["train/CE loss"])

    class InOrder(TextDataLoaderBase):
        total_batches = len(batches)

        def _iter_batches(self) -> Any:
            for batch in batches:
                yield {"input_ids": torch.from_numpy(batch)}

        def get_mock_batch(self) -> dict[str, torch.Tensor]:
            return {"input_ids": torch.from_numpy(batches[0])}

        def reshuffle(self, epoch: int | None = None, **options: Any) -> None:
            self._epoch = epoch or 1

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            pass

    model = TransformerConfig.llama_like(
        d_model=config.hidden_size, vocab_size=config.vocab_size, n_layers=config.num_hidden_layers, n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads, qk_norm=True, rope_theta=int(config.rope_theta), layer_norm_eps=config.rms_norm_eps,
        block_name=TransformerBlockType.reordered_norm, feed_forward=FeedForwardConfig(hidden_size=config.intermediate_size, bias=False),
    ).build(init_device="cpu")  # fmt: skip
    train_module = TransformerTrainModuleConfig(
        rank_microbatch_size=rows * length, max_sequence_length=length, optim=AdamWConfig(**ADAMW, fused=True), max_grad_norm=1.0,
        scheduler=ConstantScheduler(), autocast_precision=DType.bfloat16 if precision == "bf16" else None,
    ).build(model, device=torch.device("cpu"))  # fmt: skip
    model.load_state_dict(layouts.to_olmo_core_names(load_file(weights)))
    loader = InOrder(collator=DataCollator(pad_token_id=0), work_dir=folder, global_batch_size=rows * length)
    trainer = TrainerConfig(
        save_folder=str(folder), max_duration=Duration.steps(len(batches)), no_checkpoints=True, no_evals=True, callbacks={"times": Stopwatch()}
    ).build(train_module, loader)  # fmt: skip
    trainer.fit()
    return times


TRAINERS = {"huggingface": huggingface, "olmo_core": olmo_core}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trainer", choices=sorted(TRAINERS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", choices=("fp32", "bf16"), required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.folder
    job = json.loads((folder / "job.json").read_text())
    batches = np.fromfile(folder / "tokens.i64", np.int64).reshape(job["shape"])
    scratch = folder / arguments.trainer
    scratch.mkdir(exist_ok=True)
    train = TRAINERS[arguments.trainer]
    times = train(ModelConfig(**job["model"]), folder / "weights.safetensors", batches, arguments.precision, scratch)
    sys.stdout.write("\n" + times.line() + "\n")


if __name__ == "__main__":
    main()
