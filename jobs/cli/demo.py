"""`triplane demo`: the whole path on text this machine has."""

import sys
from typing import Annotated

import typer

from jobs.cli.common import emit_json, reports_errors


@reports_errors
def demo(
    root: Annotated[
        str, typer.Option(help="Where everything is written: a folder or s3://bucket/prefix.")
    ] = "demo-run",
    seed: Annotated[int, typer.Option(help="Of the corpus sample, the weights and the problems.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The report's figures as JSON on stdout.")] = False,
) -> None:
    """Corpus, tokenizer, data, pretraining, three anneals, a soup, evaluation, and one report.html. Minutes on two cores."""
    from jobs import demo as demonstration
    from jobs import demo_report
    from triplane.errors import TriplaneError
    from triplane.progress import Progress

    if dry_run:
        emit_json(demonstration.plan(root, seed))
        return
    with Progress() as progress:
        report, url = demonstration.run(root, seed, progress)
    if as_json:
        emit_json(demo_report.as_json(report))
    print(*demo_report.final_lines(report, url), sep="\n", file=sys.stderr if as_json else sys.stdout)
    if failed := [claim.text for claim in report.claims if not claim.holds]:
        raise TriplaneError(f"{len(failed)} of {len(report.claims)} claims did not hold: read {url}")
