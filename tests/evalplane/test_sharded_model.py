"""Training evaluates the model it holds, sharded over ranks: the numbers of the whole model, equal forwards, and training goes on unchanged."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalplane.task import load_task
from tests.evalplane import sharded_ranks as ranks


@pytest.fixture(scope="module")
def found(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks came to, and the whole model in this process (last)."""
    folder = tmp_path_factory.mktemp("sharded")
    shutil.copytree(model_folder, folder / "model")
    command = [sys.executable, "-m", "tests.evalplane.sharded_ranks", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, stderr=subprocess.PIPE, text=True, timeout=150
    )
    assert ended.returncode == 0, ended.stderr
    whole, _ = ranks.go(folder, 0, "none", True)
    return [*(json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks.WORLD)), whole]


def test_every_rank_has_the_numbers_of_the_whole_model(found: list[dict[str, Any]]) -> None:
    first, second, whole = found
    assert first["score"] == second["score"] and first["sums"] == second["sums"]
    for name in load_task("arc_easy").formats:
        for one, other in zip(first["sums"][name], whole["sums"][name], strict=True):
            assert one == pytest.approx(other, abs=1e-4)
        ours, theirs = (made["score"]["formats"][name]["metrics"] for made in (first, whole))
        assert {m: v["value"] for m, v in ours.items()} == pytest.approx(
            {m: v["value"] for m, v in theirs.items()}, abs=1e-4
        )
    values = np.concatenate([np.array(one) for one in whole["sums"]["cloze"]])
    assert values.std() > 1  # the control: not all alike


def test_forwards_are_equal_though_the_parts_are_not(found: list[dict[str, Any]]) -> None:
    first, second, _ = (one.get("counts") for one in found)
    assert first is not None and second is not None
    assert first["forwards"] != second["forwards"]  # the control: without idling along one would wait for ever
    assert first["forwards"] + first["idle"] == second["forwards"] + second["idle"]


def test_training_goes_on_as_if_nobody_had_asked(found: list[dict[str, Any]]) -> None:
    assert [one["trains_on_alike"] for one in found[: ranks.WORLD]] == [True, True]
