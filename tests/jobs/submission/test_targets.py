"""Where a plane can be sent."""

import re
from pathlib import Path

import pytest

from jobs.submission import targets
from jobs.submission.kubernetes import Kubernetes
from jobs.submission.processes import Processes
from jobs.submission.ray_jobs import RayJobs
from triplane.errors import UsageError


@pytest.mark.parametrize(
    ("target", "planes", "kind"),
    [
        ("local", ["data", "train", "eval"], Processes),
        ("spark://10.0.0.1:7077", ["data"], Processes),
        ("spark://[::1]:7077", ["data"], Processes),
        ("ray://head:8265", ["train", "eval"], RayJobs),
        ("http://127.0.0.1:8265", ["train", "eval"], RayJobs),
        ("https://ray.example.org", ["train", "eval"], RayJobs),
        ("k8s", ["data", "train", "eval"], Kubernetes),
    ],
)
def test_planes_and_places(target: str, planes: list[str], kind: type) -> None:
    assert targets.connect(target).target == target
    for plane in ("data", "train", "eval"):
        if plane in planes:
            assert isinstance(targets.connect(target, plane, Path("manifests")), kind)
        else:
            with pytest.raises(UsageError, match=f"--to {re.escape(target)}: (Spark|Ray) runs "):
                targets.connect(target, plane)


@pytest.mark.parametrize(
    "target", ["", "yarn", "Local", "spark", "spark://", "spark://host", "spark://host:port", "k8s://x", "file:///x"]
)
def test_no_place(target: str) -> None:
    with pytest.raises(UsageError, match="--to "):
        targets.connect(target)


def test_kubernetes_wants_templates_only_to_submit() -> None:
    with pytest.raises(UsageError, match="--to k8s needs --manifests FOLDER"):
        targets.connect("k8s", "train")
    targets.connect("k8s")
