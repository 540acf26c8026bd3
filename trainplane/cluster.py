"""Starts training runs: in this process, or as Ray Train workers on CPUs with gloo. The only file of the trainplane that knows Ray.

(recipe, root) -> `RunResult`. A worker finds rank and process group set up and calls `trainplane.run.execute` with the plan it is given; whatever
Ray remembers is not used: after a failure the workers go on from our own newest committed checkpoint. Without a cluster one is
started inside this process (no dashboard, no usage statistics) and left running for the next call.
"""

import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.experimental import internal_kv
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

import triplane
from trainplane import ledger
from trainplane import run as runs
from trainplane.plan import OnChange, Plan
from trainplane.recipe import RunRecipe
from trainplane.run import RunResult, Watch
from triplane import errors, storage
from triplane.progress import Progress

COLLECTIVE_TIMEOUT_SECONDS = 600
POLL_SECONDS = 0.5
# Read by Ray's processes, so set before they start; what the user has set stands.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the machine
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # a slow host is no failure
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how late the end of a run, or of a worker, is noticed; 2 by default
    "RAY_worker_niceness": "0",  # 15 by default: training would wait for everything else on the machine
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",  # Triplane has its own structured log
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning about accelerators this does not use
}


def train(
    recipe: RunRecipe, root: str, *, progress: Progress | None = None, on_change: OnChange = "refuse"
) -> RunResult:
    """Trains a run to its end, or returns it if it is finished. Raises TriplaneError (`trainplane.plan.plan` says which)."""
    launch = runs.in_this_process if recipe.runtime.num_workers == 0 else on_ray
    return runs.train(recipe, root, progress=progress, on_change=on_change, launch=launch)


def train_many(
    recipes_: Sequence[RunRecipe], root: str, *, progress: Progress | None = None, on_change: OnChange = "refuse"
) -> list[RunResult]:
    """Several runs on one Ray, as many at the same time as it has CPUs for; results in the order given.

    The first error is raised when all have ended.
    """
    progress = progress or Progress()
    most = max(map(_cpus, recipes_), default=1)
    start_ray(most)
    # A run beyond the CPUs would wait inside Ray until that gives up.
    at_once = max(1, int(ray.cluster_resources()["CPU"]) // most)
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(train, each, root, progress=progress, on_change=on_change) for each in recipes_]
    return [future.result() for future in futures]


def _cpus(recipe: RunRecipe) -> int:
    return max(1, recipe.runtime.num_workers * recipe.runtime.threads_per_worker)


def start_ray(cpus: int = 1) -> None:
    """Uses the Ray of this process, else that of RAY_ADDRESS, else starts one here, with at least `cpus` CPUs even if that
    shares cores. Raises UsageError when a Ray that is there has fewer."""
    if not ray.is_initialized():
        os.environ.update({name: os.environ.get(name, value) for name, value in SETTINGS.items()})
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        else:
            with _importable():
                shared = cpus if cpus > (os.cpu_count() or 1) else None
                ray.init(num_cpus=shared, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    found = int(ray.cluster_resources().get("CPU", 0))
    if found < cpus:
        raise errors.UsageError(
            f"the run asks for {cpus} CPUs and Ray has {found}: lower runtime.num_workers or runtime.threads_per_worker"
        )


@contextmanager
def _importable() -> Iterator[None]:
    """Puts the folder our packages lie in (a checkout or an installation) on PYTHONPATH, which Ray's workers inherit.

    As a runtime_env it would cost every worker a set-up.
    """
    before = os.environ.get("PYTHONPATH")
    folder = str(Path(triplane.__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def on_ray(plan: Plan, watch: Watch) -> None:
    """Trains a run with `runtime.num_workers` Ray Train workers. Raises TriplaneError."""
    start_ray(_cpus(plan.recipe))
    runtime, key = plan.recipe.runtime, f"triplane/{plan.draft.reference}"
    with tempfile.TemporaryDirectory() as scratch, _followed(key, watch):
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"plan": plan, "key": key},
            torch_config=TorchConfig(backend="gloo", timeout_s=COLLECTIVE_TIMEOUT_SECONDS),
            scaling_config=ScalingConfig(
                num_workers=runtime.num_workers, resources_per_worker={"CPU": runtime.threads_per_worker}
            ),
            run_config=RunConfig(
                name=plan.draft.reference.replace("/", "-"),
                storage_path=scratch if len(ray.nodes()) == 1 else storage.join(plan.root, "ray"),
                failure_config=FailureConfig(max_failures=runtime.max_failures),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            raise _ours(error, plan) from error


@contextmanager
def _followed(key: str, watch: Watch) -> Iterator[None]:
    """A thread that reads how far the first worker is into `watch`. Ray's own key-value store: an actor would be one more process."""
    ended = threading.Event()

    def look() -> None:
        watch.to(int(internal_kv._internal_kv_get(key) or 0))

    def follow() -> None:
        while not ended.wait(POLL_SECONDS):
            look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        internal_kv._internal_kv_del(key)


def _worker(config: dict[str, Any]) -> None:
    """One Ray Train worker. Its process group exists already; the plan came frozen from the driver."""
    told_at = 0.0

    def tell(row: ledger.Row) -> None:
        nonlocal told_at
        if time.monotonic() - told_at > POLL_SECONDS:  # a call to another process, not for every step
            told_at = time.monotonic()
            internal_kv._internal_kv_put(config["key"], str(row["tokens_seen"]))

    runs.execute(config["plan"], tell)


def _ours(error: Exception, plan: Plan) -> errors.TriplaneError:
    """The first worker's error, as it was raised there if it is one of ours: its class (the exit code) and its sentence."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    causes = [getattr(failure, "cause", failure) for failure in failures.values()]
    for cause in causes:
        if isinstance(cause, errors.TriplaneError):
            return type(cause)(str(cause))
    first = str(causes[0]).strip().splitlines()[-1] if str(causes[0]).strip() else type(causes[0]).__name__
    return errors.TriplaneError(
        f"the workers of {plan.draft.reference} failed ({type(causes[0]).__name__}: {first}): the same command goes on from the last checkpoint"
    )
