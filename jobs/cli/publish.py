"""`triplane publish`: a checkpoint becomes a Hugging Face folder with a card, checked, and the commands that would push it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli.common import reports_errors
from jobs.cli.train_options import DryRun, Json, Root, show


@reports_errors
def publish(
    reference: Annotated[str, typer.Argument(help="A finished run, a checkpoint of a run, or a soup.")],
    root: Root,
    out: Annotated[Path, typer.Option(help="Folder to write; one folder a revision below it with --every-checkpoint.")],
    repository: Annotated[str, typer.Option(help="ORGANISATION/NAME on the Hub.")],
    stage: Annotated[
        str, typer.Option(help="main, stage1 or stage2-ingredientN: how the revision is named, as AI2's are.")
    ] = "main",
    round_down: Annotated[
        bool, typer.Option("--round-down", help="Billions of tokens rounded down, as in stage 2 of the 7B and 13B.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--every-checkpoint", help="Every committed checkpoint of the run, a revision each.")
    ] = False,
    licence: Annotated[str | None, typer.Option(help="The card's license, as apache-2.0.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="tokenizer/NAME@VERSION, a folder or a tokenizer.json.")] = None,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Write what would be published, check it by reading it back, and print the commands that push it. Nothing is sent."""
    from trainplane import publish as publishing

    publishing.check_repository(repository)
    chosen = publishing.revisions(root, reference, stage, "down" if round_down else "up", every)
    folders = [out / one.name if every else out for one in chosen]
    if dry_run:
        made = [
            {"revision": one.name, "folder": str(folder), "step": one.step, "tokens_seen": one.tokens_seen}
            for one, folder in zip(chosen, folders, strict=True)
        ]
        show({"publish": made}, json_)
        return
    results: list[dict[str, Any]] = []
    for one, folder in zip(chosen, folders, strict=True):
        done = publishing.publish(root, one, folder, repository, licence, tokenizer)
        results.append(
            {"revision": one.name, "folder": str(folder), "files": list(done.files), "commands": list(done.commands)}
        )
    if json_:
        show({"published": results}, json_)
        return
    for result in results:
        print(f"# {result['revision']}: {', '.join(result['files'])}")
        print("\n".join(result["commands"]))
