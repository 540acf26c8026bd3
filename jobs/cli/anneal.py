"""`triplane train anneal`: from a checkpoint, ingredients linearly to zero, their average, and whether it is better than each of them."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.common import reports_errors
from jobs.cli.train_options import AllowRecipeChange, DryRun, FallBack, Fresh, Json, Root, on_change, show

REGRESSED_EXIT_CODE = 4


@reports_errors
def anneal(
    recipes: Annotated[list[Path], typer.Argument(help="Run recipes that end at a rate of 0: one an ingredient.")],
    root: Root,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Start from this run, checkpoint or Hugging Face folder instead of init_from."),
    ] = None,
    order: Annotated[
        list[int] | None, typer.Option(help="Train the one recipe in this data order; give it once an ingredient.")
    ] = None,
    continue_lr: Annotated[
        bool, typer.Option("--continue-lr", help="Start at the rate the parent's last step had.")
    ] = False,
    soup: Annotated[str | None, typer.Option(help="What the average is called.")] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(help="Documents to judge the average on: heldout/NAME, heldout/NAME@VERSION or a folder."),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Of a Hugging Face folder without tokenizer.json.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="A key to replace in every recipe, as schedule.peak_lr=1e-4.")
    ] = None,
    allow_recipe_change: AllowRecipeChange = False,
    fresh: Fresh = False,
    fall_back: FallBack = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Mid-training: train every ingredient, average them, judge the average. Exit code 4: an ingredient is better than the average."""
    from jobs import anneal as annealing
    from jobs import train

    changed = on_change(allow_recipe_change, fresh)
    request = annealing.Request(
        recipes=tuple(train.load(recipe, overrides or ()) for recipe in recipes),
        root=root,
        start=start,
        orders=tuple(order or ()),
        continue_lr=continue_lr,
        soup=soup,
        held_out=tuple(held_out or ()),
        tokenizer=tokenizer,
    )
    if dry_run:
        show(annealing.describe(request, changed), json_)
        return
    made = annealing.run(request, changed, fall_back)
    show(annealing.report(made), json_)
    if made.verdict is not None and not made.verdict.passed:
        raise typer.Exit(REGRESSED_EXIT_CODE)
