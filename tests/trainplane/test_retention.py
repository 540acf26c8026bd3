"""Ephemeral checkpoints go when a newer one stands and take no ledger row with them; a damaged one is passed over only when told to."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainplane.test_run import BATCH, assert_same_bits, interrupted, wait_for_uploads
from trainplane import checkpoint, retention
from trainplane import plan as plans
from trainplane.recipe import RunRecipe
from trainplane.run import train
from triplane import artifact, storage
from triplane.artifact import Draft, Manifest
from triplane.errors import Corrupt, UsageError
from triplane.lm.weights import load_model

MakeRecipe = Callable[..., RunRecipe]
TWO_CADENCES = {"runtime.checkpoint_every_tokens": 6 * BATCH, "runtime.ephemeral_every_tokens": 2 * BATCH}


def steps_of(run: Draft) -> list[int]:
    return [tokens // BATCH for tokens in checkpoint.committed(run)]


def test_only_the_newest_ephemeral_checkpoint_stays_and_rows_are_kept(
    root: str, tmp_path: Path, make_recipe: MakeRecipe
) -> None:
    shutil.copytree(root, tmp_path / "copy")
    straight = train(make_recipe(), root)
    recipe, copy = make_recipe(**TWO_CADENCES), str(tmp_path / "copy")
    run = interrupted(recipe, copy, 11).draft
    assert steps_of(run) == [6, 10]
    rows = {
        step: [row["step"] for row in checkpoint.rows_of(checkpoint.draft(run, step * BATCH).url)] for step in (6, 10)
    }
    assert rows == {6: [1, 2, 3, 4, 5, 6], 10: [7, 8, 9, 10]}
    permanent = [retention.is_permanent(artifact.load_url(checkpoint.draft(run, step * BATCH).url)) for step in (6, 10)]
    assert permanent == [True, False]

    resumed = train(recipe, copy)
    assert steps_of(run) == [6, 12]
    assert resumed.reference == straight.reference and resumed.ledger == straight.ledger  # cadence is no part of a run
    assert_same_bits(resumed.checkpoint_url, straight.checkpoint_url)
    assert artifact.verify(resumed.url) == []


def test_killed_between_two_ephemeral_checkpoints_each_row_is_kept_once(root: str, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(**TWO_CADENCES)
    run = interrupted(recipe, root, 5).draft
    assert steps_of(run) == [4]
    assert steps_of(interrupted(recipe, root, 9).draft) == [6, 8]  # step 5 to 9 again, from 4
    rows = checkpoint.read_ledger(run.url)
    assert [row["step"] for row in rows] == list(range(1, 9))


@pytest.mark.parametrize("deletions", [1, 2, 3])
def test_a_crash_while_removing_leaves_a_whole_checkpoint_or_none(
    root: str, make_recipe: MakeRecipe, deletions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Manifest first, then the record, then files: after one deletion it is whole and committed again, after two it is none."""
    run = interrupted(make_recipe(), root, 9).draft
    url = checkpoint.draft(run, 4 * BATCH).url
    removed: list[str] = []
    delete = storage.delete

    def deleting(name: str) -> None:
        if len(removed) == deletions:
            raise KeyboardInterrupt
        removed.append(name.removeprefix(f"{url}/"))
        delete(name)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", deleting)
        with pytest.raises(KeyboardInterrupt):
            retention.remove(url)
    assert removed[:2] == ["manifest.json", "records/checkpoint.json"][:deletions]
    assert steps_of(run) == ([4, 8] if deletions == 1 else [8])
    if deletions == 1:
        assert artifact.verify(url) == []
    else:
        garbage = artifact.collect_garbage(root, dry_run=True, older_than_seconds=0)
        assert any("tokens-000000000001536" in name for name in garbage)


def test_a_checkpoint_that_another_run_went_on_from_stays(root: str, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(**TWO_CADENCES)
    run = interrupted(recipe, root, 5).draft
    changed = make_recipe(z_loss=2e-4, **TWO_CADENCES)
    assert train(changed, root, on_change="resume").ledger[0]["step"] == 5
    assert steps_of(interrupted(recipe, root, 9).draft) == [4, 6, 8]
    assert retention.remove_superseded(run, 8 * BATCH) == []


def test_what_stays_is_read_once(root: str, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit reads the checkpoint before it and no other, however many there are."""
    recipe = make_recipe(**{"runtime.checkpoint_every_tokens": 2 * BATCH, "runtime.ephemeral_every_tokens": BATCH})
    read: list[int] = []
    manifest_of = retention._manifest

    def reading(url: str) -> Manifest | None:
        read.append(int(url.rpartition("-")[2]) // BATCH)
        return manifest_of(url)

    monkeypatch.setattr(retention, "_manifest", reading)
    run = interrupted(recipe, root, 11).draft
    assert steps_of(run) == [2, 4, 6, 8, 10]
    assert read == list(range(1, 10))
    settled: set[str] = set()
    for _ in range(2):
        assert retention.remove_superseded(run, 10 * BATCH, settled) == []
    assert read[9:] == list(range(1, 10))  # by another process: once; what is removed leaves an empty folder on a disk
    retention.remove_superseded(run, 10 * BATCH)
    assert read[18:] == list(range(1, 10))  # the control: it does not remember


def test_a_stray_folder_is_no_checkpoint(root: str, make_recipe: MakeRecipe) -> None:
    run = interrupted(make_recipe(), root, 5).draft
    for name in ("tokens-old", ".cache", "zzz"):
        Path(run.url, "checkpoints", name).mkdir()
        Path(run.url, "checkpoints", name, "manifest.json").write_text("{}")
    assert steps_of(run) == [4] and retention.remove_superseded(run, 8 * BATCH) == []
    assert [row["step"] for row in checkpoint.read_ledger(run.url)] == [1, 2, 3, 4]
    assert load_model(run.url)[1]["tokens_seen"] == 4 * BATCH
    assert train(make_recipe(), root).step == 12


def test_cadences_that_do_not_fit_are_refused(root: str, make_recipe: MakeRecipe) -> None:
    with pytest.raises(UsageError, match="must be a multiple of"):
        plans.plan(make_recipe(**{"runtime.ephemeral_every_tokens": 3 * BATCH}), root)


def damaged(run: Draft, step: int, pattern: str = "model-*.safetensors") -> str:
    (path,) = Path(checkpoint.draft(run, step * BATCH).url).glob(pattern)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return path.name


@pytest.mark.parametrize("pattern", ["model-*.safetensors", "optimizer-*.safetensors", "state-*.json"])
def test_a_damaged_checkpoint_is_passed_over_only_when_told_to(
    root: str, tmp_path: Path, make_recipe: MakeRecipe, pattern: str
) -> None:
    shutil.copytree(root, tmp_path / "copy")
    recipe = make_recipe()
    straight = train(recipe, str(tmp_path / "copy"))
    run = interrupted(recipe, root, 9).draft
    name = damaged(run, 8, pattern)
    message = rf"{name}.*(block 0 .*hashes to [0-9a-f]{{32}}, expected [0-9a-f]{{32}}|with sha256).*; --fall-back goes on from"
    with pytest.raises(Corrupt, match=message):
        train(recipe, root)
    assert steps_of(run) == [4, 8]  # nothing was changed
    result = train(recipe, root, fall_back=True)
    assert steps_of(run) == [4, 8, 12] and result.ledger == straight.ledger
    assert_same_bits(result.checkpoint_url, straight.checkpoint_url)
    assert artifact.verify(result.url) == []  # what was damaged was written again


def test_there_may_be_none_to_fall_back_to(root: str, make_recipe: MakeRecipe) -> None:
    run = interrupted(make_recipe(), root, 6).draft
    damaged(run, 4)
    for fall_back in (False, True):
        with pytest.raises(Corrupt, match="there is none before it"):
            train(make_recipe(), root, fall_back=fall_back)
    wait_for_uploads()
