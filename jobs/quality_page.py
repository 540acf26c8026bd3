"""A classifier's report as files: an HTML page that needs nothing else, the same figures as JSON, and two CSV tables.

In: a classifier's JSON (`dataplane.quality`) and the scores it gave to the documents held out. Out: report.html, report.json,
thresholds.csv, reliability.csv; the same bytes for the same figures and drawing library.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dataplane.calibration import NUM_BINS, precision_recall
from jobs import demo_page
from jobs.demo_figures import INK, SOFT, SOURCE_COLOURS, STYLE, as_svg

POSITIVE, NEGATIVE = SOURCE_COLOURS["code"], SOURCE_COLOURS["prose"]
EXPLANATIONS = {
    "curves": "Left: what share of the documents taken is positive, and what share of the positive ones is taken, by "
    "threshold. Middle: one against the other. Right: the share of positive documents among those with such a score, with "
    "its 95 % interval; on the dotted line a score of 0.8 means four in five.",
    "thresholds": "Every figure is of the documents held out, whose shares of the classes are the recipe's. In a corpus with fewer "
    "positive documents, precision is lower at the same threshold and the scores are too high.",
    "sources": "Documents read, sampled, and used: neither empty, nor a repeated text, nor a text of both classes.",
}


def write(folder: Path, report: dict[str, Any], scores: np.ndarray, is_positive: np.ndarray) -> list[Path]:
    """Writes the four files into a folder, which is made -> their paths."""
    evaluation = report["evaluation"]
    files = {
        "report.html": html(report, scores, is_positive),
        "report.json": json.dumps(report, indent=2, sort_keys=True) + "\n",
        "thresholds.csv": table(evaluation["thresholds"]),
        "reliability.csv": table(evaluation["reliability"]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return [folder / name for name in files]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys as CSV; None is an empty cell."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def html(report: dict[str, Any], scores: np.ndarray, is_positive: np.ndarray) -> str:
    """The page."""
    evaluation = report["evaluation"]
    auc = f"{evaluation['roc_auc']:.4f} ± {1.96 * evaluation['roc_auc_standard_error']:.4f}"
    cards = demo_page.cards(
        [
            (auc, "ROC-AUC and its 95 % interval; 0.5 is chance"),
            (f"{evaluation['average_precision']:.4f}", "average precision"),
            (f"{evaluation['expected_calibration_error']:.4f}", "expected calibration error; 0 is calibrated"),
        ]
    )
    lead = f"{evaluation['positives']:,} {report['label']} and {evaluation['negatives']:,} other documents held out of training."
    names = ("documents read", "sampled", "used")
    sources = [
        [name, *(f"{count[key]:,}" for key in ("read", "sampled", "used"))] for name, count in report["sources"].items()
    ]
    body = [
        f'<p class="eyebrow">classifier</p><h1>{demo_page.escape(report["classifier"])}</h1><p class="lead">{demo_page.escape(lead)}</p>',
        cards,
        demo_page.section("Curves", EXPLANATIONS["curves"], figure(evaluation, scores, is_positive)),
        demo_page.section("By threshold", EXPLANATIONS["thresholds"], _thresholds(evaluation["thresholds"])),
        demo_page.section("Sources", EXPLANATIONS["sources"], demo_page.table(("source", *names), sources)),
        f"<footer>sha256 of the model: <code>{demo_page.escape(report['sha256'])}</code></footer>",
    ]
    return demo_page.page(f"{report['classifier']}: how far its scores can be trusted", body)


def _thresholds(rows: Sequence[dict[str, Any]]) -> str:
    header = ("score at least", "taken", "share taken", "precision", "recall", "F1")
    cells = [
        [
            f"{row['threshold']:g}",
            f"{row['taken']:,}",
            f"{row['taken_fraction']:.1%}",
            "none taken" if row["precision"] is None else f"{row['precision']:.4f}",
            f"{row['recall']:.4f}",
            f"{row['f1']:.4f}",
        ]
        for row in rows
    ]
    return demo_page.table(header, cells)


def figure(evaluation: dict[str, Any], scores: np.ndarray, is_positive: np.ndarray) -> str:
    """Precision and recall by threshold, precision over recall, and the reliability diagram above the scores of both classes."""
    with rc_context(STYLE):
        drawing = Figure(figsize=(10.6, 4.4))
        axes = drawing.subplot_mosaic([["by", "pr", "reliable"], ["by", "pr", "scores"]], height_ratios=[3, 1])
        threshold, precision, recall = precision_recall(scores, is_positive)
        axes["by"].step(threshold, precision, where="post", color=POSITIVE, label="precision")
        axes["by"].step(threshold, recall, where="post", color=NEGATIVE, label="recall")
        axes["by"].legend(loc="lower left")
        axes["by"].set(title="By threshold", xlabel="score at least", xlim=(0, 1), ylim=(0, 1.02))
        share = is_positive.mean()
        axes["pr"].step(recall, precision, where="pre", color=INK)
        axes["pr"].axhline(share, color=SOFT, linestyle=":", label=f"chance ({share:.2f})")
        axes["pr"].legend(loc="lower left")
        axes["pr"].set(title="Precision over recall", xlabel="recall", xlim=(0, 1.02), ylim=(0, 1.02))
        _reliability(axes["reliable"], evaluation["reliability"])
        _histogram(axes["scores"], scores, is_positive)
        return as_svg(drawing, "Precision, recall and calibration of the classifier on held-out documents")


def _reliability(axes: Axes, bins: Sequence[dict[str, Any]]) -> None:
    filled = [row for row in bins if row["documents"]]
    x, y = ([row[key] for row in filled] for key in ("mean_score", "positive_fraction"))
    # A normal interval would leave [0, 1] at its ends; Wilson's does not.
    low, high = zip(*(_wilson(row["positive_fraction"], row["documents"]) for row in filled), strict=True)
    axes.plot([0, 1], [0, 1], color=SOFT, linestyle=":")
    axes.vlines(x, low, high, color=POSITIVE, alpha=0.4)
    axes.plot(x, y, "o-", color=POSITIVE, markersize=4)
    axes.set(title="Reliability", ylabel="share positive", xlim=(0, 1), ylim=(-0.02, 1.02), xticklabels=[])


def _wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count`."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return centre - half, centre + half


def _histogram(axes: Axes, scores: np.ndarray, is_positive: np.ndarray) -> None:
    edges = np.linspace(0, 1, 2 * NUM_BINS + 1)
    sides = [np.clip(scores[mask], 0, 1) for mask in (is_positive, ~is_positive)]
    axes.hist(sides, bins=edges.tolist(), stacked=True, color=[POSITIVE, NEGATIVE], label=["positive", "negative"])
    axes.set_ylim(0, 1.45 * axes.get_ylim()[1])
    axes.legend(loc="upper center", ncols=2, fontsize=7.5)
    axes.set(xlabel="score", ylabel="documents", xlim=(0, 1))
