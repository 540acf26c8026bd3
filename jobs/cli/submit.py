"""`triplane submit`: a recipe runs elsewhere, on Spark, Ray or Kubernetes, or here as a process of its own, and is followed to its end."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli.common import INTERRUPTED_EXIT_CODE, emit_json, reports_errors
from triplane.errors import UsageError


class Plane(StrEnum):
    """What a recipe describes."""

    data = "data"
    train = "train"
    eval = "eval"


To = Annotated[
    str,
    typer.Option("--to", help="local, spark://HOST:PORT, ray://HOST:PORT or http://HOST:PORT (Ray's dashboard), k8s."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; output goes to stderr.")]


@reports_errors
def submit(
    plane: Annotated[Plane, typer.Argument(help="data, train or eval.")],
    recipe: Annotated[Path, typer.Argument(help="The plane's recipe (YAML).")],
    root: Annotated[str, typer.Option(help="Where artifacts are: a folder, s3://bucket/prefix or gs://bucket/prefix.")],
    to: To,
    overrides: Annotated[
        list[str], typer.Option("--set", help="KEY=VALUE of the recipe, dotted; again for more.")
    ] = [],  # noqa: B006
    name: Annotated[
        str | None, typer.Option(help="What the job is called; by default its plane and a hash of what runs.")
    ] = None,
    manifests: Annotated[
        Path | None, typer.Option(help="For k8s: the kustomization of job templates, as infra/k8s/jobs/aws.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would run; send nothing.")
    ] = False,
    json_: Json = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Leave when the job is submitted.")] = False,
) -> None:
    """Send RECIPE to a cluster and follow it to its end, with its own exit code. The same command again attaches to it."""
    from jobs.submission import dry_run as look_over
    from jobs.submission import job as jobs
    from jobs.submission import submit as submission
    from jobs.submission import targets

    mistakes = look_over.findings(plane.value, recipe, overrides, root, to, manifests)
    if mistakes:
        _refuse(mistakes, to, dry_run, json_)
    backend = targets.connect(to, plane.value, manifests)
    job = jobs.read(plane.value, recipe, root, tuple(overrides))
    if dry_run:
        _show_plan(submission.plan(backend, job, name), to, json_)
        return
    submitted = submission.submit(backend, job, name, say)
    if no_wait:
        emit_json(submitted.to_json(to)) if json_ else print(submitted.id)
        say(_how_to_follow(submitted.id, to))
        return
    follow(backend, submitted.id, json_, submitted.to_json(to))


def _refuse(mistakes: Sequence[Any], to: str, dry_run: bool, as_json: bool) -> None:
    """Shows every mistake as `file:line: message`. Raises UsageError."""
    if dry_run and as_json:
        emit_json({"mistakes": [asdict(one) for one in mistakes]})
    else:
        print("\n".join(map(str, mistakes)), file=sys.stdout if dry_run else sys.stderr)
    raise UsageError(f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}: nothing was sent to {to}")


def follow(backend: Any, id: str, as_json: bool, about: dict[str, Any]) -> None:
    """Follows a job to its end, then exits with its exit code. Ctrl-C leaves it running, and says how to come back."""
    from jobs.submission import follow as following

    output = sys.stderr if as_json else sys.stdout
    try:
        state = following.follow(backend, id, lambda text: _write(output, text), say)
    except KeyboardInterrupt:
        say(f"detached: {id} goes on; {_how_to_follow(id, backend.target)}")
        raise typer.Exit(INTERRUPTED_EXIT_CODE) from None
    if as_json:
        emit_json({**about, **asdict(state), "exit_code": state.own_exit_code})
    if state.own_exit_code:
        raise typer.Exit(state.own_exit_code)


def say(line: str) -> None:
    """What the platform has to say goes to stderr: stdout is the job's."""
    print(line, file=sys.stderr, flush=True)


def _write(stream: Any, text: str) -> None:
    stream.write(text)
    stream.flush()


def _how_to_follow(id: str, to: str) -> str:
    return f"follow it by `triplane jobs logs {id} --follow --to {to}`, end it by `triplane jobs cancel {id} --to {to}`"


def _show_plan(planned: Any, to: str, as_json: bool) -> None:
    from jobs.submission import package

    if as_json:
        emit_json(planned.to_json(to))
        return
    does = "runs already: would attach to it" if planned.attached else "would run"
    print(f"{planned.id} {does} at {to}\nsends {planned.parcel.what}, {package.size(planned.parcel.bytes)}")
    print("command " + shlex.join(planned.parcel.command))
