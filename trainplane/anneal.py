"""Mid-training: from one checkpoint several ingredients, linearly to zero, their average, and the gate the average must pass.

Run recipes (and order seeds) -> one finished run an ingredient -> a soup -> a verdict: is it better than the best ingredient? OLMo 2 made its 7B,
13B and 32B this way and kept one ingredient alone for its 1B (arXiv 2501.00656, section 4.5). Who trains and who
scores is handed in: this module knows neither Ray nor the evaluation plane.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trainplane import checkpoint, schedule, soup
from trainplane.plan import resolve_parent
from trainplane.recipe import RunRecipe
from trainplane.run import RunResult
from trainplane.schedule import Schedule
from triplane import artifact
from triplane.errors import Refused, UsageError

Train = Callable[[Sequence[RunRecipe]], Sequence[RunResult]]
# Folder of a model -> a number of which less is better, such as bits per byte.
Score = Callable[[str], float]


@dataclass(frozen=True)
class Parent:
    """The checkpoint that ingredients start from. `last_lr`: of its last step, None if no ledger tells."""

    reference: str
    last_lr: float | None
    has_optimizer: bool


@dataclass(frozen=True)
class Verdict:
    """Scores by reference, the soup's last; `kept` is the reference to go on with."""

    scores: dict[str, float]
    soup: str
    best_ingredient: str
    passed: bool

    @property
    def kept(self) -> str:
        return self.soup if self.passed else self.best_ingredient


@dataclass(frozen=True)
class Annealed:
    """What a mid-training made; `verdict` is None without a scorer, `soup` for a single ingredient."""

    parent: Parent
    ingredients: tuple[RunResult, ...]
    soup: soup.Soup | None
    verdict: Verdict | None


def parent_of(root: str, reference: str) -> Parent:
    """Raises NotFound for a run that is not finished, Corrupt."""
    url, _, pinned = resolve_parent(root, reference)
    files = artifact.load_url(url).files
    rows = checkpoint.rows_of(url) if any(entry.name.startswith("ledger-") for entry in files) else []
    has_optimizer = any(entry.name.startswith("optimizer") for entry in files)
    return Parent(pinned, rows[-1]["lr"] if rows else None, has_optimizer)


def ingredients(
    given: Sequence[RunRecipe], parent: str | None, orders: Sequence[int], lr: float | None = None
) -> list[RunRecipe]:
    """The runs of one mid-training: each recipe, or one recipe in several data orders. `parent` and `lr` replace what the recipes say.

    Raises UsageError for orders of several recipes, an order twice, or two runs of one name.
    """
    if orders and (len(given) > 1 or len(set(orders)) < len(orders)):
        raise UsageError(f"orders {list(orders)} of {len(given)} recipes: give one recipe and each order once")
    made = [_in_order(given[0], order) for order in orders] if orders else list(given)
    if len({one.name for one in made}) < len(made):
        raise UsageError(f"runs {[one.name for one in made]}: give each recipe once, or set names that differ")
    return [_from(one, parent, lr) for one in made]


def _in_order(recipe: RunRecipe, order: int) -> RunRecipe:
    data = recipe.data.model_copy(update={"order_seed": order})
    return recipe.model_copy(update={"name": f"{recipe.name}-order-{order}", "data": data})


def _from(recipe: RunRecipe, parent: str | None, lr: float | None) -> RunRecipe:
    rates = recipe.schedule if lr is None else recipe.schedule.model_copy(update={"peak_lr": lr})
    return recipe.model_copy(update={"init_from": parent or recipe.init_from, "schedule": rates})


def parent_reference(given: Sequence[RunRecipe]) -> str:
    """The one checkpoint that all recipes start from. Raises UsageError."""
    found = {one.init_from for one in given}
    reference = next(iter(found), None)
    if len(found) != 1 or reference is None:
        raise UsageError(
            f"ingredients start from {sorted(map(str, found))}: give one checkpoint, with init_from or --from"
        )
    return reference


def check(given: Sequence[RunRecipe], parent: Parent) -> None:
    """Raises UsageError for a run that does not end at a rate of 0, Refused for a fresh optimizer that is not warmed up."""
    for recipe in given:
        rates = Schedule(**recipe.schedule.model_dump())
        last = schedule.num_steps(recipe.stop_tokens, recipe.data.global_batch_tokens) * recipe.data.global_batch_tokens
        if rates.decay != "linear" or schedule.lr_at(last, rates) > 0:
            raise UsageError(
                f"recipe {recipe.name} ends at a learning rate of {schedule.lr_at(last, rates):.3g} ({rates.decay}): an anneal ends at 0; set "
                f"schedule.decay=linear, schedule.final_lr_fraction=0.0 and schedule.decay_tokens to at most {last}"
            )
        if not parent.has_optimizer and rates.warmup_tokens == 0:
            raise Refused(
                f"{parent.reference} has no optimizer state and recipe {recipe.name} no warm-up: the first steps would be as long as "
                f"Adam's first ones are; set schedule.warmup_tokens, for instance to {20 * recipe.data.global_batch_tokens}"
            )


def anneal(
    given: Sequence[RunRecipe], root: str, train: Train, soup_name: str | None = None, score: Score | None = None
) -> Annealed:
    """Trains every ingredient, averages them and judges the average; what is committed is not made again. Raises TriplaneError."""
    parent = parent_of(root, parent_reference(given))
    check(given, parent)
    results = tuple(train(given))
    if len(results) < 2:
        return Annealed(parent, results, None, None)
    made = soup.average(root, soup_name or default_soup_name(given), [one.reference for one in results])
    verdict = None if score is None else judge(made, results, score)
    return Annealed(parent, results, made, verdict)


def default_soup_name(given: Sequence[RunRecipe]) -> str:
    """What the ingredients' names begin with alike, and `-soup`."""
    first, last = min(one.name for one in given), max(one.name for one in given)
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    common = "".join(letter for letter, _ in alike)
    return f"{re.sub(r'-(order|ingredient)[-0-9]*$', '', common).rstrip('-') or 'anneal'}-soup"


def judge(made: soup.Soup, results: Sequence[RunResult], score: Score) -> Verdict:
    """Scores every ingredient and the soup: it passes if no ingredient is better."""
    scores = {one.reference: score(one.checkpoint_url) for one in results}
    best = min(scores, key=scores.__getitem__)
    scores[made.reference] = score(made.url)
    return Verdict(scores, made.reference, best, scores[made.reference] <= scores[best])


def describe(given: Sequence[RunRecipe], parent: Parent, soup_name: str | None) -> dict[str, Any]:
    """What `anneal` would do, as JSON values."""
    return {
        "parent": parent.reference,
        "parent_lr": parent.last_lr,
        "parent_optimizer": "loaded" if parent.has_optimizer else "fresh",
        "ingredients": [
            {
                "run": one.name,
                "mix": one.data.mix,
                "order_seed": one.data.order_seed,
                "steps": schedule.num_steps(one.stop_tokens, one.data.global_batch_tokens),
                "warmup_tokens": one.schedule.warmup_tokens,
                "peak_lr": one.schedule.peak_lr,
            }
            for one in given
        ],
        "soup": None if len(given) < 2 else f"checkpoint/{soup_name or default_soup_name(given)}",
    }
