"""The spark-submit entry of a build: `spark-submit jobs/build_mix.py RECIPE ROOT [KEY=VALUE ...]`; also `python -m jobs.build_mix`.

Under spark-submit the master and resources are spark-submit's; the build finds the session's settings there and adds its own.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import typer

import jobs
from dataplane import build, catalogue
from jobs.cli.common import emit_json, reports_errors
from triplane.progress import Progress

USAGE_EXIT_CODE = 2
SOURCES = Path(jobs.__file__).parent / "recipes" / "sources"  # this file may lie elsewhere: in an image, alone


def main(arguments: list[str]) -> int:
    """Runs a build and prints its result as JSON -> the exit code."""
    if len(arguments) < 2:
        print("usage: build_mix RECIPE ROOT [KEY=VALUE ...]", file=sys.stderr)
        return USAGE_EXIT_CODE
    recipe, root, *overrides = arguments
    try:
        _build(Path(recipe), root, overrides)
    except typer.Exit as ended:
        return ended.exit_code
    return 0


@reports_errors
def _build(recipe: Path, root: str, overrides: Sequence[str]) -> None:
    with Progress() as progress:
        result = build.run(catalogue.load(recipe, overrides, SOURCES), root, progress)
    emit_json(result.to_json())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
