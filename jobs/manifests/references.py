"""Names that nothing in a whole set of objects has: (documents) -> findings.

Pods -> ServiceAccount, ConfigMap, Secret, PersistentVolumeClaim, PriorityClass; queue labels -> LocalQueue -> ClusterQueue ->
ResourceFlavor; role bindings -> roles and ServiceAccounts; SparkApplication -> ServiceAccount. What a set cannot hold is not looked
for: references marked `optional`, the ServiceAccount `default`, priority classes that every cluster has, and secrets where the set has none at
all: they are made in the cluster then.
"""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.manifests.finding import Finding
from jobs.manifests.lines import Document, Location, dotted, mapping
from jobs.manifests.semantics import QUEUE

Reference = tuple[Location, str, str, str]  # where, kind, namespace ("" for none), name
CLUSTER_WIDE = ("ClusterQueue", "ResourceFlavor", "ClusterRole", "PriorityClass", "WorkloadPriorityClass")
# (what holds it, the key of the name) -> kind
NAMED = {
    ("configMap", "name"): "ConfigMap",
    ("configMapRef", "name"): "ConfigMap",
    ("configMapKeyRef", "name"): "ConfigMap",
    ("secret", "secretName"): "Secret",
    ("secretRef", "name"): "Secret",
    ("secretKeyRef", "name"): "Secret",
    ("persistentVolumeClaim", "claimName"): "PersistentVolumeClaim",
    ("imagePullSecrets", "name"): "Secret",
}
WORDS = {
    "serviceAccountName": "ServiceAccount",
    "serviceAccount": "ServiceAccount",
    "priorityClassName": "PriorityClass",
}
PRESENT = {("ServiceAccount", "default")} | {("PriorityClass", f"system-{of}-critical") for of in ("node", "cluster")}


def findings(documents: Sequence[Document]) -> list[Finding]:
    """One for each reference to an object that is not among the documents."""
    have = {(one.kind, _namespace(one) if one.kind not in CLUSTER_WIDE else "", one.name) for one in documents}
    keeps_secrets = any(kind == "Secret" for kind, _, _ in have)
    found = []
    for document in documents:
        for location, kind, namespace, name in _references(document):
            if (kind, name) in PRESENT or (kind, namespace, name) in have or (kind == "Secret" and not keeps_secrets):
                continue
            near = difflib.get_close_matches(name, [n for k, s, n in have if (k, s) == (kind, namespace)], 1)
            hint = f"did you mean {near[0]!r}?" if near else "add it, or correct the name"
            found.append(
                document.finding(location, f"{dotted(location)} names {kind} {name!r}, which is not here: {hint}")
            )
    return found


def _namespace(document: Document) -> str:
    return str(document.metadata.get("namespace") or "default")


def _references(document: Document) -> Iterator[Reference]:
    namespace, spec = _namespace(document), mapping(document.value, "spec")
    queue = mapping(document.value, "metadata", "labels").get(QUEUE)
    if isinstance(queue, str):
        yield ("metadata", "labels", QUEUE), "LocalQueue", namespace, queue
    if document.kind == "LocalQueue" and isinstance(spec.get("clusterQueue"), str):
        yield ("spec", "clusterQueue"), "ClusterQueue", "", spec["clusterQueue"]
    if document.kind == "ClusterQueue":
        yield from _flavors(spec)
    if document.kind in ("RoleBinding", "ClusterRoleBinding"):
        yield from _bound(document, namespace)
    for location, kind, name in _in_pods(spec, ("spec",)):
        yield location, kind, "" if kind in CLUSTER_WIDE else namespace, name


def _flavors(spec: dict[str, Any]) -> Iterator[Reference]:
    for index, group in enumerate(_list(spec.get("resourceGroups"))):
        for number, flavor in enumerate(_list(mapping(group).get("flavors"))):
            name = mapping(flavor).get("name")
            if isinstance(name, str):
                yield ("spec", "resourceGroups", index, "flavors", number, "name"), "ResourceFlavor", "", name


def _bound(document: Document, namespace: str) -> Iterator[Reference]:
    role = mapping(document.value, "roleRef")
    kind, name = role.get("kind"), role.get("name")
    if isinstance(kind, str) and isinstance(name, str) and not name.startswith("system:"):
        yield ("roleRef", "name"), kind, "" if kind == "ClusterRole" else namespace, name
    for index, subject in enumerate(_list(document.value.get("subjects"))):
        who = mapping(subject)
        if who.get("kind") == "ServiceAccount" and isinstance(who.get("name"), str):
            yield ("subjects", index, "name"), "ServiceAccount", str(who.get("namespace") or namespace), who["name"]


def _in_pods(value: Any, location: Location) -> Iterator[tuple[Location, str, str]]:
    """References anywhere inside: pods are nested in objects of every kind."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _in_pods(item, (*location, index))
    if not isinstance(value, dict) or value.get("optional") is True:
        return
    holder = next((part for part in reversed(location) if isinstance(part, str)), "")
    for key, inner in value.items():
        kind = NAMED.get((holder, key)) or WORDS.get(key)
        if kind and isinstance(inner, str) and inner:
            yield (*location, key), kind, inner
        yield from _in_pods(inner, (*location, key))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
