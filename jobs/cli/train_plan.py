"""`triplane train plan`: what a recipe would need of each GPU it asks for, without one: memory, communication, the batch schedule."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli.common import emit_json, reports_errors
from jobs.cli.train_options import Json

GIB, GB = 2**30, 10**9


@reports_errors
def plan(
    recipe: Annotated[Path, typer.Argument(help="A run recipe (YAML).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Recipe keys to replace, as runtime.num_workers=512.")
    ] = None,
    json_: Json = False,
) -> None:
    """Say what a run would need on its GPUs (runtime.num_workers), none of which has to be here. Reads no data, writes nothing."""
    from jobs import train

    loaded = train.load(recipe, overrides or ())
    found = {"recipe": loaded.name, **train.needs(loaded)}
    if json_:
        emit_json(found)
    else:
        print(text(found))


def text(found: dict[str, Any]) -> str:
    """The report as tables. A figure that is estimated says so; the others are counted on real shards."""
    mesh = " x ".join(f"{name} {size:,}" for name, size in found["mesh"].items())
    layout = found["layout"]
    gpus = f"{found['gpus']:,} GPU{'s' if found['gpus'] > 1 else ''} ({mesh})"
    compiled = "compiled" if layout["compile"] else "not compiled"
    lines = [
        f"{found['recipe']}: {found['parameters']:,} parameters, {gpus}, {layout['precision']}, {compiled}, "
        f"activation checkpointing {layout['activation_checkpointing']}",
        *_table("memory of a GPU, GiB", {name: f"{size / GIB:,.2f}" for name, size in found["memory"].items()}),
    ]
    sent = dict(found["communication"])
    calls = sent.pop("collectives")
    volumes = {name: f"{size / GB:,.2f}" for name, size in sent.items()}
    lines += _table("sent by a GPU in a step, GB", volumes | {"calls": f"{calls:,}"})
    schedule = {name: f"{count:,}" for name, count in found["batch"].items()}
    flops = {"TFLOPs_per_gpu_per_step": f"{found['flops_per_gpu_per_step'] / 1e12:,.1f}"}
    return "\n".join([*lines, *_table("batch", schedule | flops)])


def _table(title: str, rows: dict[str, str]) -> list[str]:
    """`activations_estimate` is shown as `activations (estimate)`."""
    names = [name.removesuffix("_estimate").replace("_", " ") for name in rows]
    marks = [" (estimate)" if name.endswith("_estimate") else "" for name in rows]
    return [title, *(f"  {n + m:<28}{v:>16}" for n, m, v in zip(names, marks, rows.values(), strict=True))]
