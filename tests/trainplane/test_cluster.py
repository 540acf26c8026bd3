"""What a run asks of a cluster, from the cluster's resources alone: nothing of Ray is started, and no GPU is needed."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from trainplane import cluster, parallel, run
from trainplane.recipe import RunRecipe

MakeRecipe = Callable[..., RunRecipe]
WORKERS = {"runtime.num_workers": 4, "runtime.threads_per_worker": 3}


def test_a_gpu_a_worker_where_the_cluster_has_as_many(make_recipe: MakeRecipe) -> None:
    scaling, torch_config = cluster.worker_configs(make_recipe(**WORKERS).runtime, {"CPU": 64.0, "GPU": 4.0})
    assert scaling.num_workers == 4 and scaling.use_gpu and scaling.resources_per_worker == {"CPU": 3, "GPU": 1}
    assert torch_config.backend == "cpu:gloo,cuda:nccl"


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
    monkeypatch.setattr(dist, "init_process_group", called.append)
    parallel.join_group()
    assert called == [2, "cpu:gloo,cuda:nccl"]
