"""Kubernetes manifests checked without a cluster: files and kustomize folders -> every mistake, with file and line.

The text, the strict schema, the custom resource's own rules, what its operator refuses, and, in a whole set, the names that lead nowhere. What only
an API server knows (quotas in use, admission webhooks, versions it serves) is not checked.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from jobs.manifests import api_rules, kustomize, lines, references, rules, schemas, semantics
from jobs.manifests.finding import Finding
from jobs.manifests.lines import Document
from jobs.manifests.schemas import Mistake

# Kinds whose schemas are not shipped: only their identity is checked.
UNCHECKED = {"monitoring.coreos.com/v1": ("PodMonitor", "PrometheusRule", "ServiceMonitor")}


def findings(paths: Sequence[Path], whole: bool = False) -> list[Finding]:
    """Everything wrong with the manifests, by file and line. `whole`: the paths together are all that will be in the cluster, so
    that a name that none of them has is a mistake."""
    documents, found = read(paths)
    return sorted({*found, *of_documents(documents), *(references.findings(documents) if whole else ())})


def of_documents(documents: Sequence[Document]) -> list[Finding]:
    """Everything wrong with objects that were read: of each by itself, and that none is there twice."""
    found = [one.finding(location, sentence) for one in documents for location, sentence in mistakes(one)]
    return found + _twice(documents)


def read(paths: Sequence[Path]) -> tuple[list[Document], list[Finding]]:
    """The documents of files, of folders of files, and of kustomizations as they render."""
    documents, found = [], []  # type: list[Document], list[Finding]
    for path in paths:
        some, problems = _read_one(Path(path))
        documents, found = documents + some, found + problems
    return documents, found


def _read_one(path: Path) -> tuple[list[Document], list[Finding]]:
    if not path.is_dir():
        return lines.read(path)
    if kustomize.kustomization(path) is not None:
        return kustomize.rendered(path)
    files = sorted(one for one in path.rglob("*.y*ml") if one.is_file())
    return read(files) if files else ([], [Finding(str(path), 0, "holds no manifests: name a folder with YAML files")])


def mistakes(document: Document) -> Iterator[Mistake]:
    """(location, sentence) of everything wrong with one object by itself."""
    value = document.value
    if not isinstance(value, dict):
        yield (), "is no object: write apiVersion, kind, metadata and the rest"
        return
    missing = [key for key in ("apiVersion", "kind") if not isinstance(value.get(key), str)]
    if missing:
        yield (), f"key {missing[0]!r} is missing or no string: add it"
        return
    if not document.name:
        yield ("metadata",), "metadata.name is missing: add it"
    if document.kind in UNCHECKED.get(value["apiVersion"], ()):
        return
    schema = schemas.of(value["apiVersion"], document.kind)
    if schema is None:
        yield _unknown(value["apiVersion"], document.kind)
        return
    checked = schemas.check(schema.validator, value)
    yield from checked.mistakes
    meant = replace(document, value=checked.value)
    others = [*semantics.mistakes(meant), *api_rules.mistakes(meant)]
    if schema.structural is not None:
        others += rules.mistakes(schema.structural, checked.value, is_valid=not checked.mistakes)
    said = {location for location, _ in checked.mistakes}
    yield from ((place, sentence) for at, sentence in others if (place := checked.place(at)) not in said)


def _unknown(api_version: str, kind: str) -> Mistake:
    group, _, version = api_version.rpartition("/")
    if known := schemas.versions(group, kind):
        return ("apiVersion",), f"{kind} has no version {version!r}: write {group}/{' or '.join(known)}"
    near = difflib.get_close_matches(kind, schemas.kinds(api_version), 1)
    hint = f"did you mean {near[0]}?" if near else "correct kind or apiVersion"
    return ("kind",), f"no schema is known for {kind} of {api_version}: {hint}"


def _twice(documents: Sequence[Document]) -> list[Finding]:
    """Objects given twice: the second would replace the first."""
    seen: dict[tuple[str, str, str], Document] = {}
    found = []
    for one in documents:
        identity = (one.kind, str(one.metadata.get("namespace", "")), one.name)
        if all((one.kind, one.name)) and identity in seen:
            file, line = seen[identity].place(("metadata", "name"))
            found.append(one.finding(("metadata", "name"), f"is given twice (first at {file}:{line}): rename one"))
        seen.setdefault(identity, one)
    return found
