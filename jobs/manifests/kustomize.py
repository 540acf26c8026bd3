"""Rendered kustomizations whose every line is known: folder -> the documents `kubectl kustomize` makes, each with the files it came from.

Nothing is fetched: a resource that is no file or folder here is a finding, and then nothing is rendered. Kustomize:
https://kubectl.docs.kubernetes.io/references/kustomize/kustomization/.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.manifests import lines
from jobs.manifests.finding import Finding
from jobs.manifests.lines import Document, Location

NAMES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
LISTS = ("resources", "components", "patchesStrategicMerge")
MAX_DEPTH, TIMEOUT_SECONDS = 20, 60


def kustomization(folder: Path) -> Path | None:
    """The folder's kustomization, if it has one."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def rendered(folder: Path) -> tuple[list[Document], list[Finding]]:
    """What the folder renders to, and what is wrong with its files. No documents if there is anything wrong."""
    sources, findings = _sources(folder, 0)
    if findings:
        return [], findings
    where = str(kustomization(folder))
    command = ["kubectl", "kustomize", str(folder)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], [Finding(where, 0, f"kubectl cannot render it ({error}): install kubectl")]
    if made.returncode:
        return [], [Finding(where, 0, f"kustomize does not render it: {_reason(made.stderr)}")]
    documents, findings = lines.parse(made.stdout, where)
    return [replace(one, lines={(): 1}, sources=_of(one, sources)) for one in documents], findings


def _reason(stderr: str) -> str:
    """What kubectl says, without its log's prefix: `E1125 ... "command failed" err="..."`."""
    logged = re.search(r'err="(.*)"', stderr, re.DOTALL)
    words = logged[1].replace('\\"', '"').replace("\\n", " ") if logged else stderr.removeprefix("error: ")
    return " ".join(words.split())[:400]


def _of(document: Document, sources: list[Document]) -> tuple[Document, ...]:
    """The sources of an object: of its kind and name, or patches that leave them open."""
    return tuple(
        one for one in sources if one.kind in ("", document.kind) and (one.name in ("", document.name) or not one.kind)
    )


def _sources(folder: Path, depth: int) -> tuple[list[Document], list[Finding]]:
    """Everything a kustomization names, what wins first; and what is wrong with it."""
    path = kustomization(folder)
    if path is None or depth > MAX_DEPTH:
        why = "is no kustomization: add kustomization.yaml" if path is None else "includes itself: remove the circle"
        return [], [Finding(str(folder), 0, why)]
    documents, findings = lines.read(path)
    found: list[Document] = []
    for document in documents:
        for one, problems in _named(document, folder, depth):
            found, findings = found + one, findings + problems
    return found, findings


def _named(document: Document, folder: Path, depth: int) -> Iterator[tuple[list[Document], list[Finding]]]:
    value = document.value if isinstance(document.value, dict) else {}
    for index, patch in enumerate(_list(value.get("patches"))):
        yield _patch(document, patch, ("patches", index), folder)
    for key in reversed(LISTS):
        for index, entry in enumerate(_list(value.get(key))):
            yield _entry(document, entry, (key, index), folder, depth)


def _entry(
    document: Document, entry: Any, location: Location, folder: Path, depth: int
) -> tuple[list[Document], list[Finding]]:
    path = Path(os.path.normpath(folder / str(entry)))
    if path.is_dir():
        return _sources(path, depth + 1)
    if path.is_file():
        return lines.read(path)
    file, line = document.place(location)
    return [], [Finding(file, line, f"{entry} is no file or folder here: correct the path")]


def _patch(document: Document, patch: Any, location: Location, folder: Path) -> tuple[list[Document], list[Finding]]:
    """A patch as a document: a strategic merge is one already, the operations of a JSON patch give lines to paths."""
    if not isinstance(patch, dict):
        return [], []
    if "path" in patch:
        documents, findings = _entry(document, patch["path"], (*location, "path"), folder, MAX_DEPTH)
    else:
        first = document.place((*location, "patch"))[1] + 1
        documents, findings = lines.parse(str(patch.get("patch", "")), document.file, first)
    target = patch.get("target")
    kind = target.get("kind") if isinstance(target, dict) else None
    return [_operations(one, kind) if isinstance(one.value, list) else one for one in documents], findings


def _operations(document: Document, kind: str | None) -> Document:
    """[{op, path: /spec/a/0, value}] -> a document whose lines are those of the operations, by path."""
    found: dict[Location, int] = {}
    for index, operation in enumerate(document.value):
        path = str(operation.get("path", "")) if isinstance(operation, dict) else ""
        parts = [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]
        place: Location = tuple(int(part) if part.isdecimal() else part for part in parts)
        for known, line in document.lines.items():
            if known[:2] == (index, "value"):
                found[(*place, *known[2:])] = line
        found |= {place[:end]: document.lines[(index,)] for end in range(len(place) + 1) if place[:end] not in found}
    return Document(document.file, {"kind": kind} if kind else {}, found)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
