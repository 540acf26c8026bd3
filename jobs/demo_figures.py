"""The figures of the demo's report, as SVG text to stand inside an HTML page.

In: plain numbers. Out: one `<svg>` element a figure, the same bytes for the same numbers: text stays text, identifiers are
salted with a constant, and nothing outside the element is referred to.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

INK, SOFT, FAINT, PAPER = "#1d2733", "#66717e", "#dfe4ea", "#ffffff"
SOURCE_COLOURS = {"code": "#2f6db5", "prose": "#d1842a", "math": "#2a9272"}
REASON_COLOURS = (
    *("#b9c2cd", "#8d99a6", "#cfa3a3", "#b78fb3", "#9db4a8", "#c9bb94"),
    *("#6f7f95", "#a6766a", "#8f86c0", "#6f9ca3", "#d8c3a5", "#5d6670"),
)
PRETRAIN_COLOUR, SOUP_COLOUR = INK, "#b3352f"
ORDER_COLOURS = ("#6a51a3", "#9e7cc8", "#c3a6dd")
LEGEND_COLUMNS = 4

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "triplane",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eef1f4",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Curve:
    """One training run. All arrays have one entry a step; `tokens_seen` counts from the start of pretraining."""

    name: str
    colour: str
    tokens_seen: np.ndarray
    loss: np.ndarray
    grad_norm: np.ndarray
    lr: np.ndarray
    spikes: np.ndarray  # bool: the steps the spike score counts


@dataclass(frozen=True)
class Point:
    """A value with its 95 % interval (low = high = value where there is none)."""

    label: str
    colour: str
    value: float
    low: float
    high: float


def funnel_figure(parts_by_source: Mapping[str, Sequence[tuple[str, int]]]) -> str:
    """One bar a source: the share of its documents by what became of them. `parts` starts with ("kept", n)."""
    reasons = sorted({reason for parts in parts_by_source.values() for reason, _ in parts} - {"kept"})
    colour_of = dict(zip(reasons, REASON_COLOURS * len(reasons), strict=False))
    with rc_context(STYLE):
        legend_rows = -(-len(reasons) // LEGEND_COLUMNS)
        figure = Figure(figsize=(9.6, 0.75 * len(parts_by_source) + 0.6 + 0.28 * legend_rows))
        axes = figure.add_subplot()
        for row, (source, parts) in enumerate(parts_by_source.items()):
            _stacked_bar(axes, row, parts, {**colour_of, "kept": SOURCE_COLOURS[source]})
        axes.set_yticks(range(len(parts_by_source)), list(parts_by_source), color=INK, fontweight="bold")
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(axis="y", visible=False)
        handles = [axes.barh([0], [0], color=colour_of[reason], label=reason.replace("_", " ")) for reason in reasons]
        figure.legend(handles=handles, loc="outside lower center", ncols=LEGEND_COLUMNS)
        return as_svg(figure, "What became of every document, by source")


def mixture_figure(shares_by_mix: Mapping[str, Mapping[str, tuple[float, float]]]) -> str:
    """One panel a mix: the planned share of each source as an outline, the realised one filled."""
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.3))
        for column, (mix, shares) in enumerate(shares_by_mix.items()):
            axes = figure.add_subplot(1, len(shares_by_mix), column + 1, title=mix)
            for row, (source, (planned, realised)) in enumerate(shares.items()):
                axes.barh(row, realised, height=0.52, color=SOURCE_COLOURS[source], alpha=0.9)
                axes.barh(row, planned, height=0.76, fill=False, edgecolor=INK, linewidth=1.1)
                axes.text(
                    max(planned, realised) + 0.015, row, f"{planned:.2%} → {realised:.2%}", va="center", fontsize=9
                )
            axes.set_yticks(range(len(shares)), list(shares), color=INK)
            axes.invert_yaxis()
            axes.set_xlim(0, 0.95)
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.grid(axis="y", visible=False)
        return as_svg(figure, "Planned share of each source (outline) against the realised one (filled)")


def training_figure(curves: Sequence[Curve], stage_boundary_tokens: int) -> str:
    """Loss, gradient norm and learning rate over tokens seen; the anneals leave from where pretraining stopped."""
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 6.6))
        loss, norm, rate = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1.6, 1.2)})
        for curve in curves:
            _noisy_line(loss, curve, curve.loss)
            _noisy_line(norm, curve, curve.grad_norm)
            rate.plot(curve.tokens_seen, curve.lr, color=curve.colour, linewidth=1.6)
            at = np.flatnonzero(curve.spikes)
            loss.plot(curve.tokens_seen[at], curve.loss[at], "v", color=SOUP_COLOUR, markersize=4, linestyle="none")
        loss.set_title("Loss (cross-entropy, nats per token)")
        norm.set_title("Gradient norm before clipping")
        norm.set_yscale("log")
        norm.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        norm.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        rate.set_title("Learning rate")
        rate.set_xlabel("tokens seen")
        rate.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g}M" if value else "0"))
        for axes in (loss, norm, rate):
            axes.axvline(stage_boundary_tokens, color=SOFT, linewidth=0.9, linestyle=(0, (3, 3)))
        loss.legend(loc="upper right", ncols=2)
        return as_svg(figure, "Training curves: loss, gradient norm and learning rate by tokens seen")


def points_figure(panels: Mapping[str, Sequence[Point]], formats: Mapping[str, str]) -> str:
    """One panel a measure, one row a checkpoint: the value with its interval. `formats` is the format spec of each panel."""
    with rc_context(STYLE):
        rows = max(len(points) for points in panels.values())
        figure = Figure(figsize=(9.6, 0.34 * rows + 0.75))
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, points) in zip(all_axes, panels.items(), strict=True):
            for row, point in enumerate(points):
                axes.plot([point.low, point.high], [row, row], color=point.colour, linewidth=2.2, alpha=0.45)
                axes.plot(point.value, row, "o", color=point.colour, markersize=6.5)
                axes.annotate(
                    format(point.value, formats[title]),
                    (max(point.value, point.high), row),
                    xytext=(7, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8.5,
                    color=INK,
                )
            axes.set_title(title)
            axes.margins(x=0.42, y=0.12)
            axes.grid(axis="y", visible=False)
            axes.locator_params(axis="x", nbins=4)
            axes.xaxis.set_major_formatter(FuncFormatter(partial(_tick, formats[title])))
        all_axes[0].set_yticks(range(rows), [point.label for point in next(iter(panels.values()))], color=INK)
        all_axes[0].invert_yaxis()
        return as_svg(figure, "Scores of every checkpoint: " + ", ".join(panels))


def smoothed(values: np.ndarray, half_life_steps: float) -> np.ndarray:
    """Exponential moving average, corrected for its start: entry i weighs entry i - half_life_steps half as much as i."""
    keep = 0.5 ** (1.0 / half_life_steps)
    total, weight = 0.0, 0.0
    result = np.empty(len(values))
    for i, value in enumerate(values):
        total, weight = total * keep + value, weight * keep + 1.0
        result[i] = total / weight
    return result


def _tick(spec: str, value: float, _position: int) -> str:
    return format(value, spec)


def _noisy_line(axes: Axes, curve: Curve, values: np.ndarray) -> None:
    axes.plot(curve.tokens_seen, values, color=curve.colour, linewidth=0.5, alpha=0.22)
    axes.plot(curve.tokens_seen, smoothed(values, 15), color=curve.colour, linewidth=1.5, label=curve.name)


def _stacked_bar(axes: Axes, row: int, parts: Sequence[tuple[str, int]], colour_of: Mapping[str, str]) -> None:
    total, left = sum(count for _, count in parts), 0.0
    for reason, count in parts:
        share = count / total if total else 0.0
        axes.barh(row, share, left=left, height=0.58, color=colour_of[reason], edgecolor=PAPER, linewidth=0.8)
        if share > 0.06:
            colour = PAPER if reason == "kept" else INK
            axes.text(left + share / 2, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=9)
        left += share


def as_svg(figure: Figure, description: str) -> str:
    """The figure as one accessible `<svg>` element that scales with the page."""
    figure.set_layout_engine("constrained")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"|height="[\d.]+pt" width="[\d.]+pt"', "", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
