"""The images of job templates: `NAME:unpinned` in a template stands for what pins.yaml says of NAME.

A folder of templates laid out as infra/k8s/jobs/OVERLAY -> the images of infra/pins.yaml; a manifest's value -> the same with its images by digest.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jobs.manifests import lines
from jobs.manifests.lines import mapping

OPEN = "unpinned"


def above(manifests: Path, levels: int) -> Path | None:
    """The folder some levels above the one of the templates, if there are so many."""
    parents = manifests.resolve().parents
    return parents[levels - 1] if len(parents) >= levels else None


def images(manifests: Path) -> dict[str, str]:
    """What each `NAME:unpinned` stands for; nothing where there is no pins.yaml."""
    infra = above(manifests, 3)
    path = infra / "pins.yaml" if infra is not None else None
    documents = lines.read(path)[0] if path is not None and path.is_file() else []
    return {
        f"{name}:{OPEN}": str(image)
        for document in documents
        for name, image in mapping(document.value, "images").items()
    }


def filled(value: Any, known: Mapping[str, str]) -> Any:
    """A manifest's value with images as the pins have them."""
    if isinstance(value, dict):
        return {key: filled(inner, known) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(item, known) for item in value]
    return known.get(value, value) if isinstance(value, str) else value


def left_open(value: Any) -> Iterator[str]:
    """Every image of a value that is not filled in: `NAME:unpinned`, or `unpinned: why`."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from left_open(inner)
    elif isinstance(value, str) and (value.endswith(f":{OPEN}") or value.startswith(f"{OPEN}:")):
        yield value
