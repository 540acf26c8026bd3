"""Two figures of a report as SVG text: scores over tokens, and averages against training compute.

In: plain numbers and labels. Out: one `<svg>` element each, the same bytes for the same numbers, nothing outside it referred to. Every text
is escaped here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

INK, SOFT, FAINT, OURS = "#1d2733", "#66717e", "#e3e8ed", "#b3352f"
PALETTE = ("#2f6db5", "#d1842a", "#2a9272", "#6a51a3", "#a6406b", "#5d6670", "#8a7a1f", "#1f7a8c", "#b3352f", "#3b4cc0")
WIDTH, HEIGHT = 960, 400
LEFT, RIGHT, TOP, BOTTOM = 62, 190, 18, 48
CHARACTER = 6.6  # pixels of a character of 12 pixels' height, on average


@dataclass(frozen=True)
class Point:
    """A place on a figure; `low` and `high` are its interval in y."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points with a name, joined by a line."""

    name: str
    points: Sequence[Point]
    colour: str = INK


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis over [low, high] of the data, drawn from `start` to `end` in pixels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high, here = (
            (math.log10(one) for one in (self.low, self.high, value)) if self.is_log else (self.low, self.high, value)
        )
        return self.start + (here - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the axis."""
        if self.is_log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1,) if last - first > 3 else (1, 2, 5)
            every = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            return [one for one in every if self.low <= one <= self.high]
        span = self.high - self.low
        step = 10.0 ** math.floor(math.log10(span / 5))
        step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 6)
        return [step * number for number in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def axis(values: Sequence[float], start: float, end: float, is_log: bool = False) -> Axis:
    """An axis with a margin around the values; one value alone gets some room."""
    low, high = min(values), max(values)
    if is_log:
        margin = max((high / low) ** 0.06, 1.15)
        return Axis(low / margin, high * margin, start, end, True)
    margin = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return Axis(low - margin, high + margin, start, end)


def lines(series: Sequence[Series], title: str, x_label: str, y_label: str, show_x: Callable[[float], str]) -> str:
    """A line a series with its intervals as a band, named at its last point."""
    every = [point for one in series for point in one.points]
    x = axis([point.x for point in every], LEFT, WIDTH - RIGHT)
    y = axis([value for point in every for value in _extent(point)], HEIGHT - BOTTOM, TOP)
    drawn = [_band(one, x, y) + _line(one, x, y) for one in series]
    labels = _labels([(one.name, y.at(one.points[-1].y), one.colour) for one in series], WIDTH - RIGHT + 10)
    return _svg(title, _frame(x, y, x_label, y_label, show_x) + "".join(drawn) + labels)


def scatter(series: Sequence[Series], title: str, x_label: str, y_label: str) -> str:
    """Series named at their last point, over a logarithmic x; the step line is the best y reached with no more x."""
    every = [point for one in series for point in one.points]
    x = axis([point.x for point in every], LEFT, WIDTH - RIGHT, is_log=True)
    y = axis([value for point in every for value in _extent(point)], HEIGHT - BOTTOM, TOP)
    drawn = "".join(_dots(one, x, y) for one in series)
    named = [(one.name, x.at(one.points[-1].x), y.at(one.points[-1].y), one.colour) for one in series]
    return _svg(title, _frame(x, y, x_label, y_label, _power) + _frontier(every, x, y) + drawn + _placed(named))


def _extent(point: Point) -> list[float]:
    return [value for value in (point.y, point.low, point.high) if value is not None]


def _svg(title: str, inner: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-size="12">'
    return f"{head}<title>{escape(title)}</title>{inner}</svg>"


def _frame(x: Axis, y: Axis, x_label: str, y_label: str, show_x: Callable[[float], str]) -> str:
    grid = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y.at(tick):.1f}" y2="{y.at(tick):.1f}" stroke="{FAINT}"/>'
        + _text(LEFT - 8, y.at(tick) + 4, f"{tick:g}", SOFT, "end")
        for tick in y.ticks()
    )
    below = "".join(_text(x.at(tick), HEIGHT - BOTTOM + 18, show_x(tick), SOFT, "middle") for tick in x.ticks())
    base = f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}" stroke="{SOFT}"/>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    names = _text(middle, HEIGHT - 8, x_label, SOFT, "middle")
    turned = f'<g transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)">{_text(0, 0, y_label, SOFT, "middle")}</g>'
    return grid + below + base + names + turned


def _text(x: float, y: float, text: str, colour: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(series: Series, x: Axis, y: Axis) -> str:
    path = " ".join(f"{x.at(point.x):.1f},{y.at(point.y):.1f}" for point in series.points)
    dots = "".join(
        f'<circle cx="{x.at(p.x):.1f}" cy="{y.at(p.y):.1f}" r="3" fill="{series.colour}"/>' for p in series.points
    )
    return f'<polyline points="{path}" fill="none" stroke="{series.colour}" stroke-width="2"/>{dots}'


def _band(series: Series, x: Axis, y: Axis) -> str:
    held = [point for point in series.points if point.low is not None and point.high is not None]
    if len(held) < 2:
        return ""
    above = [f"{x.at(point.x):.1f},{y.at(point.high or 0.0):.1f}" for point in held]
    below = [f"{x.at(point.x):.1f},{y.at(point.low or 0.0):.1f}" for point in reversed(held)]
    return f'<polygon points="{" ".join(above + below)}" fill="{series.colour}" opacity="0.12"/>'


def _labels(named: Sequence[tuple[str, float, str]], x: float) -> str:
    """Names beside a line's end, moved down until none covers another."""
    made, taken = "", -math.inf
    for name, y, colour in sorted(named, key=lambda one: one[1]):
        taken = max(y, taken + 15)
        made += _text(x, taken + 4, name, colour)
    return made


def _dots(series: Series, x: Axis, y: Axis) -> str:
    path = " ".join(f"{x.at(point.x):.1f},{y.at(point.y):.1f}" for point in series.points)
    joined = (
        f'<polyline points="{path}" fill="none" stroke="{series.colour}" opacity="0.5"/>'
        if len(series.points) > 1
        else ""
    )
    return joined + "".join(_dot(series.colour, point, x, y) for point in series.points)


def _dot(colour: str, point: Point, x: Axis, y: Axis) -> str:
    here = x.at(point.x)
    whisker = ""
    if point.low is not None and point.high is not None:
        ends = f'y1="{y.at(point.low):.1f}" y2="{y.at(point.high):.1f}"'
        whisker = f'<line x1="{here:.1f}" x2="{here:.1f}" {ends} stroke="{colour}" stroke-width="1.5"/>'
    return whisker + f'<circle cx="{here:.1f}" cy="{y.at(point.y):.1f}" r="4.5" fill="{colour}"/>'


def _placed(named: Sequence[tuple[str, float, float, str]]) -> str:
    """Names beside their dots, each in the first of some places around it where it covers no other name and no dot."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for _, x, y, _ in named]
    made = ""
    for name, x, y, colour in sorted(named, key=lambda one: one[2]):
        width = CHARACTER * len(name)
        places = [(x + side, y + shift) for shift in (-7, 15, 4, -20, 28, -33, 41) for side in (6, -6 - width)]
        boxes = [(left, below - 11, left + width, below + 2) for left, below in places]
        free = [i for i, box in enumerate(boxes) if not any(_covers(box, other) for other in taken)]
        left, below = places[free[0] if free else 0]
        taken.append(boxes[free[0] if free else 0])
        made += _text(left, below, name, colour)
    return made


def _covers(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _frontier(points: Sequence[Point], x: Axis, y: Axis) -> str:
    path: list[str] = []
    best = -math.inf
    for point in sorted(points, key=lambda one: (one.x, -one.y)):
        if point.y > best:
            corner = [f"{x.at(point.x):.1f},{y.at(best):.1f}"] if path else []
            path += [*corner, f"{x.at(point.x):.1f},{y.at(point.y):.1f}"]
            best = point.y
    path.append(f"{WIDTH - RIGHT},{y.at(best):.1f}")
    return f'<polyline points="{" ".join(path)}" fill="none" stroke="{SOFT}" stroke-dasharray="4 5" opacity="0.6"/>'


def _power(value: float) -> str:
    return f"{value:.0e}".replace("e+", "e")
