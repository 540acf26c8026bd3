"""The funnel's picture: what is drawn adds up to what came in, each reason has one colour, and equal rows give equal bytes."""

import xml.etree.ElementTree as ET

from dataplane import funnel
from dataplane.funnel import FunnelRow
from jobs import funnel_figure

ROWS = [
    FunnelRow("web", "in", "", 10, 1000, 250),
    FunnelRow("web", "kept", "", 6, 700, 180),
    FunnelRow("web", "dropped", "short", 1, 100, 20),
    FunnelRow("web", "dropped", "exact_duplicate", 2, 200, 50),
    FunnelRow("web", "quarantined", "malformed_json", 1, 0, 0),
    FunnelRow("code", "in", "", 2, 50, 10),
    FunnelRow("code", "kept", "", 2, 50, 10),
]


def test_parts_sum_to_what_came_in() -> None:
    assert funnel_figure.parts(ROWS, "documents") == {
        "web": {"kept": 6, "short": 1, "exact_duplicate": 2, "malformed_json": 1},
        "code": {"kept": 2},
        "all": {"kept": 8, "short": 1, "exact_duplicate": 2, "malformed_json": 1},
    }
    for unit in funnel_figure.UNITS:
        came_in = {row.source: getattr(row, unit) for row in [*ROWS, *funnel.overall(ROWS)] if row.fate == "in"}
        assert {source: sum(amounts.values()) for source, amounts in funnel_figure.parts(ROWS, unit).items()} == came_in


def test_reasons_are_ordered_by_what_they_took_and_differ_in_colour() -> None:
    colours = funnel_figure.colours(ROWS)
    assert list(colours) == ["kept", "exact_duplicate", "short", "malformed_json"] and len(set(colours.values())) == 4
    many = [FunnelRow("web", "dropped", f"reason_{n}", 40 - n, 0, 0) for n in range(40)]
    assert list(funnel_figure.colours(many)) == ["kept", *(f"reason_{n}" for n in range(40))]


def test_the_picture_is_one_svg_with_every_name_and_the_same_bytes() -> None:
    text = funnel_figure.figure(ROWS, "selection/tiny@1")
    assert text == funnel_figure.figure(list(ROWS), "selection/tiny@1") and text != funnel_figure.figure(ROWS[5:], "x")
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = {(node.text or "").strip() for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {
        "selection/tiny@1",
        "web",
        "code",
        "all",
        "exact duplicate",
        "malformed json",
        "documents",
        "tokens",
        "180",
    } <= words
    nothing = funnel_figure.figure([FunnelRow("web", "in", "", 0, 0, 0)], "selection/empty@1")
    assert ET.fromstring(nothing).tag.endswith("svg")
