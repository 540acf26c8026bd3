"""CloudFormation templates as plain values: a file -> its parameters and resources, intrinsic functions as `{"Fn::Name": ...}`."""

from pathlib import Path
from typing import Any

from jobs.manifests import lines
from triplane.errors import UsageError


def load(path: Path) -> dict[str, Any]:
    """Raises UsageError for what is no YAML."""
    documents, findings = lines.read(path, intrinsics=True)
    if findings or len(documents) != 1:
        said = "; ".join(f"{one.file}:{one.line}: {one.message}" for one in findings)
        raise UsageError(said or f"{path} holds {len(documents)} documents: a template is one")
    found: dict[str, Any] = documents[0].value
    return found


def parameters(path: Path) -> dict[str, Any]:
    """Name -> declaration."""
    return load(path)["Parameters"]


def resources(path: Path) -> dict[str, str]:
    """Logical name -> type."""
    return {name: one["Type"] for name, one in load(path)["Resources"].items()}
