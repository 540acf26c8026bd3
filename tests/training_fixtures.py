"""What tests of training share: a root with a small mix of three sources, and a recipe that trains on it in a second.

Used by the conftest.py of every folder that trains.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainplane.recipe import RunRecipe
from triplane import artifact, mixture, storage, tokens

VOCAB = 96
SEQUENCE = 48
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "version": None,
    "source": "a test",
    "init_seed": 3,
    "init_from": None,
    "stop_tokens": 12 * 8 * SEQUENCE,
    "z_loss": 1e-4,
    "model": {
        "source": "a test", "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": SEQUENCE, "rope_theta": 1e4, "rms_norm_eps": 1e-6, "initializer_range": 0.02,
        "eos_token_id": 0, "pad_token_id": 1,
    },
    "data": {"mix": "mix/tiny", "sequence_length_tokens": SEQUENCE, "global_batch_tokens": 8 * SEQUENCE, "order_seed": 7, "instance_filter": True},
    "optimizer": {
        "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "decay_embeddings": False, "decay_norms": True, "max_grad_norm": 1.0,
        "skip_step": False,
    },
    "schedule": {"peak_lr": 1e-2, "warmup_tokens": 768, "decay": "cosine", "decay_tokens": 12288, "final_lr_fraction": 0.1},
    "runtime": {
        "num_workers": 0, "threads_per_worker": 1, "microbatch_instances": 4, "read_ahead_batches": 2, "checkpoint_every_tokens": 4 * 8 * SEQUENCE,
        "measure_update_norm": True, "max_failures": 1,
    },
}  # fmt: skip


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` with dotted keys, over `base`."""
    value = {key: merged(item, {}) if isinstance(item, dict) else item for key, item in base.items()}
    for dotted, new in changes.items():
        *parents, last = dotted.split(".")
        here = value
        for parent in parents:
            here = here[parent]
        here[last] = new
    return value


@pytest.fixture
def make_recipe() -> Callable[..., RunRecipe]:
    """make_recipe(**{"data.order_seed": 8}) -> the recipe above with changes."""
    return lambda **changes: RunRecipe.model_validate(merged(RECIPE, changes))


def write_source(root: str, folder: Path, source: str, ids: np.ndarray) -> list[mixture.MixShard]:
    """One source of one shard, documents of 50 tokens."""
    draft = artifact.begin(
        root, "tokens", source, inputs={}, recipe={"ids": ids.sum().item()}, stage_versions={"test": 1}
    )
    offsets = np.arange(0, len(ids) + 1, 50)
    writer = tokens.ShardWriter(folder, f"{source}-00000", eos_id=0)
    count = len(offsets) - 1
    names = [f"{source}{i}" for i in range(count)]
    writer.add(ids[: offsets[-1]].astype(np.uint32), offsets, names, ["s"] * count, list(range(1, count + 1)), None)
    tokens.write_artifact_shard(draft, writer.close(), "00000", {})
    manifest = draft.commit({"tokenizer": {"sha256": "f" * 64, "eos_id": 0, "vocab_size": VOCAB}})
    return mixture.source_shards(root, manifest, source, SEQUENCE, "f" * 64)


def write_mix(root: str, folder: Path, seed: int = 0) -> mixture.MixLock:
    """Three sources of progressions (learnable) and one, `loop`, of a repeated token: masked by the instance filter."""
    generator = np.random.default_rng(seed)
    shards = []
    for source, stride in (("even", 2), ("odd", 3)):
        start = generator.integers(2, VOCAB, 200)[:, None]
        shards += write_source(root, folder, source, ((start + stride * np.arange(50)) % (VOCAB - 2) + 2).reshape(-1))
    shards += write_source(root, folder, "loop", np.full(2000, 5))
    lock = mixture.plan("tiny", SEQUENCE, 12_000, {"even": 0.5, "odd": 0.4, "loop": 0.1}, shards, 1, "f" * 64, VOCAB, 0)
    draft = artifact.begin(
        root,
        "mix",
        "tiny",
        inputs={"seed": str(seed)},
        recipe={},
        stage_versions={"test": 1},
    )
    entry = draft.put_bytes(lock.to_bytes(), "lock", ".json")
    draft.record("lock", [entry], {})
    draft.commit({"lock": entry.name})
    for version, digest in (("1", "f" * 64), ("2", "e" * 64)):
        artifact.begin(root, "tokenizer", "t", inputs={}, recipe={}, stage_versions={}, version=version).commit(
            {"sha256": digest}
        )
    return lock


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A local root that holds `mix/tiny`."""
    url = storage.join(str(tmp_path), "root")
    write_mix(url, tmp_path)
    return url
