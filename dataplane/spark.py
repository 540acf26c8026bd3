"""Spark as a scheduler of shards: the session, a map over shards, and attribute tables read and written through Python.

Keys and scores move through Spark; text never does: a task is handed the name of an object and reads it itself. The JVM touches no file system
of ours: tables are Parquet read and written by pyarrow in the workers, whole buckets of keys move as bytes (`exchange`), rows as Arrow where SQL is
asked (`read_table`, `write_by_shard`). What goes to a worker is a module-level function and
frozen parameters. The only module of the dataplane that imports pyspark.

Sources: Spark 4.3 `RDD.partitionBy`, `DataFrame.mapInArrow`, `repartitionById`; longest-processing-time-first packing after Graham 1969.
"""

import atexit
import functools
import heapq
import json
import os
import shutil
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark import SparkConf, SparkContext
from pyspark.java_gateway import launch_gateway
from pyspark.sql import DataFrame, SparkSession

from dataplane import spark_worker
from dataplane.spark_worker import Derive, Emit, Finish, Reduce, ShardFunction
from triplane import artifact, storage
from triplane.errors import TriplaneError
from triplane.progress import Bar

MASTER_VARIABLE = "TRIPLANE_SPARK_MASTER"
# 4 attempts, as on a cluster: with `local[*]` one worker that runs out of memory would end the build.
DEFAULT_MASTER = "local[*,4]"
ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS")
}
PASSED_PREFIXES = ("AWS_", "GOOGLE_", "NUMBA_CACHE_DIR", "TRIPLANE_")
BINS_PER_CORE = 8  # enough tasks that the last ones end together,
TASK_BYTES = 8 << 20  # but none smaller than this unless a core would be idle: starting a task costs 0.1 s
TABLE_TASK_BYTES = 2 << 20
TASK_ROWS = 200_000
POLL_SECONDS = 0.2

Start = Callable[[], SparkSession]  # called only when there is something to do


def session(master: str | None = None) -> SparkSession:
    """The process's Spark session: the one that runs, or a new one (about 5 s) on `master`, `$TRIPLANE_SPARK_MASTER` or this machine's cores.

    TriplaneError when there is no Java or it does not start.
    """
    active = SparkSession.getActiveSession()
    if active is not None and SparkContext._active_spark_context is not None:
        return _with_environment(active)
    _require_java()
    log = _log_file()
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    try:
        context = _context(_settings(_master(master)), log)
    except Exception as error:
        raise TriplaneError(f"Spark did not start on {_master(master)}: {_last_line(log, error)}: see {log}") from error
    context.setLogLevel("OFF")
    return _with_environment(SparkSession.builder.getOrCreate())


def _context(settings: dict[str, str], log: Path) -> SparkContext:
    """Starts the JVM, its own lines going to `log`; or joins the one that spark-submit started, whose settings come before ours."""
    with log.open("ab") as stream:
        if SparkContext._gateway is None:
            conf = SparkConf(loadDefaults=False).setAll(list(settings.items()))
            SparkContext._ensure_initialized(gateway=launch_gateway(conf, {"stdout": stream, "stderr": stream}))
    conf = SparkConf()
    for name, value in settings.items():
        conf.setIfMissing(name, value)
    return SparkContext(conf=conf)


def is_running() -> bool:
    return SparkContext._active_spark_context is not None


def stop() -> None:
    """Ends the session if there is one."""
    active = SparkSession.getActiveSession()
    if active is not None:
        active.stop()


def parallelism(spark: SparkSession) -> int:
    return max(1, spark.sparkContext.defaultParallelism)


def _num_tasks(spark: SparkSession, amount: int, least: int) -> int:
    """How many tasks share an amount of work, each at least `least` of it unless there are cores to spare."""
    cores = parallelism(spark)
    return min(BINS_PER_CORE * cores, max(cores, amount // least))


def pack(weights: Sequence[int], num_bins: int) -> list[list[int]]:
    """Indices of `weights` in `num_bins` bins of nearly equal weight: the heaviest first, each into the lightest bin. No bin is empty."""
    bins: list[list[int]] = [[] for _ in range(min(num_bins, len(weights)))]
    heap = [(0, number) for number in range(len(bins))]
    for index in sorted(range(len(weights)), key=lambda index: (-weights[index], index)):
        load, number = heapq.heappop(heap)
        bins[number].append(index)
        heapq.heappush(heap, (load + max(1, weights[index]), number))
    return bins


def map_shards(
    spark: SparkSession,
    function: ShardFunction,
    tasks: Sequence[dict[str, Any]],
    weights: Sequence[int],
    bar: Bar | None = None,
) -> list[dict[str, Any]]:
    """`function(task)` of every task, on the cluster -> results in task order. Tasks and results are small JSON values.

    `function` is module-level, or a `functools.partial` of one. An error of ours in a worker is raised here with its own class and sentence, once the
    other tasks are done, so that what they committed stays.
    """
    if not tasks:
        return []
    bins = pack(weights, _num_tasks(spark, sum(weights), TASK_BYTES))
    payloads = [[(index, json.dumps(tasks[index])) for index in members] for members in bins]
    # Rows of Python objects, not a DataFrame: planning and compiling a query for what is a list of names costs seconds of a small build.
    mapped = spark.sparkContext.parallelize(payloads, len(bins)).mapPartitions(
        functools.partial(spark_worker.run_tasks, function)
    )
    results = _collect(spark, mapped.collect, len(bins), sum(weights), bar)
    return _values(results, bar)


def exchange(
    spark: SparkSession,
    tasks: Sequence[dict[str, Any]],
    weights: Sequence[int],
    emit: Emit,
    steps: Sequence[tuple[int, Reduce]],
    finish: tuple[int, Finish],
    bar: Bar | None = None,
) -> list[dict[str, Any]]:
    """`emit(task)` gives (part, bytes) pairs. Each of `steps` (number of parts, function) gets all pieces of a part at once and gives pairs again;
    so does `finish`, which gives the part's result -> the results by part, of the parts that have pieces.

    The functions are module-level, or partials of one. Spark moves few large pieces and does not look into them; they come in any order.
    """
    if not tasks:
        return []
    bins = pack(weights, _num_tasks(spark, sum(weights), TASK_BYTES))
    payloads = [[json.dumps(tasks[index]) for index in members] for members in bins]
    rows = spark.sparkContext.parallelize(payloads, len(bins)).mapPartitions(
        functools.partial(spark_worker.emit_pieces, emit)
    )
    for num_parts, reduce in steps:
        pieces = rows.partitionBy(num_parts, spark_worker.part_of)
        rows = pieces.mapPartitions(functools.partial(spark_worker.reduce_pieces, reduce))
    pieces = rows.partitionBy(finish[0], spark_worker.part_of)
    finished = pieces.mapPartitions(functools.partial(spark_worker.finish_pieces, finish[1]))
    return _values(_collect(spark, finished.collect, finish[0], 0, None), bar)


def _values(results: Sequence[tuple[int, str, float]], bar: Bar | None) -> list[dict[str, Any]]:
    """The values of (position, result, CPU seconds) by position, the seconds told to the bar; the first error raised with its own class."""
    if bar is not None:
        bar.spend(sum(seconds for _, _, seconds in results))
    return [spark_worker.raised(json.loads(result)) for _, result, _ in sorted(results)]


def read_table(
    spark: SparkSession,
    root: str,
    manifest: artifact.Manifest,
    columns: Mapping[str, str],
    first_shard: int = 0,
    derive: Derive | None = None,
    derived_from: Sequence[str] = (),
) -> DataFrame:
    """Columns (name -> Spark SQL type) of an artifact's Parquet shards, one after `first_shard` numbering them: `shard int`, then the columns.

    A uint64 column arrives as the bigint with the same bits. `derive` (module-level) adds columns to each shard's table in the
    worker, from `derived_from` among others.
    """
    url = artifact.artifact_url(root, manifest.reference)
    entries = [record.files[0] for record in manifest.records]
    objects = [(storage.join(url, entry.name), entry.bytes) for entry in entries]
    return read_objects(spark, objects, columns, first_shard, derive, derived_from)


def read_objects(
    spark: SparkSession,
    objects: Sequence[tuple[str, int]],
    columns: Mapping[str, str],
    first_shard: int = 0,
    derive: Derive | None = None,
    derived_from: Sequence[str] = (),
) -> DataFrame:
    """As `read_table`, of Parquet objects (URL, bytes)."""
    weights = [size for _, size in objects]
    bins = pack(weights, min(_num_tasks(spark, sum(weights), TABLE_TASK_BYTES), 1 + sum(weights) // TABLE_TASK_BYTES))
    rows = [
        (number, first_shard + index, objects[index][0]) for number, members in enumerate(bins) for index in members
    ]
    columns_of_rows = zip(*rows, strict=True) if rows else ((), (), ())
    kinds = (pa.int32(), pa.int32(), pa.string())
    listing = pa.table(
        [pa.array(list(c), kind) for c, kind in zip(columns_of_rows, kinds, strict=True)], ["bin", "shard", "url"]
    )
    schema = ", ".join(["shard int", *(f"`{name}` {kind}" for name, kind in columns.items())])
    frame = spark.createDataFrame(listing).repartitionById(max(1, len(bins)), "bin")
    return frame.mapInArrow(
        functools.partial(spark_worker.read_shards, dict(columns), derive, tuple(derived_from)), schema
    )


def write_by_shard(
    frame: DataFrame,
    write: Callable[[int, pa.Table], dict[str, Any]],
    num_shards: int,
    num_rows: int,
    bar: Bar | None = None,
) -> list[dict[str, Any]]:
    """`write(shard, rows)` for each shard of `frame`, its rows (`shard int`, `row bigint`, ...) in row order -> results by shard.

    `write` is module-level, or a partial of one; it is called in a worker with all rows of a shard. TriplaneError if Spark fails.
    """
    bins = min(num_shards, _num_tasks(frame.sparkSession, num_rows, TASK_ROWS))
    placed = frame.repartitionById(max(1, bins), "shard").sortWithinPartitions("shard", "row")
    written = placed.mapInArrow(functools.partial(spark_worker.write_shards, write), "shard int, result string")
    results = _collect(frame.sparkSession, written.collect, bins, num_shards, bar)
    return [spark_worker.raised(json.loads(row["result"])) for row in sorted(results, key=lambda row: row["shard"])]


def collect(frame: DataFrame) -> list[Any]:
    """The rows of a small frame: sums and histograms, never documents. TriplaneError if Spark fails."""
    return _collect(frame.sparkSession, frame.collect, 0, 0, None)


def _collect(
    spark: SparkSession, action: Callable[[], list[Any]], num_tasks: int, total: int, bar: Bar | None
) -> list[Any]:
    """What `action` collects, the bar moved on as its tasks end. ^C cancels the job."""
    context = spark.sparkContext
    group, outcome = f"triplane-{uuid.uuid4().hex}", list[Any]()
    failure: list[BaseException] = []

    def work() -> None:
        context.setJobGroup(group, group)
        try:
            outcome.extend(action())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        shown = 0
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            if bar is not None:
                shown = _advance(bar, shown, _done_tasks(context, group, num_tasks) * total // max(1, num_tasks))
    except KeyboardInterrupt:
        context.cancelAllJobs()
        raise
    if failure:
        raise TriplaneError(f"a Spark job failed: {_sentence(failure[0])}") from failure[0]
    if bar is not None:
        _advance(bar, shown, total)
    return outcome


def _advance(bar: Bar, shown: int, now: int) -> int:
    if now > shown:
        bar.advance(now - shown)
    return max(now, shown)


def _done_tasks(context: SparkContext, group: str, num_tasks: int) -> int:
    """Completed tasks of the last stage of the group's jobs, told by its number of tasks."""
    tracker, done = context.statusTracker(), 0
    for job in tracker.getJobIdsForGroup(group):
        info = tracker.getJobInfo(job)
        for stage in info.stageIds if info else ():
            state = tracker.getStageInfo(stage)
            if state is not None and state.numTasks == num_tasks:
                done = max(done, state.numCompletedTasks)
    return done


def _sentence(error: BaseException) -> str:
    """What went wrong in a worker, without the JVM's stack: the last Python exception named, else the first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [
        line
        for line in lines
        if line.split(":")[0].split(".")[-1].endswith(("Error", "Exception")) and not line.startswith(("at ", "File "))
    ]
    python = [line for line in named if not line.startswith(("org.", "java.", "py4j."))]
    return (python or named or lines or [type(error).__name__])[-1 if python else 0]


def _master(master: str | None) -> str:
    return os.environ.get(MASTER_VARIABLE) or master or DEFAULT_MASTER


def _settings(master: str) -> dict[str, str]:
    settings = {
        "spark.app.name": "triplane",
        "spark.master": master,
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.adaptive.coalescePartitions.enabled": "false",
        "spark.sql.shuffle.partitions": str(4 * (os.cpu_count() or 1)),
        "spark.sql.execution.arrow.maxRecordsPerBatch": "10000",
        "spark.sql.session.timeZone": "UTC",
        "spark.python.worker.reuse": "true",
        "spark.sql.warehouse.dir": tempfile.gettempdir(),
    }
    if master.startswith("local"):
        # On one machine the JVM only moves keys: compiling them well and collecting in parallel costs more than it saves.
        folder = tempfile.gettempdir()  # writable, as TMPDIR says; SPARK_LOCAL_DIRS wins
        options = f'-XX:TieredStopAtLevel=1 -XX:+UseSerialGC "-Djava.io.tmpdir={folder}"'
        local = {"host": "127.0.0.1", "bindAddress": "127.0.0.1", "extraJavaOptions": options}
        settings["spark.local.dir"] = folder
        settings |= {f"spark.driver.{name}": value for name, value in local.items()}
    return settings


def _with_environment(spark: SparkSession) -> SparkSession:
    """Workers get one thread a task, and this process's stores and credentials as they are now: with each task, never on a command line."""
    passed = {name: value for name, value in os.environ.items() if name.startswith(PASSED_PREFIXES)}
    spark.sparkContext.environment.update({**ONE_THREAD, **passed})
    return spark


def _require_java() -> None:
    home = os.environ.get("JAVA_HOME")
    if not ((home and (Path(home) / "bin" / "java").exists()) or shutil.which("java")):
        raise TriplaneError("Spark needs Java 17 or newer and none was found: install one or set JAVA_HOME")


def _log_file() -> Path:
    """Where the JVM's own lines go; removed when the process ends well."""
    handle, name = tempfile.mkstemp(prefix="triplane-spark-", suffix=".log")
    os.close(handle)
    atexit.register(Path(name).unlink, missing_ok=True)
    return Path(name)


def _last_line(log: Path, error: BaseException) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip() and "\tat " not in line]
    return lines[-1].strip() if lines else str(error)
