"""What infra/up and infra/down print: progress on stderr, the plan on stdout, one question on a terminal and never elsewhere."""

import sys
from collections.abc import Sequence

from triplane.errors import UsageError


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Columns aligned; nothing for no rows."""
    if not rows:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print(f"\n{title}")
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    sys.stdout.flush()


def confirm(question: str, yes: bool) -> bool:
    """`--yes`, or `yes` typed on a terminal. Raises UsageError where there is no terminal to type on."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError(f"{question} needs an answer and there is no terminal: pass --yes")
    return input(f"\n{question} Type yes: ").strip() == "yes"
