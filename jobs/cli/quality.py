"""`triplane data quality`: trains classifiers of documents and reports how far their scores can be trusted."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli.common import emit_json, reports_errors

app = typer.Typer(no_args_is_help=True, help="Train fastText classifiers of documents, and report on them.")

Root = Annotated[str, typer.Option(help="Where artifacts are: a folder, s3://bucket/prefix or gs://bucket/prefix.")]
Json = Annotated[bool, typer.Option("--json", help="Report as JSON on stdout.")]


@app.command()
@reports_errors
def train(
    recipe: Annotated[Path, typer.Argument(help="A classifier recipe (YAML).")],
    root: Root,
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE, dotted: training.epochs=5")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and split the documents, train nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Trains on the recipe's labelled documents and commits the model; the same recipe and documents give the same bytes."""
    from dataplane import quality
    from triplane.recipe import load

    parsed = load(recipe, quality.QualityRecipe, overrides or ())
    if dry_run:
        plan = quality.plan(parsed, root)
        emit_json(plan) if as_json else print(_plan_text(plan))
        return
    result = quality.train(parsed, root).to_json()
    emit_json(result) if as_json else print(_text(result))


@app.command()
@reports_errors
def report(
    name: Annotated[str, typer.Argument(help="A classifier as name or name@version.")],
    root: Root,
    out: Annotated[
        Path | None, typer.Option(help="A folder for report.html, report.json, thresholds.csv, reliability.csv.")
    ] = None,
    threshold: Annotated[list[float] | None, typer.Option(help="A row of the table; may be given repeatedly.")] = None,
    as_json: Json = False,
) -> None:
    """Precision and recall by threshold, ROC-AUC, average precision and calibration on the documents held out of training."""
    from dataplane import quality

    result = quality.load(root, name, sorted(set(threshold or quality.THRESHOLDS))).to_json()
    if out is not None:
        _write(root, result, out)
    emit_json(result) if as_json else print(_text(result))


def _write(root: str, result: dict[str, Any], out: Path) -> None:
    from dataplane import quality
    from triplane.errors import UsageError

    try:
        from jobs import quality_page
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "matplotlib":
            raise
        raise UsageError(
            "the page is drawn with matplotlib, which is absent: pip install 'triplane[data]', or leave --out out"
        ) from error
    table = quality.held_out_scores(root, result["classifier"])
    quality_page.write(out, result, table["score"].to_numpy(), table["is_positive"].to_numpy())


def _plan_text(plan: dict[str, Any]) -> str:
    import yaml

    lines = [yaml.safe_dump(plan["recipe"], sort_keys=False, allow_unicode=True).rstrip(), f"# {plan['classifier']}"]
    lines += _source_lines(plan["sources"])
    return "\n".join([*lines, *(f"# {side}: {count:,} documents" for side, count in plan["documents"].items())])


def _source_lines(sources: dict[str, dict[str, int]]) -> list[str]:
    return [
        f"# {name}: {count['read']:,} documents read, {count['sampled']:,} sampled, {count['used']:,} used"
        for name, count in sources.items()
    ]


def _text(result: dict[str, Any]) -> str:
    evaluation = result["evaluation"]
    lines = [
        result["classifier"],
        f"model {result['model']}",
        f"sha256 {result['sha256']}",
        *_source_lines(result["sources"]),
        f"held out: {evaluation['positives']:,} {result['label']}, {evaluation['negatives']:,} others",
        f"ROC-AUC {evaluation['roc_auc']:.4f} (standard error {evaluation['roc_auc_standard_error']:.4f}), average precision "
        f"{evaluation['average_precision']:.4f}",
        f"expected calibration error {evaluation['expected_calibration_error']:.4f}, Brier score {evaluation['brier']:.4f}",
        "score >=   taken  precision  recall      F1",
    ]
    for row in evaluation["thresholds"]:
        precision = "none" if row["precision"] is None else f"{row['precision']:.4f}"
        lines.append(f"{row['threshold']:8g} {row['taken']:7,}  {precision:>9}  {row['recall']:.4f}  {row['f1']:.4f}")
    return "\n".join(lines)
