"""The page as a browser would parse it: whole, self-contained, and with the numbers it was given."""

import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from evalplane import charts, published, report_page
from evalplane.charts import Point, Series

TEN = (
    "mmlu-mc",
    "arc_challenge",
    "hellaswag",
    "winogrande",
    "natural_questions",
    "drop",
    "agieval_english",
    "gsm8k",
    "mmlu_pro",
    "triviaqa",
)


def score(value: float, metric: str = "acc_raw", **more: Any) -> dict[str, Any]:
    one = {"metric": metric, "value": value, "stderr": 0.01, "num_items": 10, "num_overlong": 0, "num_shots_used": 5}
    one |= {"reason": None, **more}
    kind = "bpb" if metric == "bits_per_byte" else "mc"
    return {**one, "format": kind, "interval": [value - 0.02, value + 0.02], "excess": 0.0, "formats": {kind: one}}


def evaluation(name: str, tokens: int, value: float, tasks: tuple[str, ...] = TEN, **more: Any) -> dict[str, Any]:
    scores = {task: score(value) for task in tasks} | {"lambada": score(2.0 - value, "bits_per_byte")}
    training = {"run": "small@v1", "run_tokens": tokens, "tokens": tokens, "parameters": 10**9, "flops": 6e9 * tokens}
    mean = {"value": value, "stderr": 0.003, "interval": [value - 0.006, value + 0.006]}
    return {
        **{
            "reference": f"evaluation/{name}@1",
            "model": {"name": name, "url": f"root/{name}"},
            "suite": "olmo2_table9",
        },
        **{"limit": None, "scores": scores, "training": training, "mean": mean},
        "decontamination": {task: {"status": "unknown", "items": []} for task in scores},
        **more,
    }


class Whole(HTMLParser):
    """Collects tags, attributes and whether every element that must be closed is."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> Whole:
    whole = Whole()
    whole.feed(page)
    whole.close()
    assert whole.open == []
    return whole


def test_the_page_is_whole_and_loads_nothing() -> None:
    page = report_page.page([evaluation("a", 10**11, 0.4), evaluation("b", 2 * 10**11, 0.5)], published.references())
    whole = parsed(page)
    assert "<script" not in page
    assert {value for name, value in whole.attributes if name in ("src", "href")} == set()
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page) == []
    assert page.count("<svg") == 3  # percent over tokens, bits over tokens, compute
    for figure in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(figure)


def test_the_table_is_the_paper_s() -> None:
    page = report_page.page([evaluation("ours", 10**11, 0.4)], published.named(["OLMo-2-7B"]))
    head = re.findall(r"<th>(.*?)</th>", page)[:12]
    assert head == [
        "model",
        "Avg",
        "MMLU",
        "ARC_C",
        "HSwag",
        "WinoG",
        "NQ",
        "DROP",
        "AGIEval",
        "GSM8K",
        "MMLU-Pro",
        "TQA",
    ]
    ours = re.search(r'<tr class="ours"><td>small, 100B</td>(.*?)</tr>', page)
    assert ours is not None and ours[1].count("40.0") == 11 and "39.4 to 40.6" in ours[1]
    theirs = re.search(r"<td>OLMo-2-7B</td>(.*?)</tr>", page)
    assert theirs is not None
    assert re.findall(r"[\d.]+", theirs[1])[:3] == ["62.9", "63.7", "79.8"]


def test_an_average_of_fewer_items_or_columns_is_not_shown_as_the_paper_s() -> None:
    limited = report_page.page([evaluation("ours", 10**11, 0.4, limit=10)], ())
    assert (
        "39.4 to 40.6" not in limited and "<svg" not in limited.split("Average against")[-1]
    ) or "Average against" not in limited
    other = report_page.page([evaluation("ours", 10**11, 0.4, TEN[:3], suite="custom")], ())
    assert "Average against" not in other and "40.0<small>mc" in other


def test_a_later_evaluation_of_another_suite_hides_nothing() -> None:
    page = report_page.page(
        [evaluation("ours", 10**11, 0.4), evaluation("ours", 10**11, 0.4, ("coqa",), suite="custom")], ()
    )
    assert "39.4 to 40.6" in page and "Average against" in page


def test_the_mean_of_a_suite_has_its_curve_where_all_tasks_have_one_unit() -> None:
    def page(**more: Any) -> str:
        return report_page.page([evaluation("a", 10**11, 0.4, **more), evaluation("b", 2 * 10**11, 0.5, **more)], ())

    assert ">mean of olmo2_table9</text>" not in page()  # lambada is in bits
    assert ">mean of olmo2_table9</text>" in page(scores={task: score(0.4) for task in TEN})


def test_text_from_data_is_escaped() -> None:
    name = '<img src=x onerror="alert(1)">'
    page = report_page.page([evaluation(name, 10**11, 0.4, training=None), evaluation(name + "2", 2 * 10**11, 0.5)], ())
    assert "<img" not in page and "&lt;img src=x" in page
    parsed(page)


def test_a_page_of_nothing_says_so() -> None:
    assert "No evaluation is committed" in report_page.page([], ())
    parsed(report_page.page([], ()))


def test_axes_hold_their_data_and_round_ticks() -> None:
    linear = charts.axis([3.1, 9.7], 0, 100)
    assert 0 < linear.at(3.1) < linear.at(9.7) < 100
    assert linear.ticks() == [4.0, 6.0, 8.0, 10.0]
    log = charts.axis([5e22, 1.6e24], 0, 100, is_log=True)
    assert log.at(1e23) - log.at(5e22) == pytest.approx(log.at(1e24) - log.at(5e23))
    assert log.ticks() == pytest.approx([5e22, 1e23, 2e23, 5e23, 1e24])
    assert charts.axis([2.0], 0, 10).at(2.0) == pytest.approx(5.0)  # one value has room too


def test_the_frontier_is_the_best_with_no_more_compute() -> None:
    points = [("a", 1e22, 40.0), ("worse", 1e23, 35.0), ("b", 2e23, 60.0)]
    figure = charts.scatter([Series(name, [Point(x, y)]) for name, x, y in points], "t", "x", "y")
    root = ElementTree.fromstring(figure)
    dashed = next(one for one in root.iter() if one.get("stroke-dasharray"))
    corners = [tuple(map(float, pair.split(","))) for pair in str(dashed.get("points")).split()]
    dots = {one.get("cx"): one.get("cy") for one in root.iter() if one.tag.endswith("circle")}
    assert len(corners) == 4 and len(dots) == 3
    assert [y for _, y in corners] == sorted((y for _, y in corners), reverse=True)  # svg's y grows downwards


def test_names_cover_no_other_name_and_no_dot() -> None:
    named = [(one.name, 400.0 + 3 * i, 200.0 + 2 * i, "#000000") for i, one in enumerate(published.references()[:8])]
    root = ElementTree.fromstring(f"<g>{charts._placed(named)}</g>")
    boxes = []
    for text in root:
        left, below = float(str(text.get("x"))), float(str(text.get("y")))
        boxes.append((left, below - 11, left + charts.CHARACTER * len(str(text.text)), below + 2))
    dots = [(x - 5, y - 5, x + 5, y + 5) for _, x, y, _ in named]
    assert len(boxes) == 8
    assert not any(charts._covers(one, other) for i, one in enumerate(boxes) for other in [*boxes[:i], *dots])
    assert charts._covers(boxes[0], boxes[0])


def test_the_same_numbers_are_the_same_bytes() -> None:
    evaluations = [evaluation("a", 10**11, 0.4), evaluation("b", 2 * 10**11, 0.5)]
    assert report_page.page(evaluations, published.references()) == report_page.page(
        evaluations, published.references()
    )
