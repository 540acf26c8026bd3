"""CloudFormation templates as plain values: a file -> its parameters and resources, intrinsic functions as `{"Fn::Name": ...}`."""

from pathlib import Path
from typing import Any

import yaml

BARE = ("Ref", "Condition")  # these two have no `Fn::` in their long form


_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where PyYAML has libyaml


class _Loader(_Safe):
    """YAML's safe types, and `!Sub` and the like as the functions they stand for."""


def _function(loader: yaml.SafeLoader, name: str, node: yaml.Node) -> dict[str, Any]:
    key = name if name in BARE else f"Fn::{name}"
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
        return {key: value.split(".", 1) if name == "GetAtt" else value}
    if isinstance(node, yaml.SequenceNode):
        return {key: loader.construct_sequence(node, deep=True)}
    assert isinstance(node, yaml.MappingNode)  # the third of YAML's three
    return {key: loader.construct_mapping(node, deep=True)}


_Loader.add_multi_constructor("!", _function)


def load(path: Path) -> dict[str, Any]:
    """Raises yaml.YAMLError for what is no YAML."""
    found: dict[str, Any] = yaml.load(path.read_text(), _Loader)
    return found


def parameters(path: Path) -> dict[str, Any]:
    """Name -> declaration."""
    return load(path)["Parameters"]


def resources(path: Path) -> dict[str, str]:
    """Logical name -> type."""
    return {name: one["Type"] for name, one in load(path)["Resources"].items()}
