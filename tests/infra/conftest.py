"""What tests of infra share: folders as kustomize renders them, each once a session, the pods inside of any document, a server that plays AWS."""

import copy
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.fakes.world import reset, serving

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
def rendered(render: Render) -> Callable[[str], str]:
    """A folder below infra/k8s -> its text as kustomize gives it."""
    return lambda folder: _rendered(K8S / folder)


@pytest.fixture(scope="session")
def _aws_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """One a session: its start costs more than what is asked of it."""
    with serving(tmp_path_factory.mktemp("server")) as addresses:
        yield addresses


@pytest.fixture(scope="module")
def aws_server(_aws_process: tuple[str, str]) -> tuple[str, str]:
    """(endpoint, socket) of a server that plays AWS, with an empty account."""
    reset(_aws_process[0])
    return _aws_process


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
