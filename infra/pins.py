"""infra/pins.yaml read strictly: the versions of Kubernetes and of the charts, and the images by digest.

A value that starts with `unpinned:` is one that nobody has filled in yet.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from triplane.errors import UsageError

UNPINNED = "unpinned:"
BY_DIGEST = re.compile(r"[a-z0-9.:/_-]+@sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Chart:
    """A Helm release. `waits_for`: the workloads that make it work, as kind/name."""

    name: str
    version: str
    chart: str
    namespace: str
    waits_for: tuple[str, ...]
    values: dict[str, Any] = field(hash=False)
    repository: str = ""


@dataclass(frozen=True)
class Pins:
    kubernetes: str
    charts: tuple[Chart, ...]
    bases: dict[str, str] = field(hash=False)
    images: dict[str, str] = field(hash=False)


def load(path: Path) -> Pins:
    """Raises UsageError for a file that is absent, no YAML or of another shape."""
    try:
        value = yaml.safe_load(path.read_text())
        charts = tuple(
            Chart(name=name, **{**one, "waits_for": tuple(one["waits_for"])}) for name, one in value["charts"].items()
        )
        return Pins(value["kubernetes"]["version"], charts, dict(value["bases"]), dict(value["images"]))
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} cannot be used ({type(error).__name__}: {error}): restore its shape") from error


def unpinned(path: Path) -> list[str]:
    """`key.path says unpinned: why` for every value that is not filled in."""
    return [f"{path}: {where} says {value!r}: fill it in" for where, value in _open(yaml.safe_load(path.read_text()))]


def loose(pins: Pins) -> list[str]:
    """Images that are named by a tag, which whoever may push can move."""
    return [
        f"image {name} is {value!r}: name it by its digest, REPOSITORY@sha256:64 hex digits"
        for name, value in {**pins.bases, **pins.images}.items()
        if is_pinned(value) and not BY_DIGEST.fullmatch(value)
    ]


def is_pinned(value: str) -> bool:
    return not value.startswith(UNPINNED)


def _open(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _open(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _open(inner, f"{where}[{index}]")
    elif isinstance(value, str) and not is_pinned(value):
        yield where, value
