"""`triplane eval`: scores a model on a suite; shows what has been scored."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli.common import emit_json, reports_errors

app = typer.Typer(no_args_is_help=True, help="Score a model; compare what has been scored.")

Root = Annotated[str, typer.Option("--root", help="Where artifacts are: a folder, s3://... or gs://...")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def data_folders(given: str | None) -> list[str]:
    """`--data`, else `TRIPLANE_EVAL_DATA`, else `data/eval` in `TRIPLANE_SHARED`, else beside the checkout."""
    shared = os.environ.get("TRIPLANE_SHARED", str(Path(__file__).parents[3] / "shared"))
    return [given or os.environ.get("TRIPLANE_EVAL_DATA") or str(Path(shared) / "data" / "eval")]


@app.command()
@reports_errors
def run(
    model: Annotated[str, typer.Option(help="A checkpoint's URL, run/NAME[@VERSION], or a Hugging Face folder.")],
    suite: Annotated[str, typer.Option(help="A suite of evalplane/suites.yaml, or a task.")],
    root: Root,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first N items (documents: of each source).")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Folder or URL of evaluation data.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="tokenizer/NAME@VERSION, a folder or a tokenizer.json.")] = None,
    overrides: Annotated[
        list[str], typer.Option("--set", help="TASK.KEY=VALUE, e.g. arithmetic.data.path=[URL].")
    ] = [],  # noqa: B006
    device: Annotated[str | None, typer.Option(help="cpu or cuda; the default is cuda where there is one.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; load no model.")] = False,
    as_json: AsJson = False,
) -> None:
    """Evaluates MODEL on SUITE and commits evaluation/SUITE-MODEL@VERSION; a committed one is read back."""
    from evalplane import report
    from evalplane.run import evaluate, plan
    from evalplane.task import load_suite
    from triplane.progress import Progress

    chosen = load_suite(suite, overrides)
    options: dict[str, Any] = {"tokenizer": tokenizer, "limit": limit, "folders": data_folders(data)}
    if dry_run:
        _show(plan(model, chosen, root, **options).describe(), as_json)
        return
    with Progress() as progress:
        made = evaluate(model, chosen, root, device=device, progress=progress, **options)
    result = {"reference": made.reference, **made.manifest.metadata}
    emit_json(result) if as_json else print(f"{made.reference}\n\n{report.markdown([result])}", end="")


@app.command(name="report")
@reports_errors
def show_report(
    root: Root,
    references: Annotated[list[str] | None, typer.Argument(help="Evaluations; all committed ones by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """A table of scores with standard errors, one row a task and one column a model."""
    from evalplane import report

    found = report.load_scores(root, references or None)
    emit_json(found) if as_json else print(report.markdown(found), end="")


def _show(plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit_json(plan)
        return
    print(
        f"{plan['reference']} ({'committed already' if plan['committed'] else 'to be made'})\nmodel {plan['model']['url']}"
    )
    for task in plan["tasks"]:
        print(
            f"  {task['name']}: {task['num_items']} items, formats {', '.join(task['formats'])}, from {', '.join(task['files'])}"
        )
