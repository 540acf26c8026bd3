"""Starts training runs: in this process, or as Ray Train workers, with a GPU each where the cluster has as many. The only file of the
trainplane that knows Ray.

(recipe, root) -> `RunResult`. A worker finds rank and process group set up and calls `trainplane.run.execute` with the plan it is given; whatever
Ray remembers is not used (nor is it told of checkpoints, as nothing would read that): after a failure the workers go on from our own newest
committed checkpoint, but one of our own errors would only come again, so it ends the run. Without a cluster one is started inside this
process (no dashboard, no usage statistics) and left running for the next call. SIGTERM to this process, or Ray's notice that a worker's
node will be taken away, has the workers save and return: the first stops the run, the second begins it again on other nodes.
Ctrl-C closes this process's Ray, and the workers with it.
"""

import json
import os
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, TypeVar

import ray
import ray.train
from ray.experimental import internal_kv
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

from trainplane import ledger, out_of_memory, parallel, rendezvous, watchdog
from trainplane import run as runs
from trainplane.elastic import keep_divisor
from trainplane.plan import OnChange, Plan, is_finished
from trainplane.preemption import Notice, sigterm_puts, watching
from trainplane.recipe import RunRecipe
from trainplane.recipe_fields import RuntimeRecipe
from trainplane.run import RunResult, Watch
from triplane import cluster, errors, storage
from triplane.progress import Progress, log

POLL_SECONDS = 0.5
UNWIND_SECONDS = 5
PREEMPTION_POLL_SECONDS = 2.0  # each is a barrier of all workers, beside the step
SHOWN = ("tokens_seen", "loss", "lr")  # of a row, to who watches
ERROR, HUNG, STOP, PREEMPTED = "error", "hung", "stop", "preempted"  # keys below a run's
MAX_REASON = 500
# Read by Ray's processes, so set before they start; what the user has set stands.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the machine
    # Only what waits for a place: it is asked for again, and elastic runs then ask for what is there by now.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how late the end of a run, or of a worker, is noticed; 2 by default
    "RAY_worker_niceness": "0",  # 15 by default: training would wait for everything else on the machine
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",  # Triplane has its own structured log
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning of workers that ask for no GPU; `run.device_of_rank` keeps them off
}


def train(
    recipe: RunRecipe,
    root: str,
    *,
    progress: Progress | None = None,
    on_change: OnChange = "refuse",
    fall_back: bool = False,
    notice: Notice | None = None,
) -> RunResult:
    """Trains a run to its end, or returns it if it is finished. `notice`: of a caller that handles SIGTERM itself. Raises TriplaneError
    (`trainplane.plan.plan` says which)."""
    launch = runs.in_this_process if recipe.runtime.num_workers == 0 else partial(on_ray, notice=notice)
    return runs.train(recipe, root, progress=progress, on_change=on_change, launch=launch, fall_back=fall_back)


def train_many(
    recipes_: Sequence[RunRecipe],
    root: str,
    *,
    progress: Progress | None = None,
    on_change: OnChange = "refuse",
    fall_back: bool = False,
) -> list[RunResult]:
    """Several runs on one Ray, as many at the same time as it has CPUs and GPUs for; results in the order given.

    The first error is raised when all have ended; an interruption at once.
    """
    progress = progress or Progress()
    runtimes = [one.runtime for one in recipes_]
    start_ray(max(map(_cpus, runtimes), default=1))
    at_once = _runs_at_once(runtimes, ray.cluster_resources())
    notice = Notice()

    def call(recipe: RunRecipe) -> Callable[[], RunResult]:
        return lambda: train(recipe, root, progress=progress, on_change=on_change, fall_back=fall_back, notice=notice)

    with sigterm_puts(notice):
        return _interruptible([call(each) for each in recipes_], at_once)


T = TypeVar("T")


def _interruptible(calls: Sequence[Callable[[], T]], at_once: int = 1) -> list[T]:
    """Results of the calls, made in daemon threads, in order. Raises the first error when all have ended.

    Not in this thread, where Ray would take SIGINT for itself and leave with code 0; not in a pool, which is waited for.
    An interruption ends what waits to begin, and Ray, which ends what has begun.
    """
    work: list[tuple[Callable[[], T], Future[T]]] = [(call, Future()) for call in calls]
    futures, left = [future for _, future in work], iter(work)

    def run_what_is_left() -> None:
        for call, future in left:
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

    for _ in range(min(at_once, len(work))):
        threading.Thread(target=run_what_is_left, daemon=True).start()
    try:
        wait(futures)
    except BaseException:
        for future in futures:
            future.cancel()
        ray.shutdown()
        wait(futures, timeout=UNWIND_SECONDS)
        raise
    return [future.result() for future in futures]


def _cpus(runtime: RuntimeRecipe) -> int:
    return max(1, runtime.num_workers * runtime.threads_per_worker)


def _runs_at_once(runtimes: Sequence[RuntimeRecipe], has: Mapping[str, float]) -> int:
    """Runs that fit beside each other: one beyond the CPUs or GPUs would wait inside Ray until that gives up."""
    cpus, gpus = int(has.get("CPU", 0)), int(has.get("GPU", 0))
    fit = [cpus // max(map(_cpus, runtimes), default=1)]
    if on_gpus := [one.num_workers for one in runtimes if one.num_workers and uses_gpus(one, has)]:
        fit.append(gpus // max(on_gpus))
    return max(1, min(fit))


def start_ray(cpus: int = 1, least: int | None = None) -> None:
    """Uses the Ray of this process, else that of RAY_ADDRESS, else starts one here, with at least `cpus` CPUs even if that
    shares cores. Raises UsageError when a Ray that is there has fewer, or fewer than `least`, if given."""
    found = cluster.start_ray(SETTINGS, cpus if cpus > (os.cpu_count() or 1) else None)
    if found < (needed := least or cpus):
        raise errors.UsageError(
            f"the run asks for {needed} CPUs and Ray has {found}: lower runtime.num_workers or runtime.threads_per_worker"
        )


def on_ray(plan: Plan, watch: Watch, fall_back: bool = False, notice: Notice | None = None) -> None:
    """Trains a run with Ray Train workers until it is finished or a notice comes. Raises TriplaneError."""
    runtime = plan.recipe.runtime
    start_ray(_cpus(runtime), (runtime.min_workers or runtime.num_workers) * runtime.threads_per_worker)
    key, mine = f"triplane/{plan.draft.reference}", notice or Notice()
    handled = sigterm_puts(mine) if notice is None else nullcontext()
    with handled, tempfile.TemporaryDirectory() as scratch, _followed(key, watch, mine):
        while not (is_finished(plan) or mine.is_put):
            _forget(key)
            trainer = _trainer(plan, key, fall_back, scratch)
            try:
                _interruptible([trainer.fit])
            except Exception as error:
                raise _told(key) or _told(key, HUNG) or _unknown(error, plan) from error
            if told := _told(key):
                raise told
            if not (is_finished(plan) or mine.is_put or internal_kv._internal_kv_get(f"{key}/{PREEMPTED}")):
                raise errors.TriplaneError(f"the workers of {plan.draft.reference} ended before it: look at Ray's log")


def uses_gpus(runtime: RuntimeRecipe, has: Mapping[str, float]) -> bool:
    """Whether the cluster has a GPU for every worker that the run must have."""
    return has.get("GPU", 0) >= (runtime.min_workers or max(1, runtime.num_workers))


def worker_configs(runtime: RuntimeRecipe, has: Mapping[str, float]) -> tuple[ScalingConfig, TorchConfig]:
    """What a run asks of a cluster that has these resources: a GPU a worker if it has as many, else CPUs alone. What the host exchanges goes
    by gloo even then. Ray pins each worker's GPU."""
    workers: Any = (runtime.min_workers, runtime.num_workers) if runtime.min_workers else runtime.num_workers
    on_gpus = uses_gpus(runtime, has)
    each: dict[str, float] = {"CPU": runtime.threads_per_worker, **({"GPU": 1} if on_gpus else {})}
    backend = parallel.GPU_BACKEND if on_gpus else parallel.CPU_BACKEND
    return (
        ScalingConfig(num_workers=workers, use_gpu=on_gpus, resources_per_worker=each),
        Group(backend=backend, timeout_s=_collective_seconds(runtime)),
    )


def _collective_seconds(runtime: RuntimeRecipe) -> int:
    """What torch waits for a collective: where the watchdog is at work, it comes first."""
    return runtime.collective_timeout_seconds + parallel.START_SECONDS


def _trainer(plan: Plan, key: str, fall_back: bool, scratch: str) -> TorchTrainer:
    """Ray's name for this attempt is used once: Ray would go on from what it remembers of another of the same name."""
    runtime = plan.recipe.runtime
    callbacks: list[Any] = [Failures(plan.draft.reference, key, runtime.microbatch_instances)]
    scaling_config, torch_config = worker_configs(runtime, ray.cluster_resources())
    return TorchTrainer(
        _worker,
        train_loop_config={"plan": plan, "key": key, "fall_back": fall_back},
        torch_config=torch_config,
        scaling_config=scaling_config,
        run_config=RunConfig(
            name=f"{plan.draft.reference.replace('/', '-')}-{uuid.uuid4().hex[:8]}",
            storage_path=scratch if len(ray.nodes()) == 1 else storage.join(plan.root, "ray"),
            failure_config=FailureConfig(max_failures=runtime.max_failures),
            callbacks=callbacks,
        ),
    )


@contextmanager
def _followed(key: str, watch: Watch, notice: Notice) -> Iterator[None]:
    """A thread that reads how far the first worker is into `watch`, and passes the notice on to the workers. Ray's own key-value store: an
    actor would be one more process."""
    ended, seen = threading.Event(), b""

    def look() -> None:
        nonlocal seen
        told = internal_kv._internal_kv_get(key)
        if told and told != seen:
            seen = told
            watch(json.loads(told))
        if notice.is_put:
            internal_kv._internal_kv_put(f"{key}/{STOP}", b"1")

    def follow() -> None:
        while not ended.wait(POLL_SECONDS):
            try:
                look()
            except Exception:
                if ray.is_initialized():
                    raise
                return  # an interruption has closed Ray

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        if ray.is_initialized():  # else interrupted: the thread may wait for a Ray that is no more
            thread.join()
            _forget(key)


def _worker(config: dict[str, Any]) -> None:
    """One Ray Train worker. Its process group exists already; the plan came frozen from the driver."""
    told_at, plan, notice, key = 0.0, config["plan"], Notice(), config["key"]

    def tell(row: ledger.Row) -> None:
        nonlocal told_at
        if time.monotonic() - told_at > POLL_SECONDS:  # a call to another process, not for every step
            told_at = time.monotonic()
            internal_kv._internal_kv_put(key, json.dumps({name: row[name] for name in SHOWN}))

    if _told(key):  # by the workers before these
        return
    internal_kv._internal_kv_del(f"{key}/{HUNG}")  # of them too, and mended by starting anew
    data, runtime = plan.recipe.data, plan.recipe.runtime
    try:
        batch_instances = data.global_batch_tokens // data.sequence_length_tokens
        if runtime.min_workers and not keep_divisor(batch_instances, _collective_seconds(runtime)):
            return
        stop, preempted = partial(_is_stopped, key), partial(_is_preempted, key)
        with watching(stop, notice, POLL_SECONDS), watching(preempted, notice, PREEMPTION_POLL_SECONDS):
            runs.execute(plan, tell, notice, config["fall_back"], partial(_end_hung, key))
    except errors.TriplaneError as error:
        _tell(key, error)
        if parallel.world_size() > 1:
            raise  # other ranks may wait for this one in a collective: Ray ends them, and starts workers that return at once


def _look_at_nodes() -> None:
    """Has Ray Train's coordinator see which nodes are left. It looks every 20 s: till then an elastic run would ask for places on a node that is
    lost."""
    with suppress(ValueError, ray.exceptions.RayError):  # there is one for elastic runs only
        coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
        ray.get(coordinator.get_reserved_resources.remote("triplane", recompute=True), timeout=UNWIND_SECONDS)


_sigterm = Notice()  # of this worker's process


def _listen() -> tuple[tuple[str, int], int]:
    address = ray.util.get_node_ip_address()
    port, listener = rendezvous.listen(address)
    return (address, port), listener


def _join(backend: str, place: tuple[str, int], ranks: int, timeout_seconds: float, listener: int) -> None:
    """In a worker's main thread, where at SIGTERM Ray would end the process at once."""
    _set_torch_distributed_env_vars()
    rank, own = ray.train.get_context().get_world_rank(), ray.util.get_node_ip_address()
    rendezvous.join(backend, place, rank, ranks, timeout_seconds, listener if rank == 0 else None, own)
    signal.signal(signal.SIGTERM, lambda number, frame: _sigterm.put())


class _Group(_TorchBackend):
    """Sets the group up in the place of Ray, whose store of it would listen on every interface."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        place, listener = worker_group.execute_single(0, _listen)
        ranks, timeout = len(worker_group), backend_config.timeout_s
        worker_group.execute(_join, backend_config.backend, place, ranks, timeout, listener)


class Group(TorchConfig):
    """A process group that listens on its nodes' addresses alone, and whose workers take SIGTERM as a notice: the run is saved where it is, and
    begun again with other workers."""

    @property
    def backend_cls(self) -> type[_Group]:
        return _Group


class Failures(UserCallback):
    """Logs, in Ray's controller, which workers failed. One that Ray ended for want of memory is told of as an error of ours: as it would
    fail again, the run ends."""

    def __init__(self, reference: str, key: str, microbatch_instances: int) -> None:
        self._reference, self._key, self._microbatch_instances = reference, key, microbatch_instances

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        causes = {rank: _cause(error) for rank, error in worker_exceptions.items()}
        reasons = {str(rank): " ".join(str(cause).split())[:MAX_REASON] for rank, cause in causes.items()}
        log("workers failed", run=self._reference, reasons=reasons)
        _look_at_nodes()
        for rank, cause in causes.items():
            if isinstance(cause, ray.exceptions.OutOfMemoryError):
                had = f", and Ray ended it ({reasons[str(rank)]})"
                told = out_of_memory.sentence(f"rank {rank}", had, self._microbatch_instances)
                _tell(self._key, out_of_memory.OutOfMemory(told))


def _is_stopped(key: str) -> bool:
    return internal_kv._internal_kv_get(f"{key}/{STOP}") is not None


def _is_preempted(key: str) -> bool:
    """Whether the node of one of the workers will be taken away, or this worker was sent SIGTERM. Every worker asks as often as the others:
    Ray answers when all have asked."""
    if ray.train.get_preemption_info() is None and not _sigterm.is_put:
        return False
    internal_kv._internal_kv_put(f"{key}/{PREEMPTED}", b"1")
    return True


def _tell(key: str, error: errors.TriplaneError, part: str = ERROR) -> None:
    """Leaves the first of our own errors for the driver: such an error comes again each of the `max_failures` times that Ray would try."""
    told = json.dumps({"class": type(error).__name__, "message": str(error)})
    internal_kv._internal_kv_put(f"{key}/{part}", told, overwrite=False)


def _end_hung(key: str, sentence: str) -> None:
    """Ends a worker that waits for another; the sentence is the driver's if no restart is left."""
    _tell(key, errors.TriplaneError(sentence), HUNG)
    watchdog.end_process(sentence)


def _told(key: str, part: str = ERROR) -> errors.TriplaneError | None:
    """The error that a worker left: its class (the exit code) and its sentence."""
    told = internal_kv._internal_kv_get(f"{key}/{part}")
    if told is None:
        return None
    values = json.loads(told)
    return getattr(errors, values["class"], errors.TriplaneError)(values["message"])


def _forget(key: str) -> None:
    for name in (key, *(f"{key}/{part}" for part in (ERROR, HUNG, STOP, PREEMPTED))):
        internal_kv._internal_kv_del(name)


def _cause(failure: Exception) -> Exception:
    """What Ray has wrapped: what ended the actor, or what its function raised."""
    return getattr(failure, "health_check_failure", None) or getattr(failure, "cause", None) or failure


def _unknown(error: Exception, plan: Plan) -> errors.TriplaneError:
    """What is not one of our own errors, in a sentence: the first worker's failure, or Ray's."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    causes = [_cause(failure) for failure in failures.values()]
    first = str(causes[0]).strip().splitlines()[-1] if str(causes[0]).strip() else type(causes[0]).__name__
    return errors.TriplaneError(
        f"the workers of {plan.draft.reference} failed ({type(causes[0]).__name__}: {first}): the same command goes on from the last checkpoint"
    )
