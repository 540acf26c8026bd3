"""Runs as artifacts: interrupted runs go on bit for bit, finished ones are left alone, changed recipes are noticed."""

import dataclasses
import math
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.training_fixtures import write_mix
from trainplane import checkpoint, loop
from trainplane import plan as plans
from trainplane import run as runs
from trainplane.checkpoint_writer import THREAD_NAME, Saver
from trainplane.ledger import Ledger, Row
from trainplane.recipe import RunRecipe
from trainplane.run import train
from triplane import artifact, mixture, storage
from triplane.errors import Corrupt, LostRace, NotFound, Refused, TriplaneError
from triplane.lm import weights

MakeRecipe = Callable[..., RunRecipe]
BATCH = 8 * 48


class Killed(BaseException):
    """Stands for SIGKILL in this process (the real one: tests/cluster/test_train_resume.py)."""


def kill_at(step: int) -> Callable[[Row], None]:
    def on_step(row: Row) -> None:
        if row["step"] == step:
            raise Killed

    return on_step


def interrupted(recipe: RunRecipe, root: str, step: int) -> plans.Plan:
    plan = plans.plan(recipe, root)
    with pytest.raises(Killed):
        runs.execute(plan, kill_at(step))
    wait_for_uploads()
    return plan


def wait_for_uploads() -> None:
    """A real kill would end them with the process (tests/cluster/test_train_interrupts.py); here they come to their end."""
    for thread in threading.enumerate():
        if thread.name == THREAD_NAME:
            thread.join()


def tensors_of(url: str) -> dict[str, torch.Tensor]:
    return weights.load_tensors(url, [e for e in artifact.load_url(url).files if e.name.endswith((".safetensors", "json"))
                                      and e.name.startswith(("model", "optimizer"))])  # fmt: skip


def assert_same_bits(one: str, other: str) -> None:
    a, b = tensors_of(one), tensors_of(other)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def copy_root(root: str, tmp_path: Path) -> str:
    """A second root with the same data and no run."""
    import shutil

    shutil.copytree(root, tmp_path / "copy")
    return str(tmp_path / "copy")


@pytest.mark.parametrize("step", [1, 4, 6, 11])
def test_a_run_that_was_killed_ends_with_the_same_bits(
    root: str, copy_root: str, make_recipe: MakeRecipe, step: int
) -> None:
    """Checkpoints are at steps 4, 8 and 12; step 4 dies before its checkpoint, 6 between two."""
    recipe = make_recipe(**{"optimizer.skip_step": True})
    straight = train(recipe, root)
    interrupted(recipe, copy_root, step)
    resumed = train(recipe, copy_root)
    assert resumed.reference == straight.reference
    assert_same_bits(resumed.checkpoint_url, straight.checkpoint_url)
    assert resumed.ledger == straight.ledger
    assert [row["step"] for row in resumed.ledger] == list(range(1, 13))


def test_on_s3_the_bits_are_the_same(root: str, s3_root: str, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    write_mix(s3_root, tmp_path)
    recipe = make_recipe(stop_tokens=6 * BATCH)
    interrupted(recipe, s3_root, 5)
    remote, local = train(recipe, s3_root), train(recipe, root)
    assert remote.ledger == local.ledger
    assert_same_bits(remote.checkpoint_url, local.checkpoint_url)


def test_the_comparison_sees_another_order(root: str, make_recipe: MakeRecipe) -> None:
    one, other = train(make_recipe(), root), train(make_recipe(name="other", **{"data.order_seed": 8}), root)
    with pytest.raises(AssertionError):
        assert_same_bits(one.checkpoint_url, other.checkpoint_url)


def test_the_ledger_tells_what_happened(root: str, make_recipe: MakeRecipe) -> None:
    result = train(make_recipe(), root)
    first, last = result.ledger[0], result.ledger[-1]
    assert (first["step"], first["tokens_seen"], first["position"]) == (1, BATCH, 0)
    assert (last["step"], last["tokens_seen"], result.step, result.tokens_seen) == (12, 12 * BATCH, 12, 12 * BATCH)
    assert sum(first["tokens_by_source"].values()) == BATCH
    assert first["lr"] == pytest.approx(5e-3)  # step 1 of a warm-up of two steps
    assert last["loss"] < first["loss"]
    assert sum(row["masked_instances"] for row in result.ledger) > 0
    assert all(row["num_labels"] <= 8 * 47 - 47 * row["masked_instances"] for row in result.ledger)


def test_a_finished_run_is_left_alone(root: str, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    result = train(make_recipe(), root)
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("trained again"))
    assert train(make_recipe(), root) == result
    assert train(make_recipe(**{"runtime.threads_per_worker": 2}), root) == result
    assert artifact.verify(result.url) == [] and artifact.verify(result.checkpoint_url) == []


def test_the_checkpoint_is_a_model_for_other_planes(root: str, make_recipe: MakeRecipe) -> None:
    result = train(make_recipe(), root)
    model, info = weights.load_model(result.checkpoint_url)
    assert model(torch.zeros(1, 4, dtype=torch.int64)).shape == (1, 4, 96)
    assert (info["tokens_seen"], info["step"]) == (12 * BATCH, 12)
    assert info["tokenizer"] == {"sha256": "f" * 64, "reference": "tokenizer/t@1"}
    manifest = artifact.load(root, "run/tiny")
    assert manifest.metadata["effective"]["z_loss"] == pytest.approx(1e-4)
    assert manifest.inputs["mix"].startswith("mix/tiny@") and manifest.parents == (manifest.inputs["mix"],)


def test_a_changed_recipe_is_refused_with_its_difference(root: str, make_recipe: MakeRecipe) -> None:
    interrupted(make_recipe(), root, 6)
    changed = make_recipe(**{"schedule.peak_lr": 0.02})
    with pytest.raises(
        Refused, match=r"unfinished at 1536 tokens .*recipe\.schedule\.peak_lr: 0\.01 -> 0\.02.*--allow-recipe-change"
    ):
        train(changed, root)
    assert plans.plan(make_recipe(), root).continues_url is None  # the old recipe still goes on


def test_allowed_it_goes_on_with_the_clock_and_says_so(root: str, make_recipe: MakeRecipe) -> None:
    old = interrupted(make_recipe(), root, 6)
    changed = make_recipe(**{"schedule.peak_lr": 0.02})
    result = train(changed, root, on_change="resume")
    assert result.reference != old.draft.reference
    assert [row["step"] for row in result.ledger] == list(range(5, 13))
    assert result.ledger[0]["lr"] == pytest.approx(2 * 0.01, rel=0.1)
    manifest = artifact.load(root, result.reference)
    assert manifest.inputs["continues"] == f"checkpoint/{old.draft.name}@{old.draft.version}.tokens-000000000001536"
    assert train(changed, root) == result  # no flag needed once begun


def test_a_chain_of_changes_goes_on_from_the_newest(root: str, make_recipe: MakeRecipe) -> None:
    interrupted(make_recipe(), root, 6)
    second = plans.plan(make_recipe(z_loss=2e-4), root, "resume")
    with pytest.raises(Killed):
        runs.execute(second, kill_at(10))
    wait_for_uploads()
    third = plans.plan(make_recipe(z_loss=3e-4), root, "resume")
    assert third.continues_url == checkpoint.draft(second.draft, 8 * BATCH).url
    assert plans.plan(make_recipe(z_loss=2e-4), root).draft == second.draft


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"stop_tokens": 4 * BATCH},
            "has seen 1536 tokens and recipe tiny stops at 1536: .*raise stop_tokens.*--fresh",
        ),
        ({"stop_tokens": 2 * BATCH}, "stops at 768"),
        ({"data.global_batch_tokens": 5 * 48}, "1536 tokens, no multiple of data.global_batch_tokens 240 .*divisor"),
    ],
)
def test_a_clock_that_cannot_go_on_is_refused(root: str, make_recipe: MakeRecipe, change: dict, message: str) -> None:
    """It would have ended without a step (and so without a ledger), or trained on some data again."""
    interrupted(make_recipe(), root, 6)
    with pytest.raises(Refused, match=message):
        plans.plan(make_recipe(**change), root, "resume")


def test_a_batch_that_divides_the_clock_goes_on(root: str, make_recipe: MakeRecipe) -> None:
    interrupted(make_recipe(), root, 6)
    result = train(make_recipe(**{"data.global_batch_tokens": 4 * 48}), root, on_change="resume")
    assert result.ledger[0]["position"] == 4 * BATCH // (4 * 48) and result.tokens_seen == 12 * BATCH


def test_weights_of_another_tokenizer_are_refused(
    root: str, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a parent and as the run gone on from. The shapes agree: nothing else would tell."""
    parent = train(make_recipe(), root)
    interrupted(make_recipe(name="half"), root, 6)
    lock = mixture.load(artifact.artifact_url(root, "mix/tiny"))
    other = dataclasses.replace(lock, tokenizer_sha256="e" * 64)
    monkeypatch.setattr(mixture, "load", lambda url: other)
    message = f"tokenized by {'e' * 12}, not {'f' * 12}, with which .*: build the mix with that tokenizer"
    for reference in (parent.reference, parent.checkpoint_url.removeprefix(root + "/")):
        with pytest.raises(Refused, match=message):
            plans.plan(make_recipe(name="anneal", init_from=reference), root)
    with pytest.raises(Refused, match=message):
        plans.plan(make_recipe(name="half", z_loss=2e-4), root, "resume")
    plans.plan(make_recipe(name="anneal"), root)  # from nothing, any tokenizer will do


def test_fresh_begins_anew(root: str, make_recipe: MakeRecipe) -> None:
    interrupted(make_recipe(), root, 6)
    result = train(make_recipe(z_loss=2e-4), root, on_change="fresh")
    assert [row["step"] for row in result.ledger] == list(range(1, 13))


def test_a_chosen_version_cannot_be_taken_twice(root: str, make_recipe: MakeRecipe) -> None:
    assert train(make_recipe(version="v1"), root).reference == "run/tiny@v1"
    with pytest.raises(LostRace, match="tiny@v1"):
        train(make_recipe(version="v1", z_loss=2e-4), root)


def test_stage_2_starts_from_the_parent_with_its_own_clock(root: str, make_recipe: MakeRecipe) -> None:
    parent = train(make_recipe(), root)
    linear = {
        "schedule.decay": "linear",
        "schedule.warmup_tokens": 0,
        "schedule.decay_tokens": 4 * BATCH,
        "stop_tokens": 4 * BATCH,
    }
    anneal = make_recipe(name="anneal", init_from="run/tiny", **{"schedule.final_lr_fraction": 0.0}, **linear)
    plan = plans.plan(anneal, root)
    assert plan.recipe.init_from == parent.reference
    model, optimizer = runs.build(plan.recipe)
    state = runs.restore(plan, model, optimizer, Ledger())
    assert state == loop.TrainState()
    before = tensors_of(parent.checkpoint_url)
    assert torch.equal(model.lm_head.weight, before["lm_head.weight"])
    assert torch.equal(optimizer.state[model.lm_head.weight]["exp_avg"], before["exp_avg/lm_head.weight"])
    result = train(anneal, root)
    assert [row["position"] for row in result.ledger] == [0, 1, 2, 3]
    assert result.ledger[-1]["lr"] == 0.0
    assert artifact.load(root, result.reference).parents[1] == parent.reference


def test_a_parent_must_be_finished(root: str, make_recipe: MakeRecipe) -> None:
    interrupted(make_recipe(), root, 6)
    with pytest.raises(NotFound, match="tiny"):
        train(make_recipe(name="anneal", init_from="run/tiny"), root)


def test_a_loss_that_is_not_finite_stops_the_run(root: str, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(**{"schedule.peak_lr": 1e15, "runtime.checkpoint_every_tokens": BATCH})
    with pytest.raises(TriplaneError, match=r"step 2 \(data position 1, instances \[.*gradient norm (nan|inf)"):
        train(recipe, root)
    rows = checkpoint.read_ledger(plans.plan(recipe, root).draft.url)
    assert [row["step"] for row in rows] == [1] and math.isfinite(rows[0]["loss"])


def test_a_checkpoint_that_is_recorded_is_finished_first(root: str, copy_root: str, make_recipe: MakeRecipe) -> None:
    """Killed between record and manifest: what was recorded stands, and nothing is trained twice."""
    recipe = make_recipe()
    plan = interrupted(recipe, root, 6)
    target = checkpoint.draft(plan.draft, 4 * BATCH)
    storage.delete(storage.join(target.url, "manifest.json"))
    assert artifact.committed(target) is None
    assert checkpoint.committed(plan.draft) == [4 * BATCH]
    assert artifact.committed(target) is not None
    assert_same_bits(train(recipe, root).checkpoint_url, train(recipe, copy_root).checkpoint_url)


def test_files_without_a_record_are_not_a_checkpoint(root: str, make_recipe: MakeRecipe) -> None:
    plan = interrupted(make_recipe(), root, 6)
    target = checkpoint.draft(plan.draft, 4 * BATCH)
    for name in ("manifest.json", "records/checkpoint.json"):
        storage.delete(storage.join(target.url, name))
    assert checkpoint.committed(plan.draft) == []
    assert len(train(make_recipe(), root).ledger) == 12


def test_two_attempts_with_other_content_collide(root: str, make_recipe: MakeRecipe) -> None:
    plan = interrupted(make_recipe(), root, 6)
    model, optimizer = runs.build(plan.recipe)
    saver = Saver(plan.draft, model, optimizer, {})
    saver.save(loop.TrainState(4, 4 * BATCH), [])
    with pytest.raises(LostRace, match="another attempt"):
        saver.wait()


def test_a_damaged_checkpoint_is_named(root: str, make_recipe: MakeRecipe) -> None:
    plan = interrupted(make_recipe(), root, 6)
    url = checkpoint.draft(plan.draft, 4 * BATCH).url
    (path,) = Path(url).glob("optimizer-*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(Corrupt, match="optimizer-"):
        train(make_recipe(), root)


def test_a_damaged_ledger_or_state_is_named(root: str, make_recipe: MakeRecipe) -> None:
    finished = train(make_recipe(), root)
    (steps,) = Path(finished.url, "ledger").glob("steps-*.jsonl")
    steps.write_bytes(steps.read_bytes().replace(b"3", b"4", 1))
    with pytest.raises(Corrupt, match=r"steps-.*\.jsonl holds \d+ bytes with sha256"):
        runs.result(root, finished.reference)
    (state,) = Path(finished.checkpoint_url).glob("state-*.json")
    state.write_bytes(state.read_bytes() + b" ")
    model, optimizer = runs.build(make_recipe())
    with pytest.raises(Corrupt, match=r"state-.*\.json holds"):
        checkpoint.load(finished.checkpoint_url, model, optimizer)


def test_another_model_is_refused(root: str, make_recipe: MakeRecipe) -> None:
    train(make_recipe(), root)
    with pytest.raises(Refused, match=r"model of another config .*\(intermediate_size: 48 -> 64\)"):
        train(make_recipe(name="wide", init_from="run/tiny", **{"model.intermediate_size": 64}), root)


def test_the_cadence_is_a_function_of_tokens(make_recipe: MakeRecipe) -> None:
    from trainplane.recipe import loop_settings

    settings = loop_settings(make_recipe(stop_tokens=10 * BATCH, **{"runtime.checkpoint_every_tokens": 1000}))
    due = [step for step in range(1, 11) if loop.is_checkpoint_due(step * BATCH, settings)]
    assert due == [3, 6, 8, 10]  # first past 1000, 2000, 3000; the last
