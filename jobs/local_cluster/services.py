"""The programs of a cluster on one machine, as commands and settings: Spark's master and workers, Ray's nodes, an S3 server.

A folder and free ports -> argument lists, environments, files of settings. Nothing is started here. All listen on loopback; Spark's master takes
only who knows the secret, Ray only who has the token; the S3 server asks nobody, and so stands on loopback alone.
Sources: Spark 4.3 security and standalone guides; Ray 2.60 `ray start --help`, token authentication; moto 5.2 server mode.
"""

import importlib.util
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from triplane.errors import UsageError

LOOPBACK = "127.0.0.1"
STAY_ON_LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # why: ray_node.py
BUCKET = "triplane"
TOKEN_FILE = "ray-token"
SPARK_CONF = "spark-conf"
SPARK_EVENTS = "logs/spark-events"
OBJECT_STORE_BYTES = 200_000_000  # of each Ray node: shards and weights go by storage, not through it
LIGHT_JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:-UsePerfData"
# Read by Ray's processes when they start, as `trainplane.cluster.SETTINGS` and `evalplane.cluster.SETTINGS` have them (a test compares). Not the
# health checks that find a host cut off in seconds: on one machine nobody is cut off, a node that ends closes its connection, and a
# loaded or suspended machine would lose nodes that only wait.
RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
ANY_KEYS = {
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",
}  # moto takes every key, but a client wants one


def require_programs(s3: str | None) -> None:
    """Raises UsageError that names the extra to install for what is missing, or Java."""
    missing = {"pyspark": "data", "ray": "train"} | ({} if s3 else {"moto": "test"})
    for package, extra in missing.items():
        if importlib.util.find_spec(package) is None:
            other = ", or give --s3 the URL of an S3 server that runs" if package == "moto" else ""
            raise UsageError(f"{package} is not installed: pip install 'triplane[{extra}]'{other}")
    home = os.environ.get("JAVA_HOME")
    if shutil.which(str(Path(home, "bin", "java")) if home else "java") is None:
        raise UsageError("Spark needs Java 17 or newer and none was found: install one or set JAVA_HOME")


def free_ports(count: int) -> list[int]:
    """Ports that nobody has on loopback at this moment, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def write_secret(path: Path, text: str) -> None:
    """A file that only its owner reads, from its first moment."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)


def write_settings(folder: Path, spark: str) -> None:
    """The token of Ray and the settings of Spark, its secret among them: new ones for each cluster."""
    write_secret(folder / TOKEN_FILE, secrets.token_hex(32))
    settings = {
        "spark.master": spark,
        "spark.authenticate": "true",
        "spark.authenticate.secret": secrets.token_hex(32),
        "spark.master.rest.enabled": "false",  # it starts programs for whoever asks: CVE-2018-11770
        "spark.ui.killEnabled": "false",
        "spark.driver.host": LOOPBACK,
        "spark.driver.bindAddress": LOOPBACK,
        "spark.executor.extraJavaOptions": LIGHT_JVM,
        "spark.eventLog.enabled": "true",
        "spark.eventLog.compress": "false",
        "spark.eventLog.dir": (folder / SPARK_EVENTS).as_uri(),
    }
    text = "".join(f"{name} {value}\n" for name, value in settings.items())
    write_secret(folder / SPARK_CONF / "spark-defaults.conf", text)


def client_environment(folder: Path, spark: str, ray: str, gcs: str, s3: str) -> dict[str, str]:
    """What a shell exports to use the cluster. Paths to secrets, no secrets."""
    return {
        "TRIPLANE_SPARK_MASTER": spark,
        "SPARK_CONF_DIR": str(folder / SPARK_CONF),
        "SPARK_LOCAL_IP": LOOPBACK,  # also where Spark's pages listen
        "RAY_ADDRESS": gcs,
        "RAY_API_SERVER_ADDRESS": ray,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / TOKEN_FILE),
        "RAY_USAGE_STATS_ENABLED": "0",
        STAY_ON_LOOPBACK[0]: STAY_ON_LOOPBACK[1],
        "AWS_ENDPOINT_URL": s3,
        "AWS_DEFAULT_REGION": os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
    }


def server_environment(record_environment: Mapping[str, str], alias: Path, mark: Mapping[str, str]) -> dict[str, str]:
    """What the cluster's own processes get: this process's environment, so that credentials are inherited and written nowhere, but nothing of
    another cluster's."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SPARK_"))}
    wanted = dict(record_environment)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "TRIPLANE_SPARK_MASTER", STAY_ON_LOOPBACK[0]):
        wanted.pop(name)
        own.pop(name, None)
    ports = free_ports(2)
    return {
        **ANY_KEYS,
        **own,
        **wanted,
        **RAY_SETTINGS,
        **mark,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "TMPDIR": str(alias / "scratch"),
        "SPT_NOENV": "1",  # Ray's workers rename themselves, which must not write over the mark
        "SPARK_LOCAL_DIRS": str(alias / "scratch"),
        "SPARK_NO_DAEMONIZE": "1",
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_DAEMON_JAVA_OPTS": LIGHT_JVM,
        "AUTOSCALER_METRIC_PORT": str(ports[0]),  # else 44217 and 44227, which another Ray on the machine may have
        "DASHBOARD_METRIC_PORT": str(ports[1]),
    }


def s3_server(port: int) -> list[str]:
    """moto's server, which logs no request: objects in memory, conditional writes as S3 has them."""
    return [sys.executable, "-m", "jobs.local_cluster.s3_server", "-H", LOOPBACK, "-p", str(port)]


def spark_master(port: int, page: int) -> list[str]:
    """Spark's standalone master; `page` serves its state."""
    where = ["--host", LOOPBACK, "--port", str(port), "--webui-port", str(page)]
    return [_spark_class(), "org.apache.spark.deploy.master.Master", *where]


def spark_worker(master: str, cores: int, memory_mib: int, folder: Path) -> list[str]:
    """A standalone worker, whose executors run and log below `folder`."""
    limits = ["--cores", str(cores), "--memory", f"{memory_mib}m", "--work-dir", str(folder)]
    where = ["--host", LOOPBACK, "--port", "0", "--webui-port", "0"]
    return [_spark_class(), "org.apache.spark.deploy.worker.Worker", *where, *limits, master]


def ray_head(port: int, dashboard: int, client: int, folder: Path) -> list[str]:
    """Ray's head: the dashboard takes jobs, tasks run on the workers only."""
    ports = ["--port", str(port), "--dashboard-port", str(dashboard), "--ray-client-server-port", str(client)]
    return [
        *_ray_start(folder),
        "--head",
        *ports,
        "--dashboard-host",
        LOOPBACK,
        "--include-dashboard",
        "true",
        "--num-cpus",
        "0",
        *_no_gpu(),
    ]


def ray_worker(gcs: str, cores: int, first: bool, folder: Path) -> list[str]:
    """A Ray node of so many CPUs; the first has the machine's GPUs, as each would count the same ones."""
    return [*_ray_start(folder), "--address", gcs, "--num-cpus", str(cores), *([] if first else _no_gpu())]


def _no_gpu() -> list[str]:
    return ["--num-gpus", "0"]


def _ray_start(folder: Path) -> list[str]:
    """A folder a node: two that start at once in one would race for the names of their sockets."""
    program = [sys.executable, "-m", "jobs.local_cluster.ray_node", "start", "--block"]
    ports = ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
    where = ["--node-ip-address", LOOPBACK, "--temp-dir", str(folder), "--object-store-memory", str(OBJECT_STORE_BYTES)]
    return [*program, *ports, *where, "--disable-usage-stats"]


def _spark_class() -> str:
    import pyspark

    return str(Path(pyspark.__file__).parent / "bin" / "spark-class")


def memory_per_worker_mib(workers: int) -> int:
    """What each Spark worker may give to executors: its share of the machine, less a gibibyte for the rest. At least 1 GiB."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    return max(1024, (total - 1024) // (2 * workers))
