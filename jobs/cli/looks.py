"""`triplane data try`, `diff` and the picture of `funnel`: what a rule would do, what a change of rules did, and where documents went."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli.common import emit_json, reports_errors

Json = Annotated[bool, typer.Option("--json", help="Report as JSON on stdout.")]
Show = Annotated[int, typer.Option(min=0, help="Documents to show of each kind.")]


@reports_errors
def try_rule(
    rule: Annotated[
        str,
        typer.Argument(help="'words < 50', 'words keep_top 0.07 tokens', a reason of the recipe, or a tagger's name."),
    ],
    recipe: Annotated[Path | None, typer.Option(help="A build recipe: its source, taggers and parameters.")] = None,
    source: Annotated[str | None, typer.Option(help="A source of the recipe; its first by default.")] = None,
    documents: Annotated[str | None, typer.Option(help="Documents without a recipe: a folder, file or glob.")] = None,
    sample: Annotated[int, typer.Option(min=1, help="Documents to draw.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    tokenizer: Annotated[str, typer.Option(help="For token counts without a recipe.")] = "",
    root: Annotated[str | None, typer.Option(help="Where the recipe's tokenizer/NAME is, if it names one.")] = None,
    show: Show = 5,
    as_json: Json = False,
) -> None:
    """Documents that a rule keeps and drops, of a deterministic sample, in seconds: nothing is written, Spark is not started."""
    from dataplane import tryout

    chosen, found = _source(recipe, source, documents, root)
    trial = tryout.trial(chosen, rule, seed, sample, tokenizer or found)
    emit_json(trial.to_json(show)) if as_json else print(_trial_text(trial.to_json(show)))


def _source(recipe: Path | None, name: str | None, documents: str | None, root: str | None) -> tuple[Any, str]:
    """The source to draw from and the tokenizer that its recipe names."""
    from dataplane import catalogue
    from dataplane.recipe import SourceRecipe, known
    from jobs.cli.data_plan import RECIPES
    from triplane import artifact
    from triplane.errors import UsageError

    if (recipe is None) == (documents is None):
        raise UsageError("nothing says which documents to draw from: give either --recipe or --documents")
    if recipe is None:
        none: tuple[Any, ...] = ()
        plain = {"name": "documents", "documents": documents, "format": "dolma", "licence": ""}
        return SourceRecipe.model_validate({**plain, "taggers": none, "rules": none, "exact_dedup": False}), ""
    build = catalogue.load(recipe, (), RECIPES / "sources")
    sources = {one.name: one for one in build.sources}
    known(f"recipe {recipe}: source", name or next(iter(sources)), sources)
    tokenizer = build.tokenizer
    if tokenizer.startswith("tokenizer/") and root is not None:
        tokenizer = artifact.artifact_url(root, tokenizer)
    return sources[name or next(iter(sources))], tokenizer


def _trial_text(trial: dict[str, Any]) -> str:
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in trial["dropped"].items()) or "none"
    lines = [
        f"{trial['source']}: {' or '.join(trial['rules'])}",
        f"{trial['sampled']:,} of {trial['documents_seen']:,} documents seen; kept {trial['kept']:,}, dropped {dropped}",
    ]
    for kind in ("dropped", "kept"):
        for one in trial[f"{kind}_documents"]:
            values = ", ".join(f"{name} {_number(value)}" for name, value in one["values"].items())
            what = kind if one["reason"] in (None, "dropped") else f"dropped: {one['reason']}"
            lines += [f"\n{what}  {one['shard']}:{one['line']} {one['id']}  ({values})", f"  {one['excerpt']}"]
    return "\n".join(lines)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value}"


@reports_errors
def diff(
    first: Annotated[str, typer.Argument(help="A build as name or name@version.")],
    second: Annotated[str, typer.Argument(help="Another, or another version.")],
    root: Annotated[str, typer.Option(help="Where artifacts are: a folder, s3://bucket/prefix or gs://bucket/prefix.")],
    show: Show = 3,
    as_json: Json = False,
) -> None:
    """Documents that two selections decide differently, by source and rule, from the first to the second."""
    from dataplane import difference

    found = difference.difference(root, first, second, show)
    emit_json(found.to_json()) if as_json else print(difference.table(found))


def draw_funnel(report: Any, path: Path) -> None:
    """Writes the picture of a funnel. UsageError for another kind of file, or without matplotlib."""
    from triplane.errors import UsageError

    if path.suffix != ".svg":
        raise UsageError(f"figure {path} is no SVG file: name it FILE.svg")
    try:
        from jobs import funnel_figure
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "matplotlib":
            raise
        raise UsageError("drawing needs matplotlib, which is not installed: pip install 'triplane[data]'") from None
    path.write_text(funnel_figure.figure(report.rows, report.selection), "utf-8")
