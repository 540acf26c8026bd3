"""Every kustomization of infra/k8s: it builds, the same each time, and the checker of `triplane submit --dry-run` finds nothing in it."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.manifests import check, policy

ROOT = Path(__file__).parents[2]
K8S = ROOT / "infra" / "k8s"
PLATFORMS = ("base", "overlays/aws", "overlays/local")
JOBS = ("jobs/base", "jobs/aws", "jobs/aws-efa", "jobs/local")
# What no repository holds: a person makes it, or `triplane submit` with the job.
MADE_ELSEWHERE = (
    "Secret 'triplane-metrics'",
    "Secret 'triplane-storage'",
    *(f"ConfigMap 'triplane-{plane}-recipe'" for plane in ("data", "train", "eval")),
)
CLUSTER_WIDE = {"Namespace", "ClusterQueue", "ResourceFlavor"}
Document = dict[str, Any]
Render = Callable[[str], list[Document]]


def unexpected(folders: list[Path]) -> list[str]:
    """What the checker says of folders that are all there is, without the objects that others make."""
    return [
        str(one)
        for one in check.findings(folders, whole=True)
        if not any(name in one.message for name in MADE_ELSEWHERE)
    ]


@pytest.mark.parametrize("folder", PLATFORMS + JOBS)
def test_builds_the_same_each_time(folder: str, rendered: Callable[[str], str]) -> None:
    again = subprocess.run(["kubectl", "kustomize", str(K8S / folder)], capture_output=True, text=True, check=True)
    assert again.stdout == rendered(folder) != ""


@pytest.mark.parametrize(("platform", "jobs"), [("aws", "aws"), ("aws", "aws-efa"), ("local", "local")])
def test_platform_and_jobs_have_no_mistake(platform: str, jobs: str, render: Render) -> None:
    assert render(f"overlays/{platform}")
    assert unexpected([K8S / "overlays" / platform, K8S / "jobs" / jobs]) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("shutdownAfterJobFinishes: true", "shutDownAfterJobFinishes: true", "shutDownAfterJobFinishes"),
        ("shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false", "shutdownAfterJobFinishes"),
        ("mode: token", "mode: tokens", "authOptions.mode"),
        ("queue-name: triplane-train", "queue-name: triplane-trian", "triplane-trian"),
        ("serviceAccountName: triplane-train", "serviceAccountName: triplane-trains", "triplane-trains"),
        ("minReplicas: 2", "minReplicas: 3", "minReplicas"),
    ],
)
def test_a_mistake_in_a_job_is_found(old: str, new: str, told: str, tmp_path: Path, render: Render) -> None:
    """Negative control of the test above: each of these an API server or an operator would take, drop or choke on."""
    document = yaml.safe_dump_all(render("jobs/base"))
    assert old in document
    (tmp_path / "jobs.yaml").write_text(document.replace(old, new))
    found = unexpected([tmp_path / "jobs.yaml", K8S / "base"])
    assert found and all(told in one for one in found)


@pytest.mark.parametrize("folder", JOBS)
def test_jobs_are_one_document_a_plane(folder: str, render: Render) -> None:
    found = {
        one["metadata"]["labels"]["triplane.io/plane"]: (one["kind"], one["metadata"]["name"]) for one in render(folder)
    }
    assert len(render(folder)) == 3
    assert found == {
        "data": ("SparkApplication", "triplane-data"),
        "train": ("RayJob", "triplane-train"),
        "eval": ("RayJob", "triplane-eval"),
    }


def misplaced(documents: list[Document]) -> list[str]:
    """Objects of a namespace outside of ours, and cluster-wide ones with a namespace, which an API server refuses."""
    wanted = [(one, None if one["kind"] in CLUSTER_WIDE else "triplane") for one in documents]
    return [one["metadata"]["name"] for one, where in wanted if one["metadata"].get("namespace") != where]


@pytest.mark.parametrize("folder", PLATFORMS + JOBS)
def test_everything_is_in_our_namespace(folder: str, render: Render) -> None:
    documents = render(folder)
    assert misplaced(documents) == []
    documents[0]["metadata"]["namespace"] = "default"
    assert misplaced(documents) == [documents[0]["metadata"]["name"]]


def images(text: str) -> set[str]:
    return set(re.findall(r"image: (\S+)", text))


@pytest.mark.parametrize("folder", PLATFORMS + JOBS)
def test_images_say_that_they_are_not_pinned(folder: str, render: Render) -> None:
    """What infra/up and submit replace by digest; a name of another kind would slip past them."""
    assert images(yaml.safe_dump_all(render(folder))) <= {"triplane-spark:unpinned", "triplane-ray:unpinned"}


@pytest.mark.parametrize("target", ["aws", "local"])
def test_the_policy_asks_for_digests_and_nothing_else(target: str, render: Render) -> None:
    assert render(f"overlays/{target}")
    found = policy.findings([K8S / "overlays" / target, K8S / "jobs" / target])
    assert len(found) == 8 and all("fill the digest in" in one.message for one in found)


def test_the_component_pins_every_image(tmp_path: Path, render: Render) -> None:
    """Who works with kustomize alone writes registry and digest in one place, and nothing stays unpinned: a SparkApplication's neither."""
    digest = "sha256:" + "0" * 64
    component = yaml.safe_load((K8S / "images" / "kustomization.yaml").read_text())
    pins = [
        {"name": one["name"], "newName": f"registry.example/{one['name']}", "digest": digest}
        for one in component["images"]
    ]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({
        "resources": ["rendered.yaml"], "images": pins, "configurations": ["fields.yaml"],
    }))  # fmt: skip
    (tmp_path / "fields.yaml").write_text((K8S / "images" / "fields.yaml").read_text())
    (tmp_path / "rendered.yaml").write_text(yaml.safe_dump_all(render("jobs/aws") + render("overlays/aws")))
    command = ["kubectl", "kustomize", str(tmp_path)]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert policy.findings([tmp_path]) == []
    assert images(made) == {f"registry.example/triplane-{of}@{digest}" for of in ("spark", "ray")}
