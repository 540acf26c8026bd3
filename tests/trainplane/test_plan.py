"""A plan refuses what could not train before anything is built: no model to start from, a batch above the whole mix."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.trainplane.test_run import BATCH, interrupted
from trainplane import checkpoint
from trainplane import plan as plans
from trainplane.recipe import RunRecipe
from trainplane.run import train
from triplane import path_list
from triplane.errors import Refused, UsageError
from triplane.path_list import ListedFile

MakeRecipe = Callable[..., RunRecipe]


def test_a_parent_without_a_model_is_refused(root: str, make_recipe: MakeRecipe) -> None:
    with pytest.raises(UsageError, match=r"init_from mix/tiny@\w+ holds no model: name a finished run"):
        plans.plan(make_recipe(init_from="mix/tiny"), root)


def test_a_batch_above_an_epoch_of_their_order_is_refused(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """AI2's orders cut an epoch to whole batches, and 7 instances have none of 8; ours goes on in the next epoch."""
    root = str(tmp_path)
    np.zeros(7 * 48 + 5, np.uint32).tofile(tmp_path / "a.npy")
    lock = path_list.make_lock([ListedFile("web", "a.npy")], root, "theirs", 48, "ab" * 32, 96, 0)
    mix = path_list.commit(root, lock, "a list").reference
    for order in ("olmo", "olmo-core"):
        with pytest.raises(UsageError, match="has 7 instances, a batch needs 8"):
            plans.plan(make_recipe(**{"data.mix": mix, "data.order": order}), root)
        plans.plan(make_recipe(**{"data.mix": mix, "data.order": order, "data.global_batch_tokens": 7 * 48}), root)
    plans.plan(make_recipe(**{"data.mix": mix}), root)


def test_an_unfinished_run_of_another_release_is_not_passed_over(
    root: str, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same recipe would give other weights: neither begun anew in silence nor mixed with them, unless the user says so."""
    with monkeypatch.context() as earlier:
        earlier.setattr(plans, "STAGE_VERSIONS", {"train": 1})
        interrupted(make_recipe(), root, 5)
    with pytest.raises(
        Refused, match=r"unfinished at 1536 tokens under another release \(stage_versions\.train: 1 -> 2\)"
    ):
        plans.plan(make_recipe(), root)
    assert plans.plan(make_recipe(), root, "fresh").continues_url is None
    gone_on = train(make_recipe(), root, on_change="resume")
    assert gone_on.ledger[0]["step"] == 5 and gone_on.step == 12


def test_checkpoints_of_another_release_are_refused_in_one_sentence(
    root: str, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(checkpoint, "STAGE_VERSIONS", {"checkpoint": 1})
        run = interrupted(make_recipe(), root, 5).draft
        assert checkpoint.committed(run) == [4 * BATCH]
    message = r"tokens-000000000001536 was written by another release \(checkpoint version 1, this one's is 2\): finish"
    with pytest.raises(Refused, match=message):
        train(make_recipe(), root)
    changed = make_recipe(z_loss=2e-4)
    with pytest.raises(Refused, match=message):
        plans.plan(changed, root)
    assert train(changed, root, on_change="fresh").step == 12
