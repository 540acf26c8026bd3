"""What the `triplane train` commands share: options, and how a result is shown."""

from typing import Annotated, Any

import typer

from jobs.cli.common import emit_json

Root = Annotated[str, typer.Option(help="Where artifacts are: a folder, s3://bucket/prefix or gs://bucket/prefix.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Begin anew although such a run is unfinished.")]


def show(values: dict[str, Any], as_json: bool) -> None:
    """A JSON document, or a line a key that has a value; what is nested is indented below its key."""
    if as_json:
        emit_json(values)
        return
    for line in _lines(values):
        print(line)


def _lines(values: dict[str, Any], indent: str = "") -> list[str]:
    found = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found += [f"{indent}{name}:", *_lines(value, indent + "  ")]
        elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            found += [f"{indent}{name}:"]
            found += [f"{indent}  - " + ", ".join(f"{k} {v}" for k, v in one.items()) for one in value]
        elif value is not None and value != []:
            found.append(f"{indent}{name}: {value}")
    return found
