"""A series as a picture: numbers -> lines of text for a terminal, or an SVG for a page. No library.

Steps share a column or a pixel when there are more of them than the picture is wide; the mean of a column is drawn, and its extremes where
there is room for them.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 860, 220
LEFT, BOTTOM, TOP = 64, 24, 28


@dataclass(frozen=True)
class Columns:
    """Place (of the middle, in values from the first), mean, least and most of equal runs of a series, [columns] each."""

    place: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def columns(values: Sequence[float], width: int) -> Columns:
    """At most `width` columns of as equal numbers of values as they can be. Raises ValueError for an empty series."""
    if not len(values):
        raise ValueError("a curve of no values")
    parts = np.array_split(np.asarray(values, np.float64), min(width, len(values)))
    ends = np.cumsum([len(part) for part in parts])
    place = ends - np.array([len(part) for part in parts]) / 2
    return Columns(place, *(np.array([reduce(part) for part in parts]) for reduce in (np.mean, np.min, np.max)))


def text(values: Sequence[float], width: int = 72, height: int = 12) -> list[str]:
    """Lines of text: the mean of each column as a dot, the scale at the left."""
    mean = columns(values, width).mean
    low, high = float(mean.min()), float(mean.max())
    rows = np.round((high - mean) / ((high - low) or 1.0) * (height - 1)).astype(int)
    canvas = np.full((height, len(mean)), " ")
    canvas[rows, np.arange(len(mean))] = "•"
    labels = {0: f"{high:.4g}", height - 1: f"{low:.4g}"}
    return [f"{labels.get(row, ''):>9} │{''.join(canvas[row]).rstrip()}" for row in range(height)]


def svg(
    title: str, x: Sequence[float], values: Sequence[float], marked: Sequence[bool] | np.ndarray | None = None
) -> str:
    """An <svg>: the line of means in a band from least to most, `marked` values as red dots; text is escaped."""
    made = columns(values, WIDTH - LEFT)
    low, high = float(made.low.min()), float(made.high.max())
    span = (high - low) or 1.0

    def points(series: np.ndarray) -> list[str]:
        xs = LEFT + made.place * (WIDTH - LEFT) / len(values)
        return [f"{a:.1f},{_y(b, low, span):.1f}" for a, b in zip(xs, series, strict=True)]

    band = " ".join([*points(made.high), *reversed(points(made.low))])
    dots = "".join(
        f'<circle cx="{LEFT + (i + 0.5) * (WIDTH - LEFT) / len(values):.1f}" cy="{_y(values[int(i)], low, span):.1f}" r="3" fill="#b3261e"/>'
        for i in (np.flatnonzero(marked) if marked is not None else [])
    )
    labels = [
        (LEFT - 6, TOP + 8, "end", f"{high:.4g}"), (LEFT - 6, HEIGHT - BOTTOM, "end", f"{low:.4g}"),
        (LEFT, HEIGHT - 6, "start", f"{x[0]:,}"), (WIDTH, HEIGHT - 6, "end", f"{x[-1]:,}"), (LEFT, 14, "start", title),
    ]  # fmt: skip
    texts = "".join(f'<text x="{a}" y="{b}" text-anchor="{c}">{html.escape(d)}</text>' for a, b, c, d in labels)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}"><polygon points="{band}" fill="#c9d8ee"/>'
        f'<polyline points="{" ".join(points(made.mean))}" fill="none" stroke="#1f4e8c" stroke-width="1.5"/>{dots}{texts}</svg>'
    )


def _y(value: float, low: float, span: float) -> float:
    return TOP + (1 - (value - low) / span) * (HEIGHT - TOP - BOTTOM)
