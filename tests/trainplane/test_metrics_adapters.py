"""What TensorBoard and W&B are given is what the ledger says, value by value."""

import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainplane import metrics_adapters
from triplane.errors import UsageError

ROWS: list[dict[str, Any]] = [
    {
        "step": step, "tokens_seen": 384 * step, "loss": 4.0 / step, "z_loss": 1e-4, "lr": 1e-3 * step, "grad_norm": 1.5, "update_norm": None,
        "num_labels": 376, "masked_instances": 1, "skipped": step == 2, "world_size": 2, "position": step - 1, "order_hash": "ab",
        "batch_hash": "cd", "tokens_by_source": {"web": 300, "math": 84},
    }
    for step in (1, 2, 3)
]  # fmt: skip


def test_a_row_as_scalars() -> None:
    assert metrics_adapters.scalars(ROWS[1]) == {
        "train/loss": 2.0, "train/z_loss": 1e-4, "train/lr": 2e-3, "train/grad_norm": 1.5, "train/tokens_seen": 768.0,
        "train/num_labels": 376.0, "train/masked_instances": 1.0, "train/skipped": 1.0, "train/world_size": 2.0,
        "tokens/web": 300.0, "tokens/math": 84.0,
    }  # fmt: skip


def events(path: Path) -> list[tuple[int, str, float]]:
    """(step, tag, value) of a TFRecord file: length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        at += 16 + length
    return found


def test_tensorboard_reads_every_value(tmp_path: Path) -> None:
    path = metrics_adapters.to_tensorboard(ROWS, tmp_path / "tiny")
    expected = [(row["step"], *pair) for row in ROWS for pair in metrics_adapters.scalars(row).items()]
    found = events(path)
    assert [one[:2] for one in found] == [one[:2] for one in expected]
    assert [one[2] for one in found] == pytest.approx([one[2] for one in expected], rel=1e-6)


def test_exporting_again_replaces_the_file(tmp_path: Path) -> None:
    metrics_adapters.to_tensorboard(ROWS[:1], tmp_path)
    path = metrics_adapters.to_tensorboard(ROWS, tmp_path)
    assert [one for one in tmp_path.iterdir()] == [path] and "tfevents" in path.name
    assert {step for step, _, _ in events(path)} == {1, 2, 3}


def test_wandb_is_offline_and_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in that notes the calls; the library itself is no dependency."""
    started: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, float]]] = []
    ended: list[bool] = []

    def init(**options: Any) -> Any:
        started.append(options)
        return SimpleNamespace(
            log=lambda values, step: logged.append((step, values)), finish=lambda: ended.append(True), dir=str(tmp_path / "wandb/offline-run/files")
        )  # fmt: skip

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for _ in range(2):
        written = metrics_adapters.to_wandb(ROWS, tmp_path, "run/tiny@1", "lab")
    assert written == tmp_path / "wandb/offline-run" and len(ended) == 2
    assert started[0] == started[1] and started[0]["mode"] == "offline" and started[0]["name"] == "tiny@1"
    assert logged[:3] == [(row["step"], metrics_adapters.scalars(row)) for row in ROWS]


@pytest.mark.parametrize(("package", "words"), [("wandb", "pip install wandb"), ("tensorboardX", r"ray\[train\]")])
def test_a_library_that_is_absent_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, words: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"package {package} is not installed \(.*{words}.*read the ledger itself"):
        if package == "wandb":
            metrics_adapters.to_wandb(ROWS, tmp_path, "run/tiny@1", "lab")
        else:
            metrics_adapters.to_tensorboard(ROWS, tmp_path)
