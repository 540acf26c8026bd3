"""`triplane convert`: a model in one of three layouts becomes the same model in another."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli.common import reports_errors
from jobs.cli.train_options import DryRun, Json, show
from triplane.errors import UsageError


class Layout(StrEnum):
    """Hugging Face and OLMo-core are local folders; a checkpoint is an artifact below a root."""

    huggingface = "huggingface"
    olmo_core = "olmo-core"
    checkpoint = "checkpoint"


@reports_errors
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A checkpoint or run of ours, a Hugging Face folder, or an OLMo-core step: a folder or URL."
        ),
    ],
    to: Annotated[Layout, typer.Option(help="The layout to write.")] = Layout.huggingface,
    out: Annotated[Path | None, typer.Option(help="The folder to write, for huggingface and olmo-core.")] = None,
    root: Annotated[str | None, typer.Option(help="Where artifacts are, for checkpoint.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="A tokenizer.json, its folder or its name on the Hub.")] = None,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Write a model in another layout: ours, Hugging Face's or OLMo-core's. Values do not change; nothing that could run code is read."""
    if to is Layout.checkpoint:
        show(_to_checkpoint(source, root, tokenizer, dry_run), json_)
        return
    if out is None:
        raise UsageError(f"--to {to.value} writes a folder: name it with --out")
    model, found = _load(source)
    if not dry_run:
        _write(model, to, out, tokenizer)
    written = {"from": found, "to": to.value, "out": str(out), "model_config": model.config.to_dict()}
    show(written, json_)


def _load(source: str) -> tuple[Any, str]:
    """(the model, its layout)."""
    from triplane.lm import olmo_core_layout, weights

    if olmo_core_layout.is_olmo_core(source):
        return olmo_core_layout.from_olmo_core(source), Layout.olmo_core.value
    model, info = weights.load_model(source)
    return model, info["format"]


def _write(model: Any, to: Layout, out: Path, tokenizer: str | None) -> None:
    from triplane import tokenizer_source
    from triplane.lm import export, olmo_core_layout

    if to is Layout.olmo_core:
        olmo_core_layout.to_olmo_core(model, out)
        return
    export.to_huggingface(model, out, None if tokenizer is None else tokenizer_source.read(tokenizer))


def _to_checkpoint(source: str, root: str | None, tokenizer: str | None, dry_run: bool) -> dict[str, Any]:
    from trainplane import released
    from triplane.lm import olmo_core_layout

    if root is None:
        raise UsageError("--to checkpoint commits an artifact: say below which --root")
    if olmo_core_layout.is_olmo_core(source):
        raise UsageError(f"{source} is in OLMo-core's layout: convert it to a Hugging Face folder first")
    draft, _, _ = released.plan(root, source, tokenizer)
    return {"checkpoint": draft.reference if dry_run else released.commit(root, source, tokenizer)}
