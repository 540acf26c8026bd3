"""`triplane data decontamination`: the index of the items we evaluate, and what a build has of them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli.common import emit_json, reports_errors

app = typer.Typer(no_args_is_help=True, help="Find the items we evaluate in what we train on.")

Root = Annotated[str, typer.Option(help="Where artifacts are: a folder, s3://bucket/prefix or gs://bucket/prefix.")]
Json = Annotated[bool, typer.Option("--json", help="Report as JSON on stdout.")]


@app.command()
@reports_errors
def index(
    items: Annotated[str, typer.Argument(help="What `triplane eval export-prompts` made: eval_items/NAME[@VERSION].")],
    root: Root,
    ngrams: Annotated[
        list[int] | None, typer.Option(help="A further n for the preset flan; 8 and 13 are there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Builds the index that the tagger `contamination` maps; says its URL and sha256 for the recipe."""
    from dataplane import contamination_artifact

    made = contamination_artifact.make(root, items, tuple(ngrams or ()))
    result = {
        "index": made.url,
        "sha256": made.sha256,
        "reference": made.reference,
        "bytes": made.bytes,
        "sets": list(made.sets),
    }
    emit_json(result) if as_json else print(_index_text(result))


def _index_text(result: dict[str, Any]) -> str:
    lines = [
        result["reference"],
        f"index: {result['index']}",
        f"sha256: {result['sha256']}",
        f"{result['bytes']:,} bytes",
    ]
    for one in result["sets"]:
        lines.append(f"  {one['task']} {one['split']}: {one['items']:,} items, {one['indexed']:,} can be found")
    return "\n".join(lines)


@app.command()
@reports_errors
def documents(
    source: Annotated[
        str, typer.Argument(help="JSON lines with `messages`, or `chosen` and `rejected`: a file, a folder or a glob.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write documents to, a line for a line.")],
    as_json: Json = False,
) -> None:
    """Makes documents of instruction and preference data, to be searched like any others."""
    from dataplane import contamination_conversations

    found = contamination_conversations.convert(source, out)
    lines = [
        f"{name}: {one['conversations']:,} of {one['rows']:,} rows are conversations" for name, one in found.items()
    ]
    emit_json(found) if as_json else print("\n".join(lines))


@app.command()
@reports_errors
def report(
    root: Root,
    items: Annotated[str, typer.Option(help="The items that the index was made of: eval_items/NAME[@VERSION].")],
    source: Annotated[
        list[str] | None, typer.Option(help="Sources, or attributes/NAME@VERSION; all tagged ones by default.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Whose matches count.")] = "strict",
    out: Annotated[Path | None, typer.Option(help="The page, one HTML file.")] = None,
    as_json: Json = False,
) -> None:
    """Every hit beside its item, the rate by task and by source; commits what scores are told: clean or contaminated."""
    from dataplane import contamination_report
    from jobs import contamination_page

    found = contamination_report.report(root, items, source, preset)
    reference = contamination_report.commit(root, found)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(contamination_page.html(found), encoding="utf-8", newline="\n")
    result = {"reference": reference, **contamination_report.summary(found)}
    emit_json(result) if as_json else print(_report_text(result))


def _report_text(result: dict[str, Any]) -> str:
    lines = [result["reference"], f"preset {result['preset']}, {result['hits']:,} hits"]
    for task, one in result["tasks"].items():
        lines.append(f"  {task}: {one['contaminated']:,} of {one['items']:,} items")
    for name, one in result["sources"].items():
        lines.append(f"  {name}: {one['contaminated']:,} of {one['documents']:,} documents")
    return "\n".join(lines)
