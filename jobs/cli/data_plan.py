"""`triplane data plan`: shards, bytes and core-hours of a build by stage, before anything is read.

A build recipe, a file of measured rates and, for dollars, a price file -> a table on stdout, or JSON.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli.common import emit_json, reports_errors

RECIPES = Path(__file__).parents[1] / "recipes"
UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


@reports_errors
def plan(
    recipe: Annotated[Path, typer.Argument(help="A build recipe (YAML).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE, dotted: shard_tokens=2B")] = None,
    rates: Annotated[Path, typer.Option(help="Measured rates by stage (YAML).")] = RECIPES / "rates.yaml",
    prices: Annotated[Path | None, typer.Option(help="A price file (YAML); without it there are no dollars.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON on stdout.")] = False,
) -> None:
    """What a build reads, writes and shuffles, and its core-hours by stage. Published sources are planned without a network."""
    from dataplane import catalogue, planning
    from triplane.recipe import load

    build = catalogue.load(recipe, overrides or (), RECIPES / "sources")
    priced = load(prices, planning.Prices) if prices else None
    value = planning.plan(build, load(rates, planning.Rates), priced)
    if as_json:
        emit_json(value)
    else:
        print(text(value))


def text(value: dict[str, Any]) -> str:
    """The plan as a table of sources, one of stages, and the mixes."""
    total = value["total"]
    lines = [f"{'source':<30}{'files':>9}{'text':>10}{'documents':>16}{'tokens':>20}{'token shards':>14}"]
    for name, one in value["sources"].items():
        lines.append(_source_line(name, one, "*" if len(one["estimated"]) > 1 else ""))
    lines += [_source_line("all", total, ""), "* a number nobody published is estimated: --json says which", ""]
    lines.append(f"{'stage':<30}{'read':>10}{'written':>10}{'shuffled':>10}{'core-hours':>14}")
    for name, stage in [*value["stages"].items(), ("all", total)]:
        moved = "".join(f"{_bytes(stage[f'bytes_{what}']):>10}" for what in ("read", "written", "shuffled"))
        lines.append(f"{name:<30}{moved}{stage['core_hours']:>14,.1f}")
    if "dollars" in total:
        lines.append(f"{'dollars':<30}{total['dollars']:>44,.0f}")
    for name, sources in value["mixes"].items():
        tokens = sum(sources.values())
        parts = ", ".join(f"{source} {100 * count / tokens:.3g} %" for source, count in sources.items())
        lines += ["", f"{name}: {tokens / 1e9:,.2f}B tokens: {parts}"]
    return "\n".join(lines)


def _source_line(name: str, one: dict[str, Any], mark: str) -> str:
    columns = f"{one['files']:>9,}{_bytes(one['text_bytes']):>10}{one['documents']:>16,.0f}{one['tokens']:>20,.0f}"
    return f"{name + mark:<30}{columns}{one['token_shards']:>14,}"


def _bytes(count: float) -> str:
    size, unit = next(((size, unit) for size, unit in UNITS if count >= size), (1.0, "B"))
    return f"{count / size:,.4g} {unit}"
