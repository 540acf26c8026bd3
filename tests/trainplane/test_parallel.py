"""Every layout trains the same model: losses, gradient norms, clipping, skipped steps, weights and moments, on two ranks of gloo."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.trainplane import parallel_ranks as ranks
from trainplane import parallel
from trainplane.parallel import ParallelSettings
from triplane.errors import UsageError
from triplane.lm.model import Olmo2, init_weights

ROOT = Path(__file__).parents[2]


def run_two_ranks(folder: Path, *layouts: str) -> Path:
    """The folder of what two ranks left. A slow machine is no failure."""
    command = [sys.executable, "-m", "tests.trainplane.parallel_ranks", str(folder), *layouts]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=400)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_two_ranks(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def alone() -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    return ranks.train(ParallelSettings())


def metrics_of(folder: Path, layout: str, rank: int = 0) -> list[dict[str, Any]]:
    return json.loads((folder / f"{layout}-{rank}.json").read_text())


def assert_same_steps(found: list[dict[str, Any]], expected: list[dict[str, Any]], relative: float) -> None:
    assert [step["skipped"] for step in found] == [False, True, False, False]
    for ours, theirs in zip(found, expected, strict=True):
        for key in ("loss", "z_loss", "grad_norm", "update_norm", "num_labels", "lr"):
            assert ours[key] == pytest.approx(theirs[key], rel=relative), key


@pytest.mark.parametrize("layout", ["plain", "fsdp", "hsdp_1x2", "hsdp_2x1", "fsdp_full"])
def test_every_layout_is_one_rank_in_another_order_of_sums(layout: str, two_ranks: Path, alone: Any) -> None:
    metrics, state = alone
    assert min(step["grad_norm"] for step in metrics) > ranks.SETTINGS.max_grad_norm  # clipping works in every step
    assert_same_steps(metrics_of(two_ranks, layout), metrics, relative=1e-5)
    assert metrics_of(two_ranks, layout, rank=1) == metrics_of(two_ranks, layout)
    found = load_file(two_ranks / f"{layout}.safetensors")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        # Moments are sums of gradients; AdamW divides one by the root of the other, which turns rounding of small ones into steps.
        atol = 1e-7 if name.startswith("exp_avg") else 5e-5
        torch.testing.assert_close(
            found[name], tensor, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert found["step/norm.weight"] == ranks.STEPS - 1  # the skipped one does not count


def test_sharded_layouts_agree_to_the_last_bits(two_ranks: Path) -> None:
    first, second = (load_file(two_ranks / f"{layout}.safetensors") for layout in ("fsdp", "hsdp_1x2"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    recomputed = load_file(two_ranks / "fsdp_full.safetensors")
    assert all(torch.equal(first[name], recomputed[name]) for name in first)


def test_the_comparison_would_see_averaged_gradients(two_ranks: Path, alone: Any) -> None:
    with pytest.raises(AssertionError, match="grad_norm"):
        assert_same_steps(metrics_of(two_ranks, "averaged"), alone[0], relative=1e-5)


def test_bf16_shards_stay_near_fp32(two_ranks: Path, alone: Any) -> None:
    found = metrics_of(two_ranks, "fsdp_bf16")
    for ours, theirs in zip(found, alone[0], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=3e-2)
    assert found[0]["loss"] != alone[0][0]["loss"]
    state = load_file(two_ranks / "fsdp_bf16.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}  # masters and moments


def test_copies_are_summed_at_the_last_micro_batch_only(two_ranks: Path) -> None:
    facts = json.loads((two_ranks / "facts-0.json").read_text())
    groups = 3 + len(("embeddings", "head", "root"))
    assert facts["all_reduces"] == groups + 1  # and the sums of the loss
    assert facts["all_reduces_not_held_back"] == 2 * groups + 1


def test_a_model_initialised_in_shards_is_the_same_model(two_ranks: Path) -> None:
    assert all(json.loads((two_ranks / f"facts-{rank}.json").read_text())["initialised"] for rank in range(2))


@pytest.mark.parametrize("choice", ["full", "every_2", "every_4", "mlp"])
def test_checkpointed_activations_change_no_bit_and_no_name(choice: Any, alone: Any) -> None:
    metrics, state = ranks.train(ParallelSettings(activation_checkpointing=choice))
    assert metrics == alone[0]
    assert all(torch.equal(state[name], tensor) for name, tensor in alone[1].items())


def saved_activations(choice: Any) -> int:
    """Elements that autograd keeps for the backward pass of the blocks."""
    model = Olmo2(dataclasses.replace(ranks.CONFIG, num_hidden_layers=8))
    init_weights(model, 0)
    parallel.parallelize(model, ParallelSettings(activation_checkpointing=choice), None)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.hidden(ranks.batch(1)[0])
    assert output.requires_grad
    return sum(kept.values())


def test_the_choices_keep_less_and_less() -> None:
    kept = [saved_activations(choice) for choice in ("none", "every_4", "every_2", "full")]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 4
    assert saved_activations("mlp") < kept[0]


def test_bf16_on_one_rank_is_what_a_shard_computes(two_ranks: Path) -> None:
    metrics, state = ranks.train(ParallelSettings(precision="bf16"))
    for ours, sharded in zip(metrics, metrics_of(two_ranks, "fsdp_bf16"), strict=True):
        assert ours["loss"] == pytest.approx(sharded["loss"], rel=1e-3)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (ParallelSettings("hsdp", 3), "shard_ranks 3 does not divide 1 ranks"),
        (ParallelSettings("hsdp", None), "shard_ranks None does not divide"),
    ],
)
def test_ranks_that_do_not_divide_are_named(settings: ParallelSettings, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parallel.mesh(settings, "cpu")


def test_a_memory_budget_needs_the_compiler() -> None:
    with pytest.raises(UsageError, match="set compile too"):
        parallel.parallelize(Olmo2(ranks.CONFIG), ParallelSettings(activation_checkpointing="memory_budget"), None)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_and_checkpointed_blocks_are_the_same_model(alone: Any) -> None:
    """One compilation serves all blocks, more of them than the compiler would try one by one; another is of the loss."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # other tests of this process compile too
    metrics, state = ranks.train(ParallelSettings(compile=True, activation_checkpointing="full"))
    assert_same_steps(metrics, alone[0], relative=1e-4)
    assert state.keys() == alone[1].keys()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    torch._dynamo.reset()
