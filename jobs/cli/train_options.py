"""What the `triplane train` commands share: options, and how a result is shown."""

from typing import Annotated, Any, Literal

import typer

from jobs.cli.common import emit_json
from triplane.errors import UsageError

Root = Annotated[str, typer.Option(help="Where artifacts are: a folder, s3://bucket/prefix or gs://bucket/prefix.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Begin anew although such a run is unfinished.")]
FallBack = Annotated[
    bool, typer.Option("--fall-back", help="Set a damaged checkpoint aside and go on from the one before it.")
]
AllowRecipeChange = Annotated[
    bool, typer.Option("--allow-recipe-change", help="Go on from an unfinished run of this name under another recipe.")
]


def on_change(allow_recipe_change: bool, fresh: bool) -> Literal["refuse", "resume", "fresh"]:
    """What `trainplane.plan` does with an unfinished run of the same name under another recipe. Raises UsageError for both."""
    if allow_recipe_change and fresh:
        raise UsageError("--allow-recipe-change goes on from the unfinished run and --fresh does not: give one of them")
    return "resume" if allow_recipe_change else "fresh" if fresh else "refuse"


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
