"""Real Ray Train workers: one and two see the same batches; a worker killed for real is replaced and the run ends the same."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from trainplane.cluster import train, train_many
from triplane.errors import TriplaneError, UsageError

# Ray 2.60 reads its own deprecated settings when a trainer starts.
pytestmark = pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")

BATCH = 8 * 48


@pytest.fixture(scope="module", autouse=True)
def ray_of_this_module() -> Iterator[None]:
    """`train` starts Ray inside this process; it is closed when the module is done."""
    yield
    ray.shutdown()


def test_one_and_two_workers_see_the_same_batches(root: str, make_recipe: Callable) -> None:
    alone = train(make_recipe(), root)
    one = train(make_recipe(name="one", **{"runtime.num_workers": 1}), root)
    two = train(make_recipe(name="two", **{"runtime.num_workers": 2}), root)
    for name in ("batch_hash", "order_hash", "tokens_by_source", "masked_instances", "num_labels", "lr"):
        columns = [[row[name] for row in run.ledger] for run in (alone, one, two)]
        assert columns[0] == columns[1] == columns[2], name
    assert [row["loss"] for row in one.ledger] == [row["loss"] for row in alone.ledger]
    assert [row["loss"] for row in two.ledger] == pytest.approx([row["loss"] for row in alone.ledger], rel=1e-4)
    assert {row["world_size"] for row in two.ledger} == {2}


def test_the_comparison_sees_another_order(root: str, make_recipe: Callable) -> None:
    one, other = train(make_recipe(), root), train(make_recipe(name="other", **{"data.order_seed": 8}), root)
    assert not {row["batch_hash"] for row in one.ledger} & {row["batch_hash"] for row in other.ledger}


def kill_a_worker_after(log: Path, event: str, killed: list[int]) -> None:
    """SIGKILL to the process that logged the first such event."""
    import json

    end = time.monotonic() + 120
    while time.monotonic() < end and not killed:
        lines = log.read_text().splitlines() if log.exists() else []
        for line in lines:
            if line.endswith("}") and (found := json.loads(line))["event"] == event:
                os.kill(found["pid"], signal.SIGKILL)
                killed.append(found["pid"])
                break
        time.sleep(0.01)


def test_a_killed_worker_is_replaced_and_the_run_goes_on(
    root: str, make_recipe: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "train.log"
    ray.shutdown()  # workers get the environment Ray was started with
    monkeypatch.setenv("TRIPLANE_LOG", str(log))
    changes = {
        "runtime.num_workers": 2,
        "runtime.max_failures": 2,
        "stop_tokens": 400 * BATCH,
        "runtime.checkpoint_every_tokens": 20 * BATCH,
    }
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_after, args=(log, "checkpoint", killed))
    killer.start()
    result = train(make_recipe(name="killed", **changes), root)
    killer.join()
    assert len(killed) == 1
    text = log.read_text()
    assert '"event": "resumed"' in text and f'"pid": {killed[0]}' in text
    assert [row["step"] for row in result.ledger] == list(range(1, 401))
    ray.shutdown()
    reference = train(make_recipe(name="straight", **{**changes, "runtime.num_workers": 0}), root)
    assert [row["batch_hash"] for row in result.ledger] == [row["batch_hash"] for row in reference.ledger]


def test_several_runs_at_the_same_time_and_an_error_that_reaches_the_caller(root: str, make_recipe: Callable) -> None:
    parent = train(make_recipe(), root)
    workers = {"runtime.num_workers": 1, "init_from": parent.reference}
    recipes = [make_recipe(name=f"order-{seed}", **{**workers, "data.order_seed": seed}) for seed in (1, 2)]
    results = train_many(recipes, root)
    assert [result.reference.split("@")[0] for result in results] == ["run/order-1", "run/order-2"]
    assert results == train_many(recipes, root)
    with pytest.raises(UsageError, match=r"asks for 64 CPUs and Ray has \d+"):
        train(make_recipe(name="large", **{"runtime.num_workers": 1, "runtime.threads_per_worker": 64}), root)
    bad = make_recipe(name="bad", **{"runtime.num_workers": 1, "runtime.max_failures": 0, "schedule.peak_lr": 1e15})
    with pytest.raises(TriplaneError, match="step 2"):
        train(bad, root)
