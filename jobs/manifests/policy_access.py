"""Who may do what, and what is open to whom: one object -> sentences. Used by `policy`.

RBAC wildcards, services and policies that let the outside in, Ray without token authentication, secrets written out.
"""

import re
from collections.abc import Iterator
from typing import Any

from jobs.manifests.lines import Document, Location, dotted, mapping
from jobs.manifests.schemas import Mistake

OUTSIDE = ("LoadBalancer", "NodePort")
EVERYONE = ("0.0.0.0/0", "::/0")
SECRET_WORDS = frozenset({"token", "secret", "password", "passwd", "credential", "credentials", "apikey"})
NO_SECRET_ENDS = frozenset({"path", "file", "mode", "name", "arn"})
KEY_SHAPED = re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY-----")


def mistakes(document: Document) -> Iterator[Mistake]:
    """(location, sentence) of what one object opens or gives away."""
    value, kind = document.value, document.kind
    if kind in ("Role", "ClusterRole"):
        yield from _wildcards(value)
    if kind in ("RoleBinding", "ClusterRoleBinding") and mapping(value, "roleRef").get("name") == "cluster-admin":
        yield ("roleRef", "name"), "roleRef.name is cluster-admin: bind a role with what is needed"
    if kind == "NetworkPolicy":
        yield from _open_ingress(mapping(value, "spec"))
    if kind == "Ingress":
        yield ("kind",), "an Ingress opens a port to the outside: use kubectl port-forward"
    if kind == "Secret":
        yield from _written_out(value)
    if kind == "ConfigMap":
        for key, text in mapping(value, "data").items():
            if is_secret(key, text):
                yield ("data", key), f"data.{key} is a secret written out: put it into a Secret of the cluster"
    yield from _anywhere(value, ())


def is_secret(name: str, value: Any) -> bool:
    """Whether a literal is a secret: by what it is called, or because it looks like a key."""
    if not isinstance(value, str) or not value:
        return False
    words = [word for word in re.split(r"[^a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()) if word]
    is_named = bool(SECRET_WORDS & set(words)) or words[-2:] in (["access", "key"], ["api", "key"], ["private", "key"])
    return (is_named and words[-1] not in NO_SECRET_ENDS) or KEY_SHAPED.search(value) is not None


def _wildcards(value: Any) -> Iterator[Mistake]:
    rules = value.get("rules")
    for index, rule in enumerate(rules if isinstance(rules, list) else []):
        for key, names in mapping(rule).items():
            if isinstance(names, list) and any("*" in str(name) for name in names):
                where: Location = ("rules", index, key)
                yield where, f"{dotted(where)} has a wildcard: name what is needed"


def _open_ingress(spec: dict[str, Any]) -> Iterator[Mistake]:
    rules = spec.get("ingress")
    for index, rule in enumerate(rules if isinstance(rules, list) else []):
        where: Location = ("spec", "ingress", index)
        peers = mapping(rule).get("from")
        if not peers:
            yield where, f"{dotted(where)} lets everyone in: say from where"
        for number, peer in enumerate(peers if isinstance(peers, list) else []):
            if mapping(peer, "ipBlock").get("cidr") in EVERYONE:
                at = (*where, "from", number, "ipBlock", "cidr")
                yield at, f"{dotted(at)} lets the whole internet in: narrow it"


def _written_out(value: Any) -> Iterator[Mistake]:
    for part in ("data", "stringData"):
        for key in mapping(value, part):
            where: Location = (part, key)
            yield where, f"{dotted(where)} is a secret written out: make it in the cluster, not in a file"


def _anywhere(value: Any, at: Location) -> Iterator[Mistake]:
    """What is open wherever it is nested: services, ingresses, Ray clusters."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _anywhere(item, (*at, index))
    if not isinstance(value, dict):
        return
    for key in ("type", "serviceType"):
        if value.get(key) in OUTSIDE:
            yield (*at, key), f"{dotted((*at, key))} {value[key]} opens a port to the outside: use ClusterIP"
    if value.get("enableIngress"):
        yield (*at, "enableIngress"), f"{dotted((*at, 'enableIngress'))} opens a port to the outside: remove it"
    if "headGroupSpec" in value and mapping(value, "authOptions").get("mode") != "token":
        name = dotted((*at, "authOptions", "mode"))
        yield (*at, "authOptions", "mode"), f"{name} is not token: whoever reaches the cluster could run code; set it"
    for key, inner in value.items():
        yield from _anywhere(inner, (*at, key))
