"""Where jobs can be sent: `--to local`, `spark://HOST:PORT`, `ray://HOST:PORT` (or `http://`), `k8s` -> the backend that runs them there.

Builds run on Spark, training and evaluation on Ray; Kubernetes and this machine take all three.
"""

import re
from pathlib import Path

from jobs.submission import kubernetes, ray_jobs
from jobs.submission.job import Backend
from jobs.submission.processes import Processes
from triplane.errors import UsageError

TARGETS = "local, spark://HOST:PORT, ray://HOST:PORT, http://HOST:PORT (a Ray dashboard), k8s"
_SPARK = re.compile(r"spark://[A-Za-z0-9_.-]+:[0-9]+|spark://\[[0-9a-fA-F:]+\]:[0-9]+")


def connect(target: str, plane: str | None = None, manifests: Path | None = None) -> Backend:
    """The backend of a target; with a plane, one that runs it. Raises UsageError."""
    if target == "local":
        return Processes(target)
    if target == "k8s":
        if plane is not None and manifests is None:
            raise UsageError(
                "--to k8s needs --manifests FOLDER: a kustomization of job templates, as infra/k8s/jobs/aws"
            )
        return kubernetes.Kubernetes(target, plane, manifests)
    if target.startswith("spark://"):
        if not _SPARK.fullmatch(target):
            raise UsageError(f"--to {target} names no Spark master: write spark://HOST:PORT")
        if plane not in (None, "data"):
            raise UsageError(
                f"--to {target}: Spark runs builds of data; send {plane} to a Ray cluster (ray://HOST:PORT)"
            )
        return Processes(target)
    if target.startswith(("ray://", "http://", "https://")):
        if plane == "data":
            raise UsageError(
                f"--to {target}: Ray runs training and evaluation; send data to a Spark master (spark://HOST:PORT)"
            )
        return ray_jobs.connect(target)
    raise UsageError(f"--to {target!r} is no place to send a job to: {TARGETS}")
