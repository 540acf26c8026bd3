"""`triplane train ledger | status | export-metrics`: what a run has committed, for people and for other tools."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.common import emit_json, reports_errors
from jobs.cli.train_options import Json, Root, show

Reference = Annotated[str, typer.Argument(help="run/NAME or run/NAME@VERSION, finished or not.")]


class Tool(StrEnum):
    """Who reads the metrics."""

    tensorboard = "tensorboard"
    wandb = "wandb"


@reports_errors
def ledger(reference: Reference, root: Root, json_: Json = False) -> None:
    """The steps of a run: rates, losses and what each batch held; spike scores at the end."""
    from trainplane import status

    reference = status.find(root, reference)
    rows = status.rows(root, reference)
    scores = status.spike_scores(rows)
    if json_:
        emit_json({"run": reference, "rows": rows, "spike_scores": scores})
        return
    for row in rows:
        skipped = "  skipped" if row["skipped"] else ""
        print(
            f"{row['step']:>8} {row['tokens_seen']:>14} lr {row['lr']:.3e} loss {row['loss']:.4f} norm {row['grad_norm']:.3f}{skipped}"
        )
    for name, score in scores.items():
        print(f"{name}: {score:.3f} %")


@reports_errors
def status(
    reference: Reference,
    root: Root,
    html: Annotated[Path | None, typer.Option(help="Also write the curves as a page.")] = None,
    json_: Json = False,
) -> None:
    """How far a run is and how it went: loss curve, skipped steps, spike scores by the paper's and OLMo-core's definition."""
    from trainplane import curve
    from trainplane import status as statuses

    found = statuses.status(root, reference)
    if html is not None:
        html.write_text(statuses.page(root, found["run"]))
    if not json_:
        losses = [row["loss"] for row in statuses.rows(root, found["run"])]
        print("\n".join(["loss", *curve.text(losses)]))
    show(found, json_)


@reports_errors
def export_metrics(
    reference: Reference,
    root: Root,
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    to: Annotated[Tool, typer.Option(help="Who will read them.")] = Tool.tensorboard,
    project: Annotated[str, typer.Option(help="W&B project.")] = "triplane",
    json_: Json = False,
) -> None:
    """Write a run's ledger as TensorBoard events, or as an offline W&B run. Nothing is sent."""
    from trainplane import metrics_adapters
    from trainplane import status as statuses

    run = statuses.find(root, reference)
    rows = statuses.rows(root, run)
    if to is Tool.tensorboard:
        written, then = (
            metrics_adapters.to_tensorboard(rows, out / run.removeprefix("run/")),
            f"tensorboard --logdir {out}",
        )
    else:
        written = metrics_adapters.to_wandb(rows, out, run, project)
        then = f"wandb sync {written}"
    show({"run": run, "steps": len(rows), "written": str(written), "then": then}, json_)
