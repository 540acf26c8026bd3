"""A table of committed evaluations: one row a task, one column a model.

In: a root and evaluation references (all committed ones by default). Out: Markdown, each score with its standard error, the
format it was reached in, and in notes below the table whatever makes it less than it looks (fewer shots, items that did not fit).
"""

from collections.abc import Sequence
from typing import Any

from evalplane.run import KIND
from triplane import artifact


def load_scores(root: str, references: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The metadata of each evaluation with its `reference`, oldest first; all committed ones when none are named. NotFound."""
    chosen = references if references is not None else artifact.references(root, KIND)[::-1]
    return [{"reference": one, **artifact.load(root, one).metadata} for one in chosen]


def markdown(evaluations: Sequence[dict[str, Any]]) -> str:
    """The table; of two evaluations with the same model and task the later one is shown, and a limit shows in the model's column."""
    if not evaluations:
        return "No evaluation is committed under this root.\n"
    columns = list(dict.fromkeys(_column(one) for one in evaluations))
    cells = {(task, _column(one)): score for one in evaluations for task, score in one["scores"].items()}
    tasks = list(dict.fromkeys(task for task, _ in cells))
    lines = [f"| task | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for task in tasks:
        shown = [_cell(cells[task, column]) if (task, column) in cells else "" for column in columns]
        lines.append(f"| {task} | {' | '.join(shown)} |")
    notes = [note for (task, column), score in cells.items() for note in _notes(task, column, score)]
    return "\n".join([*lines, *(["", *notes] if notes else []), ""])


def _column(evaluation: dict[str, Any]) -> str:
    limit = evaluation.get("limit")
    return evaluation["model"]["name"] + (f" (first {limit})" if limit is not None else "")


def _cell(score: dict[str, Any]) -> str:
    scale, unit = (1, "") if score["metric"] == "bits_per_byte" else (100, " %")
    digits = 3 if scale == 1 else 1
    error = f" ± {scale * score['stderr']:.{digits}f}" if score["stderr"] is not None else ""
    return f"{scale * score['value']:.{digits}f}{error}{unit} ({score['metric']}, {score['format']}, n={score['num_items']})"


def _notes(task: str, column: str, score: dict[str, Any]) -> list[str]:
    notes = []
    for name, one in score["formats"].items():
        if one["reason"] is not None:
            shots = "" if one["metric"] == "bits_per_byte" else f"{one['num_shots_used']} shots: "
            notes.append(f"- {task} {name}, {column}: {shots}{one['reason']}")
        if one["num_overlong"]:
            notes.append(
                f"- {task} {name}, {column}: {one['num_overlong']} items do not fit the model's context and are not scored"
            )
    return notes
