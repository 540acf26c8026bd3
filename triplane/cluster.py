"""Ray in this process: the one that is there, that of RAY_ADDRESS, or one started here. Both planes that use Ray come in through this.

What Ray would change in the process that starts it stays as it was: the handler of SIGTERM, PYTHONPATH. One started here listens on loopback
alone: by itself Ray 2.60 takes the machine's outward address, listens on every interface and asks nobody who it is.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants

import triplane

# "0" is Ray's own setting for loopback, made for other systems; read when Ray is imported, here and in each process that it starts.
CLUSTERS = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR


def start_ray(settings: Mapping[str, str], num_cpus: int | None = None) -> int:
    """Uses the Ray of this process, else that of RAY_ADDRESS, else starts one here with `num_cpus` (its cores, if None) -> its CPUs.

    `settings` are environment variables that Ray's processes read when they start; what the user has set stands.
    """
    if not ray.is_initialized():
        os.environ.update({name: os.environ.get(name, value) for name, value in settings.items()})
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        with _importable(), _our_sigterm():
            if os.environ.get("RAY_ADDRESS"):
                ray.init(**quiet)
            else:
                # "local": else it would join whatever cluster somebody has started on this machine.
                with _on_loopback():
                    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **quiet)
    return int(ray.cluster_resources().get("CPU", 0))


@contextmanager
def _on_loopback() -> Iterator[None]:
    """For what starts inside; this process may join another Ray afterwards. What the user has set stands."""
    if CLUSTERS in os.environ:
        yield
        return
    before = ray_constants.ENABLE_RAY_CLUSTER
    os.environ[CLUSTERS], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        del os.environ[CLUSTERS]


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


@contextmanager
def _our_sigterm() -> Iterator[None]:
    """Keeps what SIGTERM does in this process. Ray would leave with code 15, after a dump of every stack."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)
