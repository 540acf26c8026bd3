"""A report as one self-contained HTML page: no script, nothing loaded from anywhere.

In: evaluations as `report.load_scores` gives them, published models. Out: the page. The table is the paper's (rows models, columns tasks);
curves over tokens where a run has two checkpoints or more; the average against training compute where all ten columns were scored.
Every text that comes from data is escaped here or in `charts`.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

from evalplane import charts, published, report
from evalplane.charts import Point, Series
from evalplane.published import Reference

CSS = """
:root { --ink: #1d2733; --soft: #66717e; --faint: #e3e8ed; --wash: #f6f8fa; --ours: #b3352f; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--wash); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 28px 70px; }
h1 { font-size: 30px; margin: 0 0 6px; letter-spacing: -0.015em; }
h2 { font-size: 19px; margin: 0 0 4px; }
p { color: var(--soft); margin: 0 0 14px; max-width: 90ch; }
section { background: #fff; border: 1px solid var(--faint); border-radius: 12px; padding: 24px 28px; margin: 20px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; font-size: 12.5px; border-bottom: 1.5px solid var(--ink); padding: 6px 12px 6px 0; text-align: right; }
td { border-bottom: 1px solid var(--faint); padding: 6px 12px 6px 0; text-align: right; white-space: nowrap; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
td small { display: block; color: var(--soft); font-size: 11.5px; }
tr.group td { color: var(--soft); font-size: 12.5px; padding-top: 14px; text-align: left; }
tr.ours td { font-weight: 600; background: #fdf4f3; }
tr.ours td:first-child { color: var(--ours); }
svg { width: 100%; height: auto; display: block; }
svg text { font-family: inherit; }
ul { margin: 0; padding-left: 18px; color: var(--soft); font-size: 14px; }
code { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""


TABLE_EXPLAINED = (
    "Percent. Avg is the plain mean of the ten columns and stands only where all ten were scored without a limit. "
    "Under a score of ours: the format that reached it."
)
DETAILS_EXPLAINED = (
    "Value ± standard error. The interval holds the task's score, the best of its formats, with at least 95 %: it reaches further "
    "down than up where two formats are close, as the larger of two estimates errs upwards."
)
COMPUTE_EXPLAINED = (
    "The dashed line is the best average reached with no more compute. Training FLOPs are as published, or 6 x parameters x tokens "
    "for a run of ours; a model without either is not here."
)


def page(evaluations: Sequence[report.Evaluation], beside: Sequence[Reference] = ()) -> str:
    """The whole document."""
    sections = [_table(evaluations, beside), _details(evaluations), _curves(evaluations), _compute(evaluations, beside)]
    sections += [_notes(evaluations, beside), _sources(evaluations)]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>Evaluation</title>'
    about = f"<h1>Evaluation</h1><p>{_counted(evaluations)}</p>"
    body = "\n".join([about, *(one for one in sections if one)])
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{CSS}</style></head>\n<body><main>\n{body}\n</main></body></html>\n'


def label(evaluation: report.Evaluation) -> str:
    """A model as a reader names it: a checkpoint by its run and tokens, others by their column."""
    spent = evaluation.get("training")
    if spent is None:
        return report.column(evaluation)
    limit = evaluation.get("limit")
    return f"{spent['run'].split('@')[0]}, {_tokens(spent['run_tokens'])}" + (f" (first {limit})" if limit else "")


def _counted(evaluations: Sequence[report.Evaluation]) -> str:
    if not evaluations:
        return "No evaluation is committed under this root."
    models = len({report.column(one) for one in evaluations})
    tasks = len({task for one in evaluations for task in one["scores"]})
    return f"{models} model{'s' * (models != 1)} on {tasks} task{'s' * (tasks != 1)}."


def _section(title: str, explanation: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{escape(explanation)}</p>{content}</section>"


def _table(evaluations: Sequence[report.Evaluation], beside: Sequence[Reference]) -> str:
    """The paper's ten columns; nothing when no evaluation has one of them."""
    found = report.cells(evaluations)
    ours: dict[str, dict[str, str]] = {}
    for (task, name), score in found.items():
        if (of := report.published_column(task)) is not None and not report.is_bits(score):
            ours.setdefault(name, {})[of] = f"{100 * score['value']:.1f}<small>{escape(score['format'])}</small>"
    if not ours:
        return ""
    means = {report.column(one): mean for one in evaluations if (mean := report.table_mean(one)) is not None}
    labels = {report.column(one): label(one) for one in evaluations}
    rows = [
        _row([escape(labels[name]), _average(means.get(name)), *_in_order(of)], "ours") for name, of in ours.items()
    ]
    for group in dict.fromkeys(one.group for one in beside):
        rows.append(
            f'<tr class="group"><td colspan="{2 + len(published.columns())}">{escape(group)}, published</td></tr>'
        )
        for one in beside:
            if one.group == group:
                rows.append(
                    _row(
                        [
                            escape(one.name),
                            f"{one.average:.1f}",
                            *_in_order({k: f"{v:.1f}" for k, v in one.scores.items()}),
                        ]
                    )
                )
    header = ["model", "Avg", *published.columns()]
    return _section("The ten columns of OLMo 2's Tables 6 and 9", TABLE_EXPLAINED, _html_table(header, rows))


def _in_order(values: dict[str, str]) -> list[str]:
    return [values.get(name, "") for name in published.columns()]


def _average(mean: dict[str, Any] | None) -> str:
    if mean is None:
        return ""
    held = mean.get("interval")
    return f"{100 * mean['value']:.1f}" + (f"<small>{100 * held[0]:.1f} to {100 * held[1]:.1f}</small>" if held else "")


def _row(cells: Sequence[str], kind: str = "") -> str:
    """A row of cells that are HTML already."""
    return f'<tr class="{kind}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _html_table(header: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(one)}</th>" for one in header)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _details(evaluations: Sequence[report.Evaluation]) -> str:
    """Every task of every model in every format."""
    rows = []
    labels = {report.column(one): label(one) for one in evaluations}
    for (task, name), score in sorted(report.cells(evaluations).items(), key=lambda one: one[0][0]):
        for key, one in score["formats"].items():
            held = score.get("interval") if key == score["format"] else None
            scale, digits = (1, 3) if report.is_bits(one) else (100, 1)
            within = f"{scale * held[0]:.{digits}f} to {scale * held[1]:.{digits}f}" if held else ""
            shown = [
                task,
                labels[name],
                key,
                one["metric"],
                report.number(one),
                within,
                str(one["num_items"]),
                str(one["num_shots_used"]),
            ]
            rows.append(
                _row(
                    [escape(cell) for cell in shown],
                    "ours" if key == score["format"] and len(score["formats"]) > 1 else "",
                )
            )
    if not rows:
        return ""
    header = ["task", "model", "format", "metric", "score", "95 % interval", "items", "shots"]
    return _section("Every format", DETAILS_EXPLAINED, _html_table(header, rows))


def _curves(evaluations: Sequence[report.Evaluation]) -> str:
    """One figure a run and unit with the scores of its checkpoints over tokens."""
    figures = []
    runs = dict.fromkeys(one["training"]["run"] for one in evaluations if one.get("training"))
    for run in runs:
        of_run = sorted(
            (one for one in evaluations if (one.get("training") or {}).get("run") == run),
            key=lambda one: one["training"]["run_tokens"],
        )
        for is_bits in (False, True):
            if series := _series(of_run, is_bits):
                unit = "bits per byte" if is_bits else "percent"
                title = f"{run}: {unit} over tokens"
                figures.append(charts.lines(series, title, f"tokens seen in {run}", unit, _tokens))
    if not figures:
        return ""
    return _section("Over tokens", "A point a checkpoint; bands are 95 % intervals.", "".join(figures))


def _series(evaluations: Sequence[report.Evaluation], is_bits: bool) -> list[Series]:
    """The tasks in one unit, and the means of suites whose tasks all have it; those that several checkpoints have."""
    points: dict[str, dict[int, Point]] = {}
    for one in evaluations:
        tokens = one["training"]["run_tokens"]
        shown = {task: score for task, score in one["scores"].items() if report.is_bits(score) == is_bits}
        if "mean" in one and len(shown) == len(one["scores"]):
            shown[f"mean of {one['suite']}"] = one["mean"]
        for name, score in shown.items():
            points.setdefault(name, {})[tokens] = _point(tokens, score, 1 if is_bits else 100)
    several = {task: list(of.values()) for task, of in points.items() if len(of) > 1}
    colours = charts.PALETTE * len(several)
    return [Series(task, of, colour) for (task, of), colour in zip(several.items(), colours, strict=False)]


def _point(x: float, score: dict[str, Any], scale: float) -> Point:
    low, high = [scale * value for value in score["interval"]] if score.get("interval") else (None, None)
    return Point(x, scale * score["value"], low, high)


def _compute(evaluations: Sequence[report.Evaluation], beside: Sequence[Reference]) -> str:
    """The paper's Figure 1: the average of the ten columns against training FLOPs."""
    figure = [Series(one.name, [Point(one.flops, one.average)], charts.SOFT) for one in beside if one.flops is not None]
    ours: dict[str, list[tuple[str, Point]]] = {}
    for one in evaluations:
        mean, spent = report.table_mean(one), one.get("training")
        if mean is not None and spent is not None:
            ours.setdefault(spent["run"], []).append((label(one), _point(spent["flops"], mean, 100)))
    by_flops = [sorted(of, key=lambda one: one[1].x) for of in ours.values()]
    figure += [Series(of[-1][0], [point for _, point in of], charts.OURS) for of in by_flops]
    if not figure:
        return ""
    return _section(
        "Average against training compute",
        COMPUTE_EXPLAINED,
        charts.scatter(figure, "Average against training FLOPs", "training FLOPs", "average of ten, percent"),
    )


def _notes(evaluations: Sequence[report.Evaluation], beside: Sequence[Reference]) -> str:
    lines = [*report.notes(report.cells(evaluations)), *map(report.contamination, evaluations)]
    said = [line.removeprefix("- ") for line in lines]
    if beside:
        said += [f"Published: {source}" for source in dict.fromkeys(one.source for one in beside)]
        said.append("Columns: " + "; ".join(f"{name} is {what}" for name, what in published.columns().items()))
    if not said:
        return ""
    return _section("Notes", "What makes a score less than it looks, and where the others' are from.", _list(said))


def _list(entries: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(one)}</li>" for one in entries) + "</ul>"


def _sources(evaluations: Sequence[report.Evaluation]) -> str:
    entries = "".join(
        f"<li><code>{escape(str(one.get('reference')))}</code> of <code>{escape(one['model']['url'])}</code></li>"
        for one in evaluations
    )
    if not entries:
        return ""
    return _section("Evaluations", "Each holds its requests' results item by item, as Parquet.", f"<ul>{entries}</ul>")


def _tokens(value: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
