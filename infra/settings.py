"""What one environment is called everywhere, from the command line of infra/up and infra/down."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from infra import template
from triplane.errors import UsageError

INFRA = Path(__file__).parent
TEMPLATES = {name: INFRA / "aws" / f"{name}.yaml" for name in ("foundation", "cluster")}
PINS = INFRA / "pins.yaml"
JOBS = INFRA / "k8s" / "jobs" / "aws"
NAMESPACE = "triplane"


@dataclass(frozen=True)
class Settings:
    environment: str
    region: str
    overlay: Path
    pins: Path = PINS
    bucket: str = ""
    parameters: Mapping[str, Mapping[str, str]] = field(default_factory=dict, hash=False)
    prices: Mapping[str, float] | None = field(default=None, hash=False)

    @property
    def name(self) -> str:
        """Of the cluster, and of the context that kubectl and helm are told to use."""
        return f"triplane-{self.environment}"

    def stack(self, part: str) -> str:
        return f"{self.name}-{part}"

    def aws(self, *arguments: str) -> list[str]:
        return ["aws", *arguments, "--region", self.region, "--output", "json"]

    def kubectl(self, *arguments: str) -> list[str]:
        return ["kubectl", "--context", self.name, *arguments]

    def helm(self, *arguments: str) -> list[str]:
        return ["helm", *arguments, "--kube-context", self.name]


def read_parameters(path: Path | None) -> dict[str, dict[str, str]]:
    """{foundation: {Name: value}, cluster: {...}} of a YAML file, checked against the templates. Raises UsageError."""
    if path is None:
        return {}
    given = _mapping(path)
    read: dict[str, dict[str, str]] = {}
    for part, values in given.items():
        if part not in TEMPLATES or not isinstance(values, dict):
            raise UsageError(f"{path}: {part!r} is no template with parameters: write foundation: or cluster:")
        known = template.parameters(TEMPLATES[part])
        for name in values.keys() - known.keys():
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise UsageError(f"{path}: {part} has no parameter {name!r}: {hint}")
        read[part] = {name: _text(value) for name, value in values.items()}
    return read


def read_prices(path: Path | None) -> dict[str, float] | None:
    """{instance type: price an hour} of a YAML file, in whatever currency. Raises UsageError."""
    if path is None:
        return None
    prices = _mapping(path)
    if wrong := [key for key, value in prices.items() if not isinstance(value, int | float)]:
        raise UsageError(f"{path}: the price of {wrong[0]} is no number: write instance-type: price an hour")
    return {str(key): float(value) for key, value in prices.items()}


def _mapping(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} is no mapping: write keys and values")
    return value


def _text(value: Any) -> str:
    """A parameter as CloudFormation takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
