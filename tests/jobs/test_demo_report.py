"""The report: every figure is in the page, nothing is loaded from outside, and what failed is said to have failed."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest

from jobs import demo_figures as figures
from jobs.demo_claims import Scored
from jobs.demo_report import Example, FunnelPart, MixShare, Report, Run, Stage, as_json, final_lines, render

BYTES = {source: np.array([400.0, 900.0, 250.0]) for source in ("code", "prose", "math")}


def make_run(name: str, first_token: int, steps: int) -> Run:
    tokens = first_token + 512 * np.arange(1, steps + 1)
    falling = 3 + 4 * np.exp(-np.arange(steps) / 30)
    spikes = np.arange(steps) == steps // 2
    return Run(name, tokens, falling, falling / 3, np.linspace(3e-3, 1e-3, steps), spikes, 1 / steps, 0.0)


def make_scored(name: str, num_correct: int, bits_per_byte: float) -> Scored:
    return Scored(name, np.arange(256) < num_correct, {s: sizes * bits_per_byte for s, sizes in BYTES.items()}, BYTES)


@pytest.fixture(scope="module")
def report() -> Report:
    return Report(
        seed=3,
        root="s3://bucket/root",
        num_parameters=1_900_000,
        funnel=[
            FunnelPart("code", "kept", 580, 9_000_000, 2_600_000),
            FunnelPart("code", "held_out", 12, 200_000, 60_000),
            FunnelPart("math", "exact_duplicate", 31, 1_800, 600),
        ],
        mix_shares=[
            MixShare("pretrain", "code", 650, 640),
            MixShare("pretrain", "math", 350, 360),
            MixShare("anneal", "math", 500, 500),
        ],
        runs=[make_run("pretrain", 0, 120), *(make_run(f"anneal, order {i}", 120 * 512, 60) for i in (1, 2, 3))],
        scored=[
            make_scored("pretrained", 18, 2.3),
            *(make_scored(f"anneal, order {i}", 240 + i, 2.2) for i in (1, 2, 3)),
            make_scored("soup", 220, 2.19),
        ],
        examples=[Example("Tom has 7 <apples>?", "7+5=12", ("7 & 7", "7+5=12", "7+5=11"))],
        artifacts=[("token shards of code", "tokens/demo.code@abc", "s3://bucket/root/artifacts/tokens/demo.code/abc")],
        stages=[Stage("corpus", 9.0, False), Stage("pretrain", 100.0, True)],
    )


def test_the_page_loads_nothing_and_runs_nothing(report: Report) -> None:
    page = render(report)
    assert "<script" not in page and "<link" not in page and "<img" not in page and "@import" not in page
    outside = [
        url for url in re.findall(r'(?:href|src|url\()\s*=?\s*["\'(]?([^"\')\s>]+)', page) if not url.startswith("#")
    ]
    assert outside == []


def test_every_figure_of_the_report_is_in_the_page(report: Report) -> None:
    page = render(report)
    for expected in (
        "7.0% → 94.1%",
        "7% → 94%–95%",
        "2.190 vs 2.200",
        "220 of 256",
        "9,000,000",
        "exact duplicate",
        "65.00% → 64.00%",
        "7 &amp; 7",
        "Tom has 7 &lt;apples&gt;?",
        "s3://bucket/root/artifacts/tokens/demo.code/abc",
        "already committed",
        "0.83%",
        "92,160",
    ):
        assert expected in page, expected
    assert page.count("<svg") == 4 and page.count('class="holds"') == 4 and 'class="fails"' not in page


def test_each_svg_is_well_formed_and_described(report: Report) -> None:
    found = re.findall(r"<svg.*?</svg>", render(report), flags=re.DOTALL)
    for text in found:
        root = ElementTree.fromstring(text)
        assert root.attrib["role"] == "img" and len(root.attrib["aria-label"]) > 10 and "viewBox" in root.attrib


def test_the_same_figures_give_the_same_bytes(report: Report) -> None:
    assert render(report) == render(report)


def test_a_claim_that_fails_is_said_plainly_everywhere(report: Report) -> None:
    broken = replace(report, scored=[*report.scored[:-1], make_scored("soup", 220, 2.21)])
    assert 'class="fails"' in render(broken)
    line, where = final_lines(broken, "out/report.html")
    assert (
        line.startswith("did not hold: The soup beats its ingredients' mean in bits per byte")
        and where == "report: out/report.html"
    )
    assert [claim["holds"] for claim in as_json(broken)["claims"]] == [True, True, True, False]


def test_the_last_two_lines_say_what_improved_and_where(report: Report) -> None:
    improved, where = final_lines(report, "out/report.html")
    assert improved.startswith("improved: arithmetic 7.0% -> 94.1%..94.9% by mid-training, soup 85.9% (+0.789, 95 %")
    assert "bits per byte 2.300 -> 2.190" in improved and where == "report: out/report.html"


def test_smoothing_of_a_constant_is_the_constant_and_halves_at_its_half_life() -> None:
    assert np.allclose(figures.smoothed(np.full(50, 2.5), 7), 2.5)
    impulse = np.zeros(200)
    impulse[100] = 1.0
    after = figures.smoothed(impulse, 10)
    assert after[110] / after[100] == pytest.approx(0.5, rel=2e-3)
