"""Evaluation's composition root: `python -m jobs.evaluate RECIPE --root URL [KEY=VALUE ...]`, what a submitted evaluation runs.

A recipe file (model, suite, limit, data, ...) and a root -> what `triplane eval run` does with these options.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import Field

from jobs.cli import eval as evaluation
from jobs.cli.common import reports_errors
from triplane import recipe as recipes
from triplane.errors import UsageError
from triplane.recipe import Strict

if TYPE_CHECKING:
    from evalplane.decontamination import OnContamination

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class EvaluationRecipe(Strict):
    """What to score on what: the options of `triplane eval run` under their names. Only `model` and `suite` must be there.

    `data`: folders or URLs of evaluation data, tried in order; none: those of this machine. `workers`: processes that answer, as Ray
    actors; null: the job's own. `overrides`: TASK.KEY=VALUE of the suite's tasks.
    """

    model: str = Field(min_length=1)
    suite: str = Field(min_length=1)
    limit: int | None = Field(default=None, ge=1)
    data: tuple[str, ...] = ()
    tokenizer: str | None = None
    device: Literal["cpu", "cuda"] | None = None
    workers: int | None = Field(default=None, ge=1)
    overrides: tuple[str, ...] = ()
    allow_contaminated: bool = False
    require_clean: bool = False


def load(path: Path, overrides: Sequence[str] = ()) -> EvaluationRecipe:
    """Reads an evaluation's YAML; its suite is one there is, its overrides are of that suite's tasks. Raises UsageError."""
    from evalplane.task import load_suite

    recipe = recipes.load(Path(path), EvaluationRecipe, overrides)
    try:
        load_suite(recipe.suite, recipe.overrides)
        on_contamination(recipe)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return recipe


def on_contamination(recipe: EvaluationRecipe) -> "OnContamination":
    """What is to happen with items that the model was trained on. Raises UsageError if the recipe wants both."""
    if recipe.allow_contaminated and recipe.require_clean:
        raise UsageError("allow_contaminated and require_clean exclude each other: set one")
    return "allow" if recipe.allow_contaminated else "require_clean" if recipe.require_clean else "refuse"


def options(recipe: EvaluationRecipe) -> dict[str, Any]:
    """The recipe as keyword arguments of `jobs.cli.eval.run`."""
    lists = {"data": list(recipe.data), "overrides": list(recipe.overrides)}
    return {name: getattr(recipe, name) for name in EvaluationRecipe.model_fields} | lists


@app.command()
@reports_errors
def main(
    recipe: Annotated[Path, typer.Argument(help="An evaluation recipe (YAML).")],
    root: evaluation.Root,
    overrides: Annotated[list[str] | None, typer.Argument(help="Recipe keys to replace, as limit=100.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; load no model.")] = False,
    as_json: evaluation.AsJson = False,
) -> None:
    """Evaluate the model of RECIPE on its suite and commit the result; a committed one is read back."""
    loaded = load(recipe, overrides or ())
    evaluation.run(root=root, dry_run=dry_run, as_json=as_json, **options(loaded))


if __name__ == "__main__":
    app()
