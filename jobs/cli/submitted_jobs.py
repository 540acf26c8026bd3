"""`triplane jobs`: what was submitted to a cluster: a list, a job's output, a job's end."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from jobs.cli.common import emit_json, reports_errors
from jobs.cli.submit import Json, To, follow, say
from triplane.errors import NotFound

app = typer.Typer(no_args_is_help=True, help="Jobs that were submitted: list, logs, cancel.")

Id = Annotated[str, typer.Argument(help="The job, as `triplane submit` and `triplane jobs list` call it.")]
HEADINGS = ("id", "plane", "status", "exit", "started (UTC)", "seconds")


@app.command("list")
@reports_errors
def list_jobs(to: To, json_: Json = False) -> None:
    """The jobs at a target, the oldest first. Of `local` and `spark://`: those submitted from this machine."""
    from jobs.submission import targets

    found = targets.connect(to).jobs()
    if json_:
        emit_json([{**asdict(one), "exit_code": one.own_exit_code if one.is_over else None} for one in found])
        return
    rows = [HEADINGS, *(_row(one) for one in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command("logs")
@reports_errors
def logs(
    id: Id,
    to: To,
    follow_: Annotated[
        bool, typer.Option("--follow", help="Go on to the job's end, and exit with its exit code.")
    ] = False,
    json_: Json = False,
) -> None:
    """The output of a job so far."""
    from jobs.submission import targets

    backend = targets.connect(to)
    _known(backend, id)
    if follow_:
        follow(backend, id, json_, {"target": to})
        return
    text = backend.output(id)
    emit_json({"id": id, "output": text}) if json_ else print(text, end="")


@app.command("cancel")
@reports_errors
def cancel(id: Id, to: To, json_: Json = False) -> None:
    """End a job, and wait until it has ended. It has a minute to commit what it has."""
    from jobs.submission import follow as following
    from jobs.submission import targets

    backend = targets.connect(to)
    state = _known(backend, id)
    if state.is_over:
        say(f"{id} was over already")
    else:
        say(f"{id} is asked to end")
        backend.cancel(id)
        state = following.wait_for_end(backend, id, say)
    emit_json(asdict(state)) if json_ else print(f"{id} {state.status}")


def _known(backend: Any, id: str) -> Any:
    state = backend.find(id)
    if state is None:
        raise NotFound(f"{backend.target} knows no job {id}: list them by `triplane jobs list --to {backend.target}`")
    return state


def _row(state: Any) -> tuple[str, ...]:
    started = datetime.fromtimestamp(state.started, UTC).strftime("%Y-%m-%d %H:%M:%S") if state.started else ""
    seconds = f"{state.ended - state.started:.0f}" if state.ended and state.started else ""
    code = str(state.own_exit_code) if state.is_over else ""
    return state.id, state.plane, state.status, code, started, seconds
