"""A cluster on one machine: Spark's standalone master and workers, a Ray head and workers, an S3 server, brought up, looked at and brought down.

A folder and a number of workers -> a `Record` in the folder and processes that outlive the command. Whatever happens to `up`, also SIGKILL at any
moment, `down` finds what it had started and ends that and nothing else: the record is there before the first process, and all of them carry
its id. What listens, and who may ask: `services.py`.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from jobs.local_cluster import processes, readiness, record, services
from jobs.local_cluster.processes import MARK, Process
from jobs.local_cluster.record import Record
from triplane.errors import TriplaneError, UsageError

ALIASES = Path("/tmp")  # a Unix socket's path has at most 107 bytes, and TMPDIR may be long
GONE_WITH_IT = (services.TOKEN_FILE, services.SPARK_CONF, "scratch")


@dataclass
class _Starter:
    """Starts processes, and notes each in the folder's record before the next."""

    folder: Path
    now: Record
    environment: dict[str, str]
    started: dict[str, Process] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str]) -> None:
        log = self.folder / "logs" / f"{name}.log"
        self.started[name] = processes.start(name, command, self.environment, log)
        self.note("starting")

    def note(self, state: str) -> None:
        self.now = self.now.model_copy(update={"state": state, "processes": tuple(self.started.values())})
        record.write(self.folder, self.now)

    def wait(self, is_ready: Callable[[], bool], waited_for: str) -> None:
        readiness.wait_until(is_ready, waited_for, list(self.started.values()))


def up(folder: Path, workers: int, s3: str | None = None) -> tuple[Record, bool]:
    """Brings a cluster up in `folder` -> its record, and whether it was up already. `s3`: the URL of a server to use instead of one of ours.

    Raises UsageError when the same folder has another cluster or a package is missing, TriplaneError when a process ends or is not ready in
    time; then nothing of it is left running.
    """
    folder = folder.absolute()
    services.require_programs(s3)
    if workers < 1:
        raise UsageError(f"a cluster needs a worker and {workers} are asked for: give --workers 1 or more")
    if (standing := record.read(folder)) is not None:
        return _standing(folder, standing, workers), True
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    planned = _plan(folder, workers, s3)
    if not record.create(folder, planned):
        raise TriplaneError(f"another `triplane cluster up` has just begun in {folder}: wait for it")
    with _nothing_left_on_failure(folder):
        return _bring_up(folder, planned, own_s3=s3 is None), False


def _standing(folder: Path, standing: Record, workers: int) -> Record:
    """The cluster that is there, if it is whole and of the size asked for."""
    if standing.state == "starting" and _of_this_boot(standing) and processes.is_running(standing.starter):
        raise TriplaneError(f"the cluster in {folder} is being started by process {standing.starter.pid}: wait for it")
    missing = dead(standing)
    if standing.state == "starting" or missing:
        why = f"{', '.join(missing)} ended" if missing else "its start was cut short"
        raise TriplaneError(
            f"the cluster in {folder} is not whole ({why}): run `triplane cluster down --folder {folder}` first"
        )
    if standing.workers != workers:
        raise UsageError(
            f"the cluster in {folder} has {standing.workers} workers and {workers} are asked for: bring it down first, or give another --folder"
        )
    return standing


def _plan(folder: Path, workers: int, s3: str | None) -> Record:
    """Names, ports and what to export: all that is known before anything runs."""
    spark, page, ray, gcs, store = (f"{services.LOOPBACK}:{port}" for port in services.free_ports(5))
    identity = secrets.token_hex(4)
    s3 = s3 or f"http://{store}"
    return Record(
        id=identity,
        boot=record.boot(),
        state="starting",
        starter=Process("up", os.getpid(), processes.started_at(os.getpid()) or 0, ""),
        workers=workers,
        cores_per_worker=max(1, (os.cpu_count() or 1) // workers),
        alias=str(ALIASES / f"triplane.{identity}"),
        spark_page=f"http://{page}",
        ray_gcs=gcs,
        environment=services.client_environment(folder, f"spark://{spark}", f"http://{ray}", gcs, s3),
        spark=f"spark://{spark}",
        ray=f"http://{ray}",
        s3=s3,
    )


def _bring_up(folder: Path, planned: Record, own_s3: bool) -> Record:
    alias = Path(planned.alias)
    alias.symlink_to(folder)
    for name in ("logs", services.SPARK_EVENTS, "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    services.write_settings(folder, planned.spark)
    environment = services.server_environment(planned.environment, alias, {MARK: planned.id})
    starter = _Starter(folder, planned, environment)
    _start_heads(starter, alias, own_s3)
    _start_workers(starter, alias)
    if own_s3:
        starter.wait(lambda: readiness.s3_answers(planned.s3), "s3")
        readiness.fetch(f"{planned.s3}/{services.BUCKET}", method="PUT")
    starter.note("up")
    return starter.now


def _start_heads(starter: _Starter, alias: Path, own_s3: bool) -> None:
    """The S3 server, Spark's master and Ray's head, side by side."""
    now = starter.now
    if own_s3:
        starter.start("s3", services.s3_server(_port(now.s3)))
    starter.start("spark-master", services.spark_master(_port(now.spark), _port(now.spark_page)))
    (client,) = services.free_ports(1)
    starter.start("ray-head", services.ray_head(_port(now.ray_gcs), _port(now.ray), client, alias / "ray" / "head"))


def _start_workers(starter: _Starter, alias: Path) -> None:
    """The workers of each, as soon as their head answers, and waits for all."""
    now, token = starter.now, starter.folder / services.TOKEN_FILE
    memory, names = services.memory_per_worker_mib(now.workers), range(1, now.workers + 1)
    starter.wait(lambda: readiness.spark_workers(now.spark_page) >= 0, "spark-master")
    for n in names:
        folder = starter.folder / "logs" / f"spark-worker-{n}"
        starter.start(f"spark-worker-{n}", services.spark_worker(now.spark, now.cores_per_worker, memory, folder))
    starter.wait(lambda: readiness.ray_nodes(now.ray, token) >= 1, "ray-head")
    for n in names:
        worker = services.ray_worker(now.ray_gcs, now.cores_per_worker, n == 1, alias / "ray" / str(n))
        starter.start(f"ray-worker-{n}", worker)
    starter.wait(lambda: readiness.spark_workers(now.spark_page) >= now.workers, f"spark-worker-{now.workers}")
    starter.wait(lambda: readiness.ray_nodes(now.ray, token) > now.workers, f"ray-worker-{now.workers}")
    starter.wait(lambda: readiness.ray_takes_jobs(now.ray, token), "ray-head")


def down(folder: Path) -> int | None:
    """Ends what runs of the folder's cluster -> how many processes; None if there is no cluster. Logs stay. Raises TriplaneError while another
    command is starting it."""
    folder = folder.absolute()
    standing = record.read(folder)
    if standing is None:
        return None
    ours = standing.starter.pid == os.getpid()
    if standing.state == "starting" and not ours and _of_this_boot(standing) and processes.is_running(standing.starter):
        raise TriplaneError(
            f"the cluster in {folder} is being started by process {standing.starter.pid}: wait for it, or interrupt it"
        )
    recorded = standing.processes if _of_this_boot(standing) else ()
    ended = processes.end(lambda: processes.members(standing.id, recorded))
    _remove_traces(folder, Path(standing.alias))
    return ended


def _remove_traces(folder: Path, alias: Path) -> None:
    """Secrets, scratch and the alias go, and the record last: until then `down` can be run again."""
    if alias.is_symlink() and alias.readlink() == folder:
        alias.unlink()
    for name in GONE_WITH_IT:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    (folder / record.NAME).unlink()


@contextmanager
def _nothing_left_on_failure(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            down(folder)
        raise


def dead(standing: Record) -> list[str]:
    """The names of the cluster's processes that do not run."""
    here = _of_this_boot(standing)
    return [process.name for process in standing.processes if not (here and processes.is_running(process))]


def _of_this_boot(standing: Record) -> bool:
    return standing.boot == record.boot()


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])
