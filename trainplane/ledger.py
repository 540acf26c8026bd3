"""The step ledger: one row a step, committed with the checkpoint that contains the step, so exactly once.

Rows wait in memory until a checkpoint takes them; a killed run loses them together with the steps they tell of, and replays both. So the rows of a
run are those of its committed checkpoints, in order. Read by `triplane.lineage` and by whoever asks which documents were behind a step.
"""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from trainplane.batches import Batch, batch_hash
from trainplane.step import StepMetrics

Row = dict[str, Any]


def row(
    step: int,
    tokens_seen: int,
    batch: Batch,
    row_hashes: np.ndarray,
    num_masked: int,
    metrics: StepMetrics,
    world_size: int,
) -> Row:
    """`row_hashes` (uint64, all instances in the order of the global batch) and `num_masked` are of the global batch."""
    return {
        "step": step,
        "tokens_seen": tokens_seen,
        "position": batch.position,
        "order_hash": batch.order_hash,
        "batch_hash": batch_hash(row_hashes),
        "tokens_by_source": batch.tokens_by_source,
        "masked_instances": num_masked,
        "num_labels": metrics.num_labels,
        "lr": metrics.lr,
        "loss": metrics.loss,
        "z_loss": metrics.z_loss,
        "grad_norm": metrics.grad_norm,
        "update_norm": metrics.update_norm,
        "skipped": metrics.skipped,
        "world_size": world_size,
    }


def to_jsonl(rows: Iterable[Row]) -> bytes:
    """One JSON object a line, keys sorted. Raises ValueError for NaN: a step without a finite loss is never recorded."""
    return b"".join(json.dumps(row, sort_keys=True, allow_nan=False).encode() + b"\n" for row in rows)


def from_jsonl(data: bytes) -> list[Row]:
    return [json.loads(line) for line in data.splitlines()]


class Ledger:
    """The rows since the last committed checkpoint."""

    def __init__(self) -> None:
        self.pending: list[Row] = []

    def add(self, new: Row) -> None:
        self.pending.append(new)

    def take(self) -> list[Row]:
        """The pending rows, which the caller commits."""
        taken, self.pending = self.pending, []
        return taken
