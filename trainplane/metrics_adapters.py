"""Ledger rows as other tools read them: rows -> TensorBoard event files, or a W&B run kept offline. The ledger stays the truth.

Exporting again replaces the event file, and gives the W&B run the same id, so that nothing is counted twice. Nothing is sent: `wandb sync` does
that, by the user's hand. Neither library is needed to train.
"""

import hashlib
import importlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainplane.ledger import Row
from triplane.errors import UsageError

METRICS = (
    "loss", "z_loss", "lr", "grad_norm", "update_norm", "tokens_seen", "num_labels", "masked_instances", "skipped", "world_size",
)  # fmt: skip
EVENTS = "events.out.tfevents.0.triplane"


def scalars(row: Row) -> dict[str, float]:
    """What one row is drawn as: `train/{metric}`, and `tokens/{source}` of its batch. A metric that was not measured is left out."""
    found = {f"train/{name}": float(row[name]) for name in METRICS if row.get(name) is not None}
    return found | {f"tokens/{source}": float(count) for source, count in row["tokens_by_source"].items()}


def to_tensorboard(rows: Sequence[Row], folder: Path) -> Path:
    """Writes one event file in the folder, in place of the one before; its path. Raises UsageError without tensorboardX."""
    writer_of = _imported("tensorboardX", "it comes with ray[train]").SummaryWriter
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        with writer_of(scratch, max_queue=10_000, flush_secs=3600) as writer:
            for row in rows:
                for name, value in scalars(row).items():
                    # The event's time is the step's number: the same rows give the same picture whenever they are exported.
                    writer.add_scalar(name, value, row["step"], walltime=float(row["step"]))
        (written,) = Path(scratch).iterdir()
        written.replace(folder / EVENTS)
    return folder / EVENTS


def to_wandb(rows: Sequence[Row], folder: Path, run: str, project: str) -> Path:
    """Writes an offline run below the folder; the folder that `wandb sync` takes. Raises UsageError without wandb."""
    wandb = _imported("wandb", "pip install wandb")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_SILENT", "true")
    identifier = hashlib.sha256(run.encode()).hexdigest()[:16]
    live: Any = wandb.init(
        mode="offline", dir=str(folder), project=project, name=run.removeprefix("run/"), id=identifier
    )
    try:
        for row in rows:
            live.log(scalars(row), step=row["step"])
        written = Path(live.dir).parent
    finally:
        live.finish()
    return written


def _imported(package: str, how: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UsageError(
            f"the package {package} is not installed ({how}): install it, or read the ledger itself"
        ) from error
