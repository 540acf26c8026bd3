"""Every ablation of the paper trains: the whole path, from the check of live objects to a checkpoint that is gone on from and read back."""

from collections.abc import Callable

import pytest
import torch

from tests.trainplane.test_run import interrupted
from trainplane import recipe as recipes
from trainplane import run as runs
from trainplane.recipe import RunRecipe
from triplane import artifact
from triplane.errors import Refused
from triplane.lm import weights

MakeRecipe = Callable[..., RunRecipe]
BATCH = 8 * 48
ABLATIONS = {
    "pre_norm": {"model.norm_position": "pre"},
    "no_qk_norm": {"model.qk_norm": False},
    "no_z_loss": {"z_loss": 0.0},
    "scaled_initialization": {"model.initialization": "scaled"},
    "adamw_eps_1e5": {"optimizer.eps": 1e-5},
    "decayed_embeddings": {"optimizer.decay_embeddings": True},
    "no_instance_filter": {"data.instance_filter": False},
    "skip_step_bug": {"optimizer.skip_step_bug": True},
    "bf16": {"precision": "bf16"},
    "document_masks": {"data.document_masks": True},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_it_trains_and_goes_on(root: str, make_recipe: MakeRecipe, name: str) -> None:
    recipe = make_recipe(**ABLATIONS[name])
    interrupted(recipe, root, 6)
    made = runs.train(recipe, root)
    assert [row["step"] for row in made.ledger] == list(range(1, 13))
    assert made.ledger[-1]["loss"] < made.ledger[0]["loss"]
    model, info = weights.load_model(made.checkpoint_url)
    assert torch.isfinite(model(torch.arange(8)[None])).all() and info["tokens_seen"] == 12 * BATCH
    plain = make_recipe()
    effective = artifact.load(root, made.reference).metadata["effective"]
    with pytest.raises(Refused):
        recipes.assert_effective(plain, effective)


def test_weights_of_one_structure_are_not_taken_for_another(root: str, make_recipe: MakeRecipe) -> None:
    runs.train(make_recipe(stop_tokens=2 * BATCH), root)
    with pytest.raises(Refused, match="holds a model of"):
        runs.train(make_recipe(name="next", init_from="run/tiny", **{"model.norm_position": "pre"}), root)
