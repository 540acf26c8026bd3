"""Ray in this process: the one that is there, that of RAY_ADDRESS, or one started here. Both planes that use Ray come in through this.

What Ray would change in the process that starts it stays as it was: the handler of SIGTERM, PYTHONPATH.
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

import triplane


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
                ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **quiet)
    return int(ray.cluster_resources().get("CPU", 0))


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
