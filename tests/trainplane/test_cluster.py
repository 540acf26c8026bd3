"""What a run asks of a cluster, from the cluster's resources alone: nothing of Ray is started, and no GPU is needed."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from trainplane import cluster, parallel, run
from trainplane.out_of_memory import OutOfMemory
from trainplane.recipe import RunRecipe

MakeRecipe = Callable[..., RunRecipe]
WORKERS = {"runtime.num_workers": 4, "runtime.threads_per_worker": 3}


def test_a_gpu_a_worker_where_the_cluster_has_as_many(make_recipe: MakeRecipe) -> None:
    scaling, torch_config = cluster.worker_configs(make_recipe(**WORKERS).runtime, {"CPU": 64.0, "GPU": 4.0})
    assert scaling.num_workers == 4 and scaling.use_gpu and scaling.resources_per_worker == {"CPU": 3, "GPU": 1}
    assert torch_config.backend == "cpu:gloo,cuda:nccl"
    assert torch_config.timeout_s == 600 + parallel.START_SECONDS  # the watchdog comes first


@pytest.mark.parametrize("has", [{"CPU": 64.0}, {"CPU": 64.0, "GPU": 3.0}])
def test_cpus_alone_where_it_has_fewer(make_recipe: MakeRecipe, has: dict[str, float]) -> None:
    scaling, torch_config = cluster.worker_configs(make_recipe(**WORKERS).runtime, has)
    assert scaling.num_workers == 4 and not scaling.use_gpu and scaling.resources_per_worker == {"CPU": 3}
    assert torch_config.backend == "gloo"


def test_an_elastic_run_needs_the_fewest(make_recipe: MakeRecipe) -> None:
    runtime = make_recipe(**WORKERS, **{"runtime.min_workers": 2}).runtime
    for gpus, uses in ((1.0, False), (2.0, True)):
        scaling, _ = cluster.worker_configs(runtime, {"CPU": 64.0, "GPU": gpus})
        assert (scaling.num_workers, scaling.use_gpu) == ((2, 4), uses)


@pytest.mark.parametrize(
    ("has", "expected"),
    [({"CPU": 25.0}, 2), ({"CPU": 64.0, "GPU": 9.0}, 2), ({"CPU": 64.0, "GPU": 3.0}, 3), ({"CPU": 6.0}, 1)],
)
def test_runs_beside_each_other_have_a_gpu_each_worker(
    make_recipe: MakeRecipe, has: dict[str, float], expected: int
) -> None:
    """12 CPUs and 4 GPUs, or 3 CPUs and 1 GPU, a run: the largest decides. With 3 GPUs the large one trains on CPUs."""
    large = make_recipe(**WORKERS).runtime
    small = make_recipe(**WORKERS | {"runtime.num_workers": 1}).runtime
    assert cluster._runs_at_once([large, small], has) == expected


def lost(error: Exception) -> WorkerHealthCheckFailedError:
    return WorkerHealthCheckFailedError("A worker health check failed.\nWorker info: ...", failure=error)


def test_failures_are_logged_and_want_of_memory_is_told_once(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Ray's memory monitor ended would only be ended again: that is told as our own error. Other failures are not."""
    log, told = tmp_path / "log", []
    monkeypatch.setenv("TRIPLANE_LOG", str(log))
    monkeypatch.setattr(cluster, "_look_at_nodes", lambda: None)  # it would start a Ray
    monkeypatch.setattr(cluster, "_tell", lambda key, error: told.append((key, error)))
    failures = cluster.Failures("run/tiny@1", "triplane/run/tiny@1", 4)
    failures.after_exception(None, {1: lost(RayActorError(error_msg="The node died.\n  Health check failed."))})
    assert told == []
    failures.after_exception(None, {0: ValueError("closed"), 1: lost(OutOfMemoryError("7.4GB / 7.5GB used"))})
    ((key, error),) = told
    assert key == "triplane/run/tiny@1" and isinstance(error, OutOfMemory) and error.exit_code == 1
    assert str(error).startswith(
        "rank 1 ran out of memory, and Ray ended it (7.4GB / 7.5GB used): lower runtime.microbatch_instances (now 4), "
    )
    first, second = (json.loads(line) for line in log.read_text().splitlines())
    assert first["event"] == "workers failed" and first["run"] == "run/tiny@1"
    assert first["reasons"] == {"1": "The node died. Health check failed."}
    assert second["reasons"] == {"0": "closed", "1": "7.4GB / 7.5GB used"}


def test_a_process_trains_on_the_gpu_that_is_pinned_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.device_of_rank() == torch.device("cpu") or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert run.device_of_rank() == torch.device("cuda", 3)
    monkeypatch.setattr(parallel, "is_distributed", lambda: True)
    for backend, expected in (
        (parallel.GPU_BACKEND, torch.device("cuda", 3)),
        ("cpu:gloo,cuda:gloo", torch.device("cpu")),
    ):
        monkeypatch.setattr(dist, "get_backend_config", lambda backend=backend: backend)
        assert run.device_of_rank() == expected


def test_torchrun_pins_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", called.append)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: called.append((backend, timeout)))
    parallel.join_group(90)
    parallel.join_group()
    assert called == [2, ("cpu:gloo,cuda:nccl", timedelta(seconds=90)), 2, ("cpu:gloo,cuda:nccl", None)]
