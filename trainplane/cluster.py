"""Starts training runs: in this process, or as Ray Train workers on CPUs with gloo. The only file of the trainplane that knows Ray.

(recipe, root) -> `RunResult`. A worker finds rank and process group set up and calls `trainplane.run.execute` with the plan it is given; whatever
Ray remembers is not used: after a failure the workers go on from our own newest committed checkpoint. Without a cluster one is
started inside this process (no dashboard, no usage statistics) and left running for the next call.
"""

import logging
import os
import tempfile
import threading
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
# Read by Ray's processes, so set before they start: no statistics leave the machine, a slow host is no failure, a killed worker is one.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
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
    """Several runs at the same time on one Ray, each with its own workers; results in the order given.

    The first error is raised when all have ended.
    """
    progress = progress or Progress()
    start_ray()
    with ThreadPoolExecutor(max(1, len(recipes_))) as pool:
        futures = [pool.submit(train, each, root, progress=progress, on_change=on_change) for each in recipes_]
    return [future.result() for future in futures]


def start_ray() -> None:
    """Uses the Ray of this process, else that of RAY_ADDRESS, else starts one here. Raises TriplaneError when none comes up."""
    if ray.is_initialized():
        return
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        return
    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": _python_path()}},
    )


def _python_path() -> str:
    """Workers import what this process imports: the folder our packages lie in (a checkout or an installation), then what was there."""
    folder = str(Path(triplane.__file__).resolve().parents[1])
    return os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])


def on_ray(plan: Plan, watch: Watch) -> None:
    """Trains a run with `runtime.num_workers` Ray Train workers. Raises TriplaneError."""
    start_ray()
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
        look()
    finally:
        ended.set()
        thread.join()
        internal_kv._internal_kv_del(key)


def _worker(config: dict[str, Any]) -> None:
    """One Ray Train worker. Its process group exists already; the plan came frozen from the driver."""

    def tell(row: ledger.Row) -> None:
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
