"""A plan refuses what could not train before anything is built: no model to start from, a batch above the whole mix."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trainplane import plan as plans
from trainplane.recipe import RunRecipe
from triplane import path_list
from triplane.errors import UsageError
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
