"""The funnel of a build as a picture: of each source, the share that was kept, and where the rest went.

Funnel rows -> one standalone SVG, the same bytes for the same rows: a bar a source and one for all of them, by documents and by tokens. A
reason has the same colour in every bar; reasons are ordered by how many documents they took.
"""

from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from dataplane import funnel
from dataplane.funnel import FunnelRow
from jobs.demo_figures import INK, LEGEND_COLUMNS, PAPER, REASON_COLOURS, STYLE, as_svg

UNITS = ("documents", "tokens")
KEPT_COLOUR, QUARANTINED_COLOUR = "#2f6db5", "#b3352f"
LABEL_SHARE = 0.12  # of the width, below which a number does not fit


def parts(rows: Sequence[FunnelRow], unit: str) -> dict[str, dict[str, int]]:
    """Source (as declared, then "all") -> what became of it -> how much, `kept` first. Without what came in: the parts sum to it."""
    found: dict[str, dict[str, int]] = {}
    for row in [*rows, *funnel.overall(rows)]:
        source = found.setdefault(row.source, {funnel.KEPT: 0})
        if row.fate != funnel.IN:
            name = row.reason or row.fate
            source[name] = source.get(name, 0) + getattr(row, unit)
    return found


def colours(rows: Sequence[FunnelRow]) -> dict[str, str]:
    """What became of documents -> its colour: kept, then reasons of drops by number of documents, then quarantined."""
    everything = sorted(funnel.overall(rows), key=lambda row: (-row.documents, row.reason))
    dropped = [row.reason for row in everything if row.fate == funnel.DROPPED]
    palette = dict(zip(dropped, REASON_COLOURS * (1 + len(dropped) // len(REASON_COLOURS)), strict=False))
    broken = [row.reason for row in everything if row.fate == funnel.QUARANTINED]
    return {funnel.KEPT: KEPT_COLOUR, **palette, **dict.fromkeys(broken, QUARANTINED_COLOUR)}


def figure(rows: Sequence[FunnelRow], title: str) -> str:
    """The picture as SVG text; `title` is the selection's reference."""
    colour_of = colours(rows)
    with rc_context(STYLE):
        by_unit = {unit: parts(rows, unit) for unit in UNITS}
        sources = list(by_unit[UNITS[0]])
        legend_rows = -(-len(colour_of) // LEGEND_COLUMNS)
        drawing = Figure(figsize=(11.0, 0.42 * len(sources) + 1.3 + 0.28 * legend_rows))
        drawing.suptitle(title, x=0.01, ha="left", fontsize=10.5)
        panels = drawing.subplots(1, len(UNITS), sharey=True)
        for axes, (unit, by_source) in zip(panels, by_unit.items(), strict=True):
            _panel(axes, by_source, colour_of)
            axes.set_title(unit)
        panels[0].set_yticks(range(len(sources)), sources, color=INK, fontweight="bold")
        panels[0].invert_yaxis()
        handles = [panels[0].barh([0], [0], color=colour) for colour in colour_of.values()]
        names = [name.replace("_", " ") for name in colour_of]
        drawing.legend(handles, names, loc="outside lower center", ncols=LEGEND_COLUMNS)
        return as_svg(drawing, f"What became of every document of {title}, by source")


def _panel(axes: Axes, by_source: Mapping[str, Mapping[str, int]], colour_of: Mapping[str, str]) -> None:
    for row, amounts in enumerate(by_source.values()):
        total, left = sum(amounts.values()), 0.0
        for name in (name for name in colour_of if amounts.get(name)):
            share = amounts[name] / total
            axes.barh(row, share, left=left, height=0.66, color=colour_of[name], edgecolor=PAPER, linewidth=0.6)
            if share > LABEL_SHARE:
                ink = PAPER if name == "kept" else INK
                axes.text(left + share / 2, row, f"{amounts[name]:,}", ha="center", va="center", color=ink, fontsize=8)
            left += share
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="y", visible=False)
