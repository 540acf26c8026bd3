"""Committed evaluations beside each other and beside what was published: Markdown, CSV, JSON; HTML is `report_page`.

In: a root and evaluation references (all committed ones by default). Out: text. Each score stands with its error, the format it was reached
in, and with notes on whatever makes it less than it looks (fewer shots, stand-ins, items that did not fit).
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from evalplane import decontamination, run, training
from evalplane.published import Reference
from evalplane.run import KIND
from evalplane.task import suite_entries
from triplane import artifact, contamination_status

TABLE = "olmo2_table9"  # the suite whose columns are the published ones
CSV_FIELDS = (
    *("model", "reference", "suite", "task", "format", "counts", "metric", "value", "stderr", "low", "high"),
    *("num_items", "num_overlong", "num_shots_used", "reason", "contamination", "tokens", "flops", "source"),
)
Evaluation = dict[str, Any]


def load_scores(root: str, references: Sequence[str] | None = None) -> list[Evaluation]:
    """The metadata of each evaluation with its `reference` and, where that is known, `training`: what was spent on its model. Oldest first.
    What is said of contamination is known now, which may be more than when it was scored.

    All committed ones when none are named. NotFound.
    """
    chosen = references if references is not None else artifact.references(root, KIND)[::-1]
    reports = cache(contamination_status.reports)  # once for all evaluations
    return [_loaded(root, one, reports) for one in chosen]


def _loaded(root: str, reference: str, reports: Callable[[str], list[contamination_status.Report]]) -> Evaluation:
    made = run.Evaluation(artifact.artifact_url(root, reference), artifact.load(root, reference))
    metadata = made.manifest.metadata
    now = decontamination.statuses(root, metadata["model"]["url"], metadata["scores"], made.keys, reports)
    metadata = decontamination.updated(metadata, now)
    spent = training.of_checkpoint(root, metadata["model"]["url"])
    known = {"training": {**asdict(spent), "flops": spent.flops}} if spent is not None else {}
    return {"reference": reference, **metadata, **known}


def markdown(evaluations: Sequence[Evaluation], beside: Sequence[Reference] = ()) -> str:
    """One row a task and one column a model, published ones last; notes below.

    Of two evaluations with the same model and task the later one is shown, and a limit shows in the model's column.
    """
    if not evaluations:
        return "No evaluation is committed under this root.\n"
    columns = list(dict.fromkeys(column(one) for one in evaluations))
    found = cells(evaluations)
    tasks = list(dict.fromkeys(task for task, _ in found))
    rows = [[task, *(_shown(found.get((task, name))) for name in columns), *_published(task, beside)] for task in tasks]
    rows += [[f"mean of {name}", *means, *_averages(name, beside)] for name, means in _means(evaluations, columns)]
    header = ["task", *columns, *(f"{one.name} (published)" for one in beside)]
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    lines.insert(1, "|---" * len(header) + "|")
    said = notes(found)
    said += [contamination(one) for one in evaluations]
    said += [f"- {one.name}: {one.source}" for one in beside]
    return "\n".join([*lines, *(["", *said] if said else []), ""])


def cells(evaluations: Sequence[Evaluation]) -> dict[tuple[str, str], dict[str, Any]]:
    """The score of every (task, model's column); of two with the same name the later one."""
    return {(task, column(one)): score for one in evaluations for task, score in one["scores"].items()}


def column(evaluation: Evaluation) -> str:
    limit = evaluation.get("limit")
    return str(evaluation["model"]["name"]) + (f" (first {limit})" if limit is not None else "")


def published_column(task: str) -> str | None:
    """The published column a task is compared with; None when there is none."""
    return suite_entries()[TABLE].columns.get(task) or {"mmlu": "MMLU", "gsm8k_star": None}.get(task)


def _published(task: str, beside: Sequence[Reference]) -> list[str]:
    name = published_column(task)
    return ["" if name is None else f"{one.scores[name]:.1f} %" for one in beside]


def _means(evaluations: Sequence[Evaluation], columns: Sequence[str]) -> list[tuple[str, list[str]]]:
    found = {(one["suite"], column(one)): one for one in evaluations if "mean" in one}
    suites = dict.fromkeys(suite for suite, _ in found)
    return [(suite, [_mean(found.get((suite, name))) for name in columns]) for suite in suites]


def _mean(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return ""
    mean = evaluation["mean"]
    in_bits = any(is_bits(score) for score in evaluation["scores"].values())
    scale, unit, digits = (1, "", 3) if in_bits else (100, " %", 1)
    held = mean.get("interval")
    within = f" ({scale * held[0]:.{digits}f} to {scale * held[1]:.{digits}f})" if held else ""
    return f"{scale * mean['value']:.{digits}f}{unit}{within}"


def _averages(suite: str, beside: Sequence[Reference]) -> list[str]:
    return [f"{one.average:.1f} %" if suite == TABLE else "" for one in beside]


def _shown(score: dict[str, Any] | None) -> str:
    if score is None:
        return ""
    return f"{number(score)} ({score['metric']}, {score['format']}, n={score['num_items']})"


def is_bits(score: dict[str, Any]) -> bool:
    return bool(score["metric"] == "bits_per_byte")


def number(score: dict[str, Any]) -> str:
    """The value with its standard error; percent, or bits per byte."""
    scale, unit, digits = (1, "", 3) if is_bits(score) else (100, " %", 1)
    error = f" ± {scale * score['stderr']:.{digits}f}" if score["stderr"] is not None else ""
    return f"{scale * score['value']:.{digits}f}{error}{unit}"


def contamination(evaluation: Evaluation) -> str:
    """Which tasks' items are in the training documents, as far as anyone looked."""
    by_status: dict[str, list[str]] = {"contaminated": [], "clean": [], "unknown": []}
    for task, said in evaluation["decontamination"].items():
        counts = {"items": len(said["items"]), "items too short to be found": said.get("unsearched", 0)}
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        items = f" ({told})" if told else ""
        by_status[said["status"]].append(f"{task}{items}")
    statuses = "; ".join(f"{status}: {', '.join(tasks)}" for status, tasks in by_status.items() if tasks)
    return f"- items in the training documents, {column(evaluation)}: {statuses}"


def notes(found: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    """What lessens a score, a line each."""
    return [note for (task, name), score in found.items() for note in _notes(task, name, score)]


def _notes(task: str, column: str, score: dict[str, Any]) -> list[str]:
    made = []
    for name, one in score["formats"].items():
        if one["reason"] is not None:
            shots = "" if is_bits(one) else f"{one['num_shots_used']} shots: "
            made.append(f"- {task} {name}, {column}: {shots}{one['reason']}")
        if one["num_overlong"]:
            made.append(
                f"- {task} {name}, {column}: {one['num_overlong']} items do not fit the model's context and are not scored"
            )
    return made


def as_csv(evaluations: Sequence[Evaluation], beside: Sequence[Reference] = ()) -> str:
    """One line a model, task and format (`counts`: the one that is the task's score), suites' means, and published values in fractions too."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for one in evaluations:
        writer.writerows(_lines(one))
    for reference in beside:
        about = {"model": reference.name, "source": reference.source, "flops": reference.flops}
        values = [*reference.scores.items(), (f"mean of {TABLE}", reference.average)]
        writer.writerows({**about, "task": name, "counts": True, "value": round(of / 100, 6)} for name, of in values)
    return sink.getvalue()


def _lines(evaluation: Evaluation) -> list[dict[str, Any]]:
    spent = evaluation.get("training") or {}
    about = {"model": column(evaluation), "reference": evaluation.get("reference"), "suite": evaluation["suite"]}
    about |= {"tokens": spent.get("tokens"), "flops": spent.get("flops")}
    made = []
    for task, score in evaluation["scores"].items():
        about["contamination"] = evaluation["decontamination"].get(task, {}).get("status")
        for name, one in score["formats"].items():
            counts = name == score["format"]
            low, high = (score.get("interval") if counts else None) or (None, None)
            kept = {key: one.get(key) for key in CSV_FIELDS if key in one}
            made.append({**about, "task": task, "format": name, "counts": counts, "low": low, "high": high, **kept})
    if "mean" in evaluation:
        mean = evaluation["mean"]
        low, high = mean.get("interval") or (None, None)
        values = {"value": mean["value"], "stderr": mean["stderr"], "low": low, "high": high, "counts": True}
        made.append({**about, "contamination": None, "task": f"mean of {evaluation['suite']}", **values})
    return made


def as_json(evaluations: Sequence[Evaluation], beside: Sequence[Reference] = ()) -> str:
    """Everything the other forms show, and all they leave out."""
    whole = {"evaluations": list(evaluations), "published": [asdict(one) for one in beside]}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def table_mean(evaluation: Evaluation) -> dict[str, Any] | None:
    """The mean of the ten published columns, where the evaluation has them all; None where it lacks one or was limited."""
    if evaluation["suite"] == TABLE and evaluation.get("limit") is None and "mean" in evaluation:
        return dict(evaluation["mean"])
    return None
