"""`triplane eval`: scores a model on a suite; shows what has been scored."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli import export_prompts, watch
from jobs.cli.common import data_folders, emit_json, reports_errors
from triplane import storage
from triplane.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="Score a model; compare what has been scored.")
app.command("export-prompts")(export_prompts.export_prompts)
app.command("watch")(watch.watch)


class Form(StrEnum):
    """What a report can be written as."""

    markdown = "markdown"
    html = "html"
    csv = "csv"
    json = "json"


Root = Annotated[str, typer.Option("--root", help="Where artifacts are: a folder, s3://... or gs://...")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.command()
@reports_errors
def run(
    model: Annotated[
        str,
        typer.Option(
            help="A checkpoint's URL, run/NAME[@VERSION], a Hugging Face folder; transformers:FOLDER, vllm:FOLDER, openai:URL#MODEL."
        ),
    ],
    suite: Annotated[
        str, typer.Option(help="A suite of evalplane/suites.yaml, or a task (arc_easy:mc, olmes names too).")
    ],
    root: Root,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first N items (of each source, subject or category).")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Folder or URL of evaluation data, tried in order; hf://datasets is the Hugging Face Hub."),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="tokenizer/NAME@VERSION, a folder or a tokenizer.json.")] = None,
    overrides: Annotated[
        list[str], typer.Option("--set", help="TASK.KEY=VALUE, e.g. arithmetic.data.path=[URL].")
    ] = [],  # noqa: B006
    device: Annotated[str | None, typer.Option(help="cpu or cuda; the default is cuda where there is one.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that answer, as Ray actors; the default is this one alone.")
    ] = None,
    allow_contaminated: Annotated[
        bool,
        typer.Option("--allow-contaminated", help="Score items that the model was trained on too; the score says so."),
    ] = False,
    require_clean: Annotated[
        bool,
        typer.Option("--require-clean", help="Refuse where nobody looked whether the model was trained on the items."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; load no model.")] = False,
    as_json: AsJson = False,
) -> None:
    """Evaluates MODEL on SUITE and commits evaluation/SUITE-MODEL@VERSION; a committed one is read back."""
    from evalplane import report
    from evalplane.decontamination import OnContamination
    from evalplane.run import evaluate, plan
    from evalplane.task import load_suite
    from triplane.progress import Progress

    if allow_contaminated and require_clean:
        raise UsageError("--allow-contaminated and --require-clean exclude each other: give one")
    policy: OnContamination = "allow" if allow_contaminated else "require_clean" if require_clean else "refuse"
    chosen = load_suite(suite, overrides)
    options: dict[str, Any] = {"tokenizer": tokenizer, "limit": limit, "folders": data_folders(data)}
    if dry_run:
        _show(plan(model, chosen, root, **options).describe(), as_json)
        return
    with Progress() as progress, _answering(workers, device) as answer:
        made = evaluate(
            model, chosen, root, device=device, progress=progress, answer=answer, on_contamination=policy, **options
        )
    result = {"reference": made.reference, **made.manifest.metadata}
    emit_json(result) if as_json else print(f"{made.reference}\n\n{report.markdown([result])}", end="")


@contextmanager
def _answering(workers: int | None, device: str | None) -> Iterator[Any]:
    """What answers shards: this process (None), or a pool of actors."""
    if workers is None:
        yield None
        return
    from evalplane import cluster

    with cluster.pool(workers, device) as pool:
        yield pool.answer


@app.command(name="report")
@reports_errors
def show_report(
    root: Root,
    references: Annotated[list[str] | None, typer.Argument(help="Evaluations; all committed ones by default.")] = None,
    form: Annotated[Form, typer.Option("--form", help="What to write.")] = Form.markdown,
    beside: Annotated[
        list[str] | None, typer.Option(help="A published model to show beside ours, or `all` (the default for html).")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="A file to write to instead of stdout.")] = None,
    as_json: AsJson = False,
) -> None:
    """Scores with standard errors and intervals beside published ones: a table, and in html curves over tokens and over compute."""
    from evalplane import published, report, report_page

    found = report.load_scores(root, references or None)
    if as_json:
        emit_json(found)
        return
    shown = published.named(beside or (["all"] if form is Form.html else []))
    write = {
        Form.markdown: report.markdown,
        Form.csv: report.as_csv,
        Form.json: report.as_json,
        Form.html: report_page.page,
    }
    text = write[form](found, shown)
    if output is None:
        print(text, end="")
    else:
        storage.put(str(output), text.encode())


def _show(plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit_json(plan)
        return
    print(
        f"{plan['reference']} ({'committed already' if plan['committed'] else 'to be made'})\nmodel {plan['model']['url']}"
    )
    for task in plan["tasks"]:
        print(
            f"  {task['name']}: {task['num_items']} items, formats {', '.join(task['formats'])}, from {', '.join(task['files'])}; "
            f"contamination {task['decontamination']}"
        )
