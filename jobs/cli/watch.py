"""`triplane eval watch`: evaluates a run's checkpoints as they are committed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.cli.common import data_folders, emit_json, reports_errors
from triplane import storage
from triplane.errors import TriplaneError, UsageError

if TYPE_CHECKING:
    from evalplane.decontamination import OnContamination
    from evalplane.watch import Look, News
    from evalplane.watch_shards import Answers


@reports_errors
def watch(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The training run: NAME, run/NAME or run/NAME@VERSION.")],
    suite: Annotated[str, typer.Option(help="A suite of evalplane/suites.yaml, or a task.")],
    root: Annotated[str, typer.Option("--root", help="Where artifacts are: a folder, s3://... or gs://...")],
    once: Annotated[bool, typer.Option("--once", help="Evaluate what is there now, then end: for a schedule.")] = False,
    alert: Annotated[
        bool, typer.Option("--alert", help="Exit with 4 if a new checkpoint is worse than the one before it.")
    ] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at the run.")] = 60.0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that answer, as Ray actors; the default is this one alone.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first N items (of each source, subject or category).")
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="Folder or URL of evaluation data, tried in order.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="tokenizer/NAME@VERSION, a folder or a tokenizer.json.")] = None,
    overrides: Annotated[
        list[str], typer.Option("--set", help="TASK.KEY=VALUE, e.g. arithmetic.data.path=[URL].")
    ] = [],  # noqa: B006
    device: Annotated[str | None, typer.Option(help="cpu or cuda; the default is cuda where there is one.")] = None,
    skip_corrupt: Annotated[
        bool,
        typer.Option("--skip-corrupt", help="Go on without checkpoints that are damaged; else they fail the command."),
    ] = False,
    allow_contaminated: Annotated[
        bool, typer.Option("--allow-contaminated", help="Score items that the run was trained on; the score says so.")
    ] = False,
    require_clean: Annotated[
        bool,
        typer.Option("--require-clean", help="Refuse where nobody looked whether the run was trained on the items."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, at the end.")] = False,
) -> None:
    """Evaluates every committed checkpoint of RUN once, together with any other watcher, and keeps a report of them under ROOT/reports.

    Without --once it goes on until the run is finished.
    """
    from evalplane import watch_run
    from evalplane.task import load_suite
    from evalplane.watch import Asked, Watcher, regressed
    from evalplane.watch_regression import Regressed
    from triplane.progress import Progress

    if allow_contaminated and require_clean:
        raise UsageError("--allow-contaminated and --require-clean exclude each other: give one")
    policy: OnContamination = "allow" if allow_contaminated else "require_clean" if require_clean else "refuse"
    root = storage.absolute(root)  # actors may have another working directory
    chosen, found = load_suite(suite, overrides), watch_run.find(root, run)
    asked = Asked(root, found, chosen, tokenizer, limit, tuple(data_folders(data)), skip_corrupt, workers or 1, policy)
    tell = (lambda _: None) if as_json else _tell
    with Progress() as progress, _answering(workers, device) as answers:
        watcher = Watcher(asked, answers, progress=progress, tell=tell)
        try:
            looks = [watcher.look()] if once else watcher.follow(interval)
        except TriplaneError as failure:  # what was told is in the report, and no later look tells it again
            if alert and (worse := regressed(watcher.news)) is not None:
                raise Regressed(f"{worse}; after that: {failure}") from failure
            raise
    news = [one for look in looks for one in look.news]
    emit_json(_as_json(found, looks[-1], news)) if as_json else _tell_end(found, looks[-1], news)
    if alert and (error := regressed(news)) is not None:
        raise error


@contextmanager
def _answering(workers: int | None, device: str | None) -> Iterator["Answers"]:
    """What answers shards: this process, or a pool of actors."""
    if workers is None:
        from evalplane.watch import here

        yield here(device)
        return
    from evalplane import cluster

    with cluster.pool(workers, device) as pool:
        yield pool.answer


def _tell(one: "News") -> None:
    """A line a checkpoint, and one a task that became worse."""
    from evalplane import report

    scores = ", ".join(f"{task} {report.number(score)}" for task, score in one.evaluation["scores"].items())
    print(f"{one.run} at {one.tokens} tokens: {scores}; report {one.report}", flush=True)
    for change in one.regressions:
        print(f"worse than at {one.previous} tokens: {change}", flush=True)


def _tell_end(run: str, last: "Look", news: list["News"]) -> None:
    for tokens, reason in sorted(last.skipped.items()):
        print(f"skipped the checkpoint at {tokens} tokens: {reason}", file=sys.stderr)
    if not last.checkpoints:
        print(f"{run} has no committed checkpoint yet")
    elif not news:
        print(f"{run}: nothing new in {last.checkpoints} checkpoints")


def _as_json(run: str, last: "Look", news: list["News"]) -> dict[str, Any]:
    made = [
        {
            "tokens": one.tokens,
            "previous": one.previous,
            "reference": one.evaluation["reference"],
            "scores": one.evaluation["scores"],
            "regressions": [{**vars(change), "interval": list(change.interval)} for change in one.regressions],
        }
        for one in news
    ]
    whole = {"run": run, "finished": last.finished, "checkpoints": last.checkpoints, "lag_tokens": last.lag_tokens}
    skipped = {str(tokens): reason for tokens, reason in last.skipped.items()}
    return {**whole, "new": made, "skipped": skipped, "report": news[-1].report if news else None}
