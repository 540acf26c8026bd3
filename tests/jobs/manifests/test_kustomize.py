"""Findings in a rendered overlay name the file and line that wrote the mistake: base, patch, or JSON patch."""

import shutil
from pathlib import Path

import pytest

from jobs.manifests import check, kustomize

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl renders kustomizations")
HERE = Path(__file__).parent / "manifests"
MERGE = """apiVersion: ray.io/v1
kind: RayJob
metadata:
  name: train
  namespace: triplane
spec:
  activeDeadlineSeconds: 3600
  rayClusterSpec:
    headGroupSpec:
      template:
        spec:
          containers:
            - name: ray-head
              image: triplane-ray
              imagePullPolicy: Always
"""
OVERLAY = """resources:
  - ../base
patches:
  - path: head.yaml
  - target: {kind: RayJob}
    patch: |
      - op: replace
        path: /spec/rayClusterSpec/workerGroupSpecs/0/maxReplicas
        value: 4
images:
  - name: triplane-ray
    newName: registry.example/triplane-ray
    digest: sha256:0000000000000000000000000000000000000000000000000000000000000000
"""


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    base, folder = tmp_path / "base", tmp_path / "overlay"
    base.mkdir()
    folder.mkdir()
    shutil.copy(HERE / "ray_job.yaml", base / "ray_job.yaml")
    (base / "kustomization.yaml").write_text("resources:\n  - ray_job.yaml\n")
    (folder / "head.yaml").write_text(MERGE)
    (folder / "kustomization.yaml").write_text(OVERLAY)
    return folder


def change(path: Path, old: str, new: str) -> int:
    """Replaces a text that is there once; returns its line."""
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return text[: text.index(old)].count("\n") + 1


def test_a_rendered_overlay_is_checked(overlay: Path) -> None:
    assert check.findings([overlay]) == []
    (document,) = kustomize.rendered(overlay)[0]
    worker = document.value["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert worker["maxReplicas"] == 4
    assert worker["template"]["spec"]["containers"][0]["image"].startswith("registry.example/triplane-ray@sha256:")


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        ("base/ray_job.yaml", "backoffLimit: 0", "backofLimit: 0", "did you mean 'backoffLimit'?"),
        ("base/ray_job.yaml", "serviceAccountName: triplane-train # worker", "serviceAcountName: a", "did you mean 'serviceAccountName'?"),
        ("overlay/head.yaml", "imagePullPolicy: Always", "imagePullPolicy: Alway", "did you mean 'Always'?"),
        ("overlay/head.yaml", "activeDeadlineSeconds: 3600", "activeDeadlineSeconds: 1h", "write an integer"),
        ("overlay/kustomization.yaml", "value: 4", "value: four", 'maxReplicas is "four": write an integer'),
        ("overlay/kustomization.yaml", "  - ../base", "  - ../bas", "../bas is no file or folder here: correct the path"),
        ("overlay/kustomization.yaml", "path: head.yaml", "path: heads.yaml", "heads.yaml is no file or folder here: correct the path"),
        ("base/ray_job.yaml", "  name: train", "  name: [train", "not YAML"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_where_it_was_written(overlay: Path, name: str, old: str, new: str, says: str) -> None:
    line = change(overlay.parent / name, old, new)
    (finding,) = check.findings([overlay])
    assert (Path(finding.file).resolve(), finding.line) == (overlay.parent / name, line + ("[" in new))
    assert says in finding.message


def test_what_kustomize_refuses_is_a_finding(overlay: Path) -> None:
    change(overlay / "kustomization.yaml", "images:", "image:")
    (finding,) = check.findings([overlay])
    assert finding.file == str(overlay / "kustomization.yaml")
    assert 'unknown field "image"' in finding.message


def test_nothing_is_fetched(overlay: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = change(overlay / "kustomization.yaml", "  - ../base", "  - https://example.org/base.yaml")
    monkeypatch.setattr(kustomize.subprocess, "run", lambda *a, **k: pytest.fail("kustomize was run"))
    (finding,) = check.findings([overlay])
    assert finding.line == line and "is no file or folder here" in finding.message


def test_a_circle_and_a_missing_kubectl(overlay: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(overlay))
    assert "install kubectl" in check.findings([overlay])[0].message
    (overlay.parent / "base" / "kustomization.yaml").write_text("resources:\n  - ../overlay\n")
    assert any("remove the circle" in one.message for one in check.findings([overlay]))
