"""`triplane verify` and `triplane gc`: what is stored is what was written, and nothing else is.

A reference below a root, or a folder URL -> problems on stdout (exit 1 if any); a root -> the names of what was removed.
Source: `triplane.artifact.verify`, `triplane.artifact.collect_garbage`.
"""

from typing import Annotated

import typer

from jobs.cli.common import emit_json, reports_errors

Json = Annotated[bool, typer.Option("--json", help="Report as one JSON document on stdout.")]


@reports_errors
def verify(
    artifact: Annotated[
        str, typer.Argument(help="kind/name@version or kind/name below --root, or an artifact's folder URL.")
    ],
    root: Annotated[str | None, typer.Option(help="Where artifacts live: a path, s3:// or gs://.")] = None,
    json: Json = False,
) -> None:
    """Re-reads every byte of an artifact and compares it with its manifest."""
    from triplane import artifact as artifacts

    url = artifact if root is None else artifacts.artifact_url(root, artifact)
    problems = artifacts.verify(url)
    if json:
        emit_json({"artifact": url, "problems": problems})
    else:
        print("\n".join(problems) or f"{url}: every byte is as its manifest says")
    if problems:
        raise typer.Exit(1)


@reports_errors
def gc(
    root: Annotated[str, typer.Option(help="Where artifacts live: a path, s3:// or gs://.")],
    older_than: Annotated[
        str, typer.Option(help="Spare what is younger, such as 24h or 30min: longer than any shard takes to be made.")
    ] = "24h",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    json: Json = False,
) -> None:
    """Removes what crashed attempts left: objects that no record and no manifest names."""
    from triplane import artifact as artifacts
    from triplane import recipe

    removed = artifacts.collect_garbage(root, dry_run, recipe.seconds(older_than))
    if json:
        emit_json({"root": root, "dry_run": dry_run, "removed": removed})
        return
    print("".join(f"{name}\n" for name in removed) + f"{len(removed)} {'would be ' if dry_run else ''}removed")
