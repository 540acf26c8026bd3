"""`triplane eval export-prompts`: the items of suites and data files, for decontamination."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.common import data_folders, emit_json, reports_errors
from triplane.errors import UsageError

if TYPE_CHECKING:
    from evalplane.export_prompts import File

PARTS = ("question", "answer", "passage", "item")


@reports_errors
def export_prompts(
    root: Annotated[str, typer.Option("--root", help="Where artifacts are: a folder, s3://... or gs://...")],
    suite: Annotated[list[str] | None, typer.Option(help="A suite or a task; may be given repeatedly.")] = None,
    file: Annotated[
        list[str] | None,
        typer.Option(
            help="A data file that no task describes (JSON lines, JSON, CSV, Parquet, Arrow), as TASK,URL,question=FIELD[,answer=FIELD]"
            "[,passage=FIELD][,item=FIELD][,split=NAME]; may be given repeatedly."
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="What the artifact is called.")] = "eval-items",
    data: Annotated[list[str] | None, typer.Option(help="Folder or URL of evaluation data, tried in order.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Writes question, answer, passage, task and split of every item to eval_items/NAME@VERSION, which the dataplane indexes."""
    from evalplane.export_prompts import export
    from evalplane.task import load_suite

    tasks = {task.name: task for one in suite or () for task in load_suite(one, []).tasks}
    made = export(root, name, list(tasks.values()), _files(file or ()), data_folders(data))
    result = {"reference": made.reference, **made.metadata}
    if as_json:
        emit_json(result)
        return
    print("\n".join([made.reference, *(f"  {one}: {count:,} items" for one, count in result["sets"].items())]))


def _files(given: Sequence[str]) -> "list[File]":
    """UsageError where one is not TASK,URL,question=FIELD."""
    from evalplane.export_prompts import File

    found = []
    for one in given:
        task, url, *pairs = one.split(",") if one.count(",") > 1 else ("", "", "")
        fields = dict(pair.partition("=")[::2] for pair in pairs)
        if not task or "question" not in fields or not set(fields) <= {*PARTS, "split"}:
            raise UsageError(
                f"--file {one} is not TASK,URL,question=FIELD: write for instance ifeval,input_data.jsonl,question=prompt"
            )
        split = fields.pop("split", "")
        found.append(File(url if "://" in url else str(Path(url).absolute()), task, split, fields))
    return found
