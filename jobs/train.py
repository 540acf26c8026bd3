"""Training's composition root: `python -m jobs.train RECIPE --root URL`, what `triplane train run` and a submitted job both do.

A recipe file and a root -> a finished run below the root.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainplane import flops, live_view, schedule
from trainplane import plan as plans
from trainplane import recipe as recipes
from trainplane import run as runs
from trainplane.plan import OnChange, Plan
from trainplane.recipe import RunRecipe
from trainplane.run import RunResult
from triplane.lm.model import num_parameters

MODELS = Path(__file__).parent / "recipes" / "models"


def load(recipe: Path, overrides: Sequence[str] = (), as_published: bool = False) -> RunRecipe:
    """A run recipe whose model, if named, is one of `jobs/recipes/models`. Raises UsageError."""
    return recipes.load(recipe, overrides, MODELS, as_published)


def run(recipe: RunRecipe, root: str, on_change: OnChange = "refuse", fall_back: bool = False) -> RunResult:
    """Trains to the end; Ray is imported only where the recipe asks for workers. Raises TriplaneError."""
    if recipe.runtime.num_workers == 0:
        launch = live_view.viewed(runs.in_this_process)
    else:
        from trainplane import cluster

        launch = live_view.viewed(cluster.on_ray)
    return runs.train(recipe, root, on_change=on_change, launch=launch, fall_back=fall_back)


def run_many(
    recipes_: Sequence[RunRecipe], root: str, on_change: OnChange = "refuse", fall_back: bool = False
) -> list[RunResult]:
    """Trains each to its end, side by side where they ask for workers; results in the order given. Raises TriplaneError."""
    if all(one.runtime.num_workers == 0 for one in recipes_):
        return [run(one, root, on_change, fall_back) for one in recipes_]
    from trainplane import cluster

    return cluster.train_many(recipes_, root, on_change=on_change, fall_back=fall_back)


def describe(plan: Plan) -> dict[str, Any]:
    """What a run would do, as JSON values: for `--dry-run`."""
    recipe, settings = plan.recipe, recipes.loop_settings(plan.recipe)
    config = recipes.model_config(recipe)
    per_token = flops.flops_per_token(config, recipe.data.sequence_length_tokens)
    steps = schedule.num_steps(recipe.stop_tokens, recipe.data.global_batch_tokens)
    seen = steps * recipe.data.global_batch_tokens
    return {
        "run": plan.draft.reference,
        "finished": plans.is_finished(plan),
        "mix": plan.mix.reference,
        "mix_tokens": plan.lock.num_tokens,
        "epochs": seen / plan.lock.num_tokens,
        "parent": plan.parent_url,
        "continues": plan.continues_url,
        "parameters": num_parameters(config),
        "flops_per_token": per_token,
        "flops": per_token * seen,
        "steps": steps,
        "tokens": seen,
        "lr_at_end": schedule.lr_at(seen, settings.step.schedule),
        "num_workers": recipe.runtime.num_workers,
        "published": recipes.difference(
            recipes.identity_recipe(recipe), recipes.identity_recipe(recipes.published(recipe))
        ),
    }


def needs(recipe: RunRecipe) -> dict[str, Any]:
    """What the run would need of each GPU it asks for (`runtime.num_workers`, one if none), as JSON values. Raises UsageError."""
    from trainplane import dry_run

    return dry_run.report(
        recipes.model_config(recipe),
        recipes.parallel_settings(recipe),
        nodes=1,  # how GPUs are spread over nodes changes none of the figures
        gpus_per_node=max(1, recipe.runtime.num_workers),
        sequence_length=recipe.data.sequence_length_tokens,
        global_batch_tokens=recipe.data.global_batch_tokens,
        microbatch_instances=recipe.runtime.microbatch_instances,
        stop_tokens=recipe.stop_tokens,
    )


if __name__ == "__main__":
    from jobs.cli import app

    app(["train", "run", *sys.argv[1:]])
