"""`triplane data`: document shards -> token shards and mixes, and where every document went."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli import data_plan, decontamination, list_mix, looks, quality
from jobs.cli.common import emit_json, reports_errors

app = typer.Typer(no_args_is_help=True, help="Documents to token shards and mixes.")
app.command()(data_plan.plan)
app.command("try")(looks.try_rule)
app.command("diff")(looks.diff)
app.command("list-mix")(list_mix.list_mix)
app.add_typer(quality.app, name="quality")
app.add_typer(decontamination.app, name="decontamination")

Root = Annotated[str, typer.Option(help="Where artifacts are: a folder, s3://bucket/prefix or gs://bucket/prefix.")]
Json = Annotated[bool, typer.Option("--json", help="Report as JSON on stdout.")]


@app.command()
@reports_errors
def build(
    recipe: Annotated[Path, typer.Argument(help="A build recipe (YAML).")],
    root: Root,
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE, dotted: held_out_fraction=0.01")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would be read, start nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Tags, selects, tokenizes and mixes the sources of a recipe. Run again, it finishes what is missing."""
    from dataplane import build as dataplane_build
    from dataplane import catalogue, stages
    from triplane.progress import Progress

    parsed = catalogue.load(recipe, overrides or (), data_plan.RECIPES / "sources")
    if dry_run:
        _report(dataplane_build.plan(parsed, root), as_json, _plan_text)
        return
    with Progress() as progress:
        result = dataplane_build.run(parsed, root, progress)
    if result.stages:
        print(stages.table(result.stages), file=sys.stderr)
    _report(result.to_json(), as_json, _result_text)


@app.command()
@reports_errors
def funnel(
    root: Root,
    name: Annotated[str | None, typer.Option(help="A build as name or name@version; the newest by default.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw it too, as this SVG file (needs matplotlib).")] = None,
    as_json: Json = False,
) -> None:
    """Documents, bytes and tokens in, kept, dropped by reason and quarantined, by source; it adds up or is refused."""
    from dataplane import build as dataplane_build

    report = dataplane_build.newest_funnel(root, name)
    if figure is not None:
        looks.draw_funnel(report, figure)
    _report(report.to_json(), as_json, _funnel_text)


def _report(value: dict[str, Any], as_json: bool, text: Any) -> None:
    if as_json:
        emit_json(value)
    else:
        print(text(value))


def _plan_text(plan: dict[str, Any]) -> str:
    import yaml

    lines = [yaml.safe_dump(plan["recipe"], sort_keys=False, allow_unicode=True).rstrip(), f"# root: {plan['root']}"]
    for name, source in plan["sources"].items():
        lines.append(
            f"# {name}: {source['files']:,} files, {source['shards']:,} shards, {source['stored_bytes']:,} bytes stored, "
            f"about {source['estimated_tokens']:,} tokens"
        )
    return "\n".join(lines)


def _result_text(result: dict[str, Any]) -> str:
    lines = [_funnel_text({"selection": result["selection"], "rows": result["funnel"]})]
    for kind in ("tokens", "heldout", "mixes"):
        lines += list(result[kind].values())
    for mix, sources in result["mix_tokens"].items():
        lines.append(f"{mix}: " + ", ".join(f"{source} {count:,}" for source, count in sources.items()) + " tokens")
    return "\n".join(lines)


def _funnel_text(report: dict[str, Any]) -> str:
    from dataplane import funnel as dataplane_funnel

    return f"{report['selection']}\n" + dataplane_funnel.table(dataplane_funnel.from_json(report["rows"]))
