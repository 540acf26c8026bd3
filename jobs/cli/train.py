"""`triplane train`: a recipe becomes a run, checkpoints become a soup; the other verbs have modules of their own."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import anneal, train_plan, train_reports
from jobs.cli.common import reports_errors
from jobs.cli.train_options import AllowRecipeChange, DryRun, FallBack, Fresh, Json, Root, on_change, show

app = typer.Typer(no_args_is_help=True, help="Train a model on a mix; anneal and average checkpoints; look at runs.")
app.command("anneal")(anneal.anneal)
app.command("plan")(train_plan.plan)
app.command("ledger")(train_reports.ledger)
app.command("status")(train_reports.status)
app.command("export-metrics")(train_reports.export_metrics)


class As(StrEnum):
    """Which of two values a recipe runs with, where the publication differs from what ran."""

    ran = "ran"
    published = "published"


@app.command("run")
@reports_errors
def run(
    recipe: Annotated[Path, typer.Argument(help="A run recipe (YAML).")],
    root: Root,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Recipe keys to replace, as schedule.peak_lr=1e-3.")
    ] = None,
    dry_run: DryRun = False,
    json_: Json = False,
    allow_recipe_change: AllowRecipeChange = False,
    fresh: Fresh = False,
    fall_back: FallBack = False,
    as_: Annotated[
        As, typer.Option("--as", help="The values the released run had, or those its publication says.")
    ] = As.ran,
) -> None:
    """Train a run to its end. The same command goes on after a crash, and does nothing when the run is finished."""
    from jobs import train
    from trainplane import plan as plans

    changed = on_change(allow_recipe_change, fresh)
    loaded = train.load(recipe, overrides or (), as_ is As.published)
    if dry_run:
        show(train.describe(plans.plan(loaded, root, changed)), json_)
        return
    result = train.run(loaded, root, changed, fall_back)
    last = result.ledger[-1]
    summary = {
        "run": result.reference,
        "checkpoint": result.checkpoint_url,
        "step": result.step,
        "tokens_seen": result.tokens_seen,
        "loss": last["loss"],
        "lr": last["lr"],
    }
    show(summary, json_)


@app.command("soup")
@reports_errors
def soup(
    name: Annotated[str, typer.Argument(help="What the average is called: checkpoint/NAME@version.")],
    references: Annotated[list[str], typer.Argument(help="Finished runs, checkpoints or soups: at least two.")],
    root: Root,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Average the weights of several checkpoints, uniformly."""
    from trainplane import soup as soups
    from trainplane.plan import resolve_parent

    if dry_run:
        show({"soup": f"checkpoint/{name}", "ingredients": [resolve_parent(root, one)[2] for one in references]}, json_)
        return
    made = soups.average(root, name, references)
    show({"soup": made.reference, "checkpoint": made.url}, json_)
