"""Mid-training's composition root: recipes and a root -> ingredients, a soup, and its verdict on held-out documents.

Joins the training plane, which anneals and averages, with the evaluation plane, which scores; they meet here and on storage only.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs import train
from trainplane import anneal, released
from trainplane import plan as plans
from trainplane.anneal import Annealed, Parent, Score
from trainplane.plan import OnChange
from trainplane.recipe import RunRecipe
from trainplane.run import RunResult
from triplane import artifact, storage
from triplane.errors import NotFound

HELD_OUT = "held_out_bits_per_byte"


@dataclass(frozen=True)
class Request:
    """What to anneal: `start` is a run, a checkpoint or a Hugging Face folder that replaces what the recipes start from, `held_out` the
    documents that judge the soup (none: it is not judged)."""

    recipes: tuple[RunRecipe, ...]
    root: str
    start: str | None = None
    orders: tuple[int, ...] = ()
    continue_lr: bool = False
    soup: str | None = None
    held_out: tuple[str, ...] = ()
    tokenizer: str | None = None


def run(request: Request, on_change: OnChange = "refuse", fall_back: bool = False) -> Annealed:
    """Trains, averages, judges; what is committed is not made again. `fall_back`: as of `train.run`.

    Every run is planned before the first begins, so that the last has no
    surprise when the others are trained. Raises TriplaneError."""
    parent = anneal.parent_of(request.root, _start(request, commit=True))
    given = _ingredients(request, parent)
    for one in given:
        plans.plan(one, request.root, on_change)
    score = scorer(request.root, request.held_out) if request.held_out else None

    def train_all(recipes: Sequence[RunRecipe]) -> list[RunResult]:
        return train.run_many(recipes, request.root, on_change, fall_back)

    return anneal.anneal(given, request.root, train_all, request.soup, score)


def describe(request: Request, on_change: OnChange = "refuse") -> dict[str, Any]:
    """What `run` would do, as JSON values: for `--dry-run`. Writes nothing. Raises as `run` would before it trains; of a release that is still
    to be read in, what its tokenizer and config refuse is not known yet."""
    reference = _start(request, commit=False)
    try:
        parent, is_here = anneal.parent_of(request.root, reference), True
    except NotFound:
        if request.start is None or not released.is_released(request.start):
            raise
        parent, is_here = Parent(reference, None, False), False
    given = _ingredients(request, parent)
    anneal.check(given, parent)
    mixes = {artifact.load(request.root, one.data.mix).reference for one in given}
    if is_here:
        mixes = {plans.plan(one, request.root, on_change).mix.reference for one in given}
    if request.held_out:
        scorer(request.root, request.held_out)
    described = anneal.describe(given, parent, request.soup)
    return described | {"mixes": sorted(mixes), "judged_on": list(request.held_out)}


def _start(request: Request, commit: bool) -> str:
    """The reference to start from; a Hugging Face folder becomes one of ours."""
    start = request.start or anneal.parent_reference(request.recipes)
    if not released.is_released(start):
        return start
    if commit:
        return released.commit(request.root, start, request.tokenizer)
    return released.plan(request.root, start, request.tokenizer)[0].reference


def _ingredients(request: Request, parent: Parent) -> list[RunRecipe]:
    lr = parent.last_lr if request.continue_lr else None
    if request.continue_lr and lr is None:
        raise NotFound(
            f"{parent.reference} has no ledger that tells its last learning rate: set schedule.peak_lr instead"
        )
    return anneal.ingredients(request.recipes, parent.reference, request.orders, lr)


def scorer(root: str, held_out: Sequence[str]) -> Score:
    """Bits per byte of these held-out documents (references, files or folders), evaluated and committed as `triplane eval run` does.

    The documents are looked for at once, not after hours of training. Raises NotFound.
    """
    from evalplane import data
    from evalplane import run as evaluation
    from evalplane.task import load_suite
    from triplane.progress import Progress

    named = [one if one.startswith("heldout") else storage.absolute(one) for one in held_out]
    suite = load_suite(HELD_OUT, [f"{HELD_OUT}.data.path={json.dumps(named)}"])
    for task in suite.tasks:
        data.inputs(task.data, [root], root)

    def score(url: str) -> float:
        with Progress() as progress:
            made = evaluation.evaluate(url, suite, root, progress=progress)
        return float(made.scores[HELD_OUT]["value"])

    return score


def report(made: Annealed) -> dict[str, Any]:
    """What was made, as JSON values."""
    verdict = made.verdict
    return {
        "parent": made.parent.reference,
        "ingredients": [
            {"run": one.reference, "loss": one.ledger[-1]["loss"], "checkpoint": one.checkpoint_url}
            for one in made.ingredients
        ],
        "soup": made.soup and made.soup.reference,
        "checkpoint": made.soup.url if made.soup else made.ingredients[0].checkpoint_url,
        "bits_per_byte": verdict and verdict.scores,
        "best_ingredient": verdict and verdict.best_ingredient,
        "soup_is_best": verdict and verdict.passed,
        "keep": verdict.kept if verdict else (made.soup or made.ingredients[0]).reference,
    }
