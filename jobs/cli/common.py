"""What every command shares: errors become one line and an exit code, results become JSON on stdout."""

import functools
import json
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import typer

from triplane.errors import TriplaneError

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED_EXIT_CODE = 130


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Wraps a command: a `TriplaneError` is printed as one line on stderr and ends the process with its exit code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except TriplaneError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from what is committed", file=sys.stderr)
            raise typer.Exit(INTERRUPTED_EXIT_CODE) from None

    return wrapped


def emit_json(value: Any) -> None:
    """Writes one JSON document to stdout, keys sorted."""
    print(json.dumps(value, indent=2, sort_keys=True, default=str))
