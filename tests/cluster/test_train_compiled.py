"""Blocks and loss compiled, over two ranks that shard the model (FSDP2): the same model as one rank that compiles nothing.

In tests/cluster because the compiler takes its time.
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.trainplane import parallel_ranks as ranks
from tests.trainplane.test_parallel import assert_same_steps, metrics_of, run_two_ranks
from trainplane.parallel import ParallelSettings


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_two_ranks(tmp_path_factory.mktemp("compiled"), *ranks.COMPILED)


def test_compiled_shards_are_the_same_model_as_one_eager_rank(compiled: Path) -> None:
    metrics, state = ranks.train(ParallelSettings())
    for layout in ranks.COMPILED:
        assert_same_steps(metrics_of(compiled, layout), metrics, relative=1e-5)
        assert metrics_of(compiled, layout, rank=1) == metrics_of(compiled, layout)
        found = load_file(compiled / f"{layout}.safetensors")
        assert found.keys() == state.keys()
        assert all((found[name] - tensor).abs().max() < 5e-5 for name, tensor in state.items())
    assert all(json.loads((compiled / f"graphs-{rank}.json").read_text()) >= 2 for rank in range(ranks.WORLD))


def test_the_comparison_would_see_another_step(compiled: Path) -> None:
    metrics, _ = ranks.train(ParallelSettings())
    changed = [{**step, "loss": step["loss"] * (1 + 2e-5)} for step in metrics]
    with pytest.raises(AssertionError, match="loss"):
        assert_same_steps(metrics_of(compiled, "fsdp_compiled"), changed, relative=1e-5)
