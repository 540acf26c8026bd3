"""What OLMo-core drops behind the last whole instance of each shard, measured on 10M tokens: less than one instance a shard, at most 0.1 %."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataplane.recipe import BuildRecipe
from tests.dataplane.conftest import WORDS, write_shard
from tests.dataplane.test_tokenization import Stage
from triplane import tokens

INSTANCE_TOKENS = 4096


@pytest.fixture
def ten_million(sources: Path) -> Path:
    """`prose` with 10,800 documents of 20 to 1,000 words, of which `Stage` keeps four fifths; `notes` stays small."""
    random = np.random.default_rng(5)
    for path in (sources / "prose").iterdir():
        path.unlink()
    vocabulary = np.array(WORDS)
    for shard in range(4):
        texts = [" ".join(vocabulary[random.integers(0, len(WORDS), size)]) for size in random.integers(20, 1000, 2700)]
        records = [{"id": f"{shard}-{number}", "text": text} for number, text in enumerate(texts)]
        write_shard(sources / "prose" / f"part-{shard:05d}.jsonl", records)
    return sources


@pytest.mark.parametrize(("shard_tokens", "num_shards"), [("1B", 1), ("4M", 3)])
def test_less_than_an_instance_a_shard_and_a_thousandth_of_the_source(
    ten_million: Path,
    in_process: Any,
    make_recipe: Callable[..., BuildRecipe],
    tmp_path: Path,
    shard_tokens: str,
    num_shards: int,
) -> None:
    recipe = make_recipe(f"shard_tokens={shard_tokens}", f"sequence_length_tokens={INSTANCE_TOKENS}", "mixes=[]")
    stage = Stage(tmp_path / "root", recipe, in_process)
    made = stage.tokenize()
    sizes = np.array([shard.num_tokens for shard in tokens.shards(stage.root, made["prose"].tokens)])
    lost = sizes - INSTANCE_TOKENS * (sizes // INSTANCE_TOKENS)
    assert sizes.sum() == made["prose"].tokens.metadata["num_tokens"] >= 10_000_000
    assert len(sizes) == num_shards and (lost < INSTANCE_TOKENS).all()
    assert lost.sum() <= sizes.sum() / 1000, f"{lost.sum()} of {sizes.sum()}"
    assert len(made["notes"].tokens.records) == 1, "a small source is one shard"
