"""What tests of infra/k8s share: the folders as kustomize renders them, each once a session, and the pods inside of any document."""

import copy
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

K8S = Path(__file__).parents[2] / "infra" / "k8s"
Document = dict[str, Any]
Render = Callable[[str], list[Document]]


@cache
def _rendered(folder: Path) -> str:
    return subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True, timeout=60
    ).stdout


@pytest.fixture(scope="session")
def render() -> Render:
    """A folder below infra/k8s -> its documents, yours to change."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is absent: it renders the kustomizations")
    return lambda folder: [one for one in yaml.load_all(_rendered(K8S / folder), yaml.CSafeLoader) if one]


@pytest.fixture(scope="session")
def named(render: Render) -> Callable[[str, str, str], Document]:
    """(folder, kind, name) -> that document, yours to change."""

    def find(folder: str, kind: str, name: str) -> Document:
        [found] = [one for one in render(folder) if (one["kind"], one["metadata"]["name"]) == (kind, name)]
        return copy.deepcopy(found)

    return find


@pytest.fixture(scope="session")
def pods() -> Callable[[Document], list[tuple[Document, Document]]]:
    """A document -> (metadata, spec) of each pod that it describes."""
    return lambda document: list(_pods(document))


def _pods(value: Any) -> Iterator[tuple[Document, Document]]:
    """A pod's spec is what holds containers; its metadata stands beside it."""
    if isinstance(value, list):
        for item in value:
            yield from _pods(item)
    if isinstance(value, dict):
        if isinstance(value.get("spec"), dict) and "containers" in value["spec"]:
            yield value.get("metadata", {}), value["spec"]
        for inner in value.values():
            yield from _pods(inner)
