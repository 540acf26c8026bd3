"""Pictures of a series: every column stands for as many values as the next, extremes are kept, text is escaped."""

import re

import numpy as np
import pytest

from trainplane import curve


def test_columns_are_equal_runs() -> None:
    made = curve.columns(range(10), 4)
    assert made.mean.tolist() == [1.0, 4.0, 6.5, 8.5]
    assert (made.low.tolist(), made.high.tolist()) == ([0, 3, 6, 8], [2, 5, 7, 9])
    assert made.place.tolist() == [1.5, 4.5, 7.0, 9.0]
    assert curve.columns([1.0, 2.0], 50).mean.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="no values"):
        curve.columns([], 3)


def test_text_puts_the_most_at_the_top() -> None:
    lines = curve.text(np.arange(100.0)[::-1], width=10, height=8)
    assert len(lines) == 8 and lines[0].split("│")[1] == "•" and lines[-1].split("│")[1] == " " * 9 + "•"
    assert lines[0].split("│")[0].strip() == "94.5" and lines[-1].split("│")[0].strip() == "4.5"
    assert curve.text([3.0, 3.0, 3.0], height=3)[0].endswith("•••")


def test_svg_marks_spikes_and_keeps_extremes() -> None:
    values = np.ones(5000)
    values[2500] = 7.0
    picture = curve.svg("a <loss>", range(1, 5001), values, values > 5)
    assert picture.count("<circle") == 1 and "a &lt;loss&gt;" in picture and "<loss>" not in picture
    assert ">7<" in picture and ">1<" in picture and ">5,000<" in picture
    centre = float(re.search(r'<circle cx="([\d.]+)" cy="([\d.]+)"', picture)[1])
    assert centre == pytest.approx(curve.LEFT + (curve.WIDTH - curve.LEFT) / 2, abs=1)
    assert curve.svg("flat", [1], [1.0]).count("<polyline") == 1
