"""The spark-submit entry of a build: `spark-submit jobs/build_mix.py RECIPE ROOT [KEY=VALUE ...]`; also `python -m jobs.build_mix`.

Under spark-submit the master and resources are spark-submit's; the build finds the session's settings there and adds its own.
"""

import sys
from pathlib import Path

from dataplane import build, catalogue
from jobs.cli.common import emit_json
from triplane.errors import TriplaneError
from triplane.progress import Progress

USAGE_EXIT_CODE = 2
SOURCES = Path(__file__).parent / "recipes" / "sources"


def main(arguments: list[str]) -> int:
    """Runs a build and prints its result as JSON -> the exit code."""
    if len(arguments) < 2:
        print("usage: build_mix RECIPE ROOT [KEY=VALUE ...]", file=sys.stderr)
        return USAGE_EXIT_CODE
    recipe, root, *overrides = arguments
    try:
        with Progress() as progress:
            result = build.run(catalogue.load(Path(recipe), overrides, SOURCES), root, progress)
    except TriplaneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    emit_json(result.to_json())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
