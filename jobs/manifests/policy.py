"""What no manifest of ours may do, although a cluster would let it: (files, folders) -> findings.

Pods: images by digest, not root, nothing privileged, all capabilities dropped, seccomp, limits, nothing of the host, no secret written out (the
`restricted` level of https://kubernetes.io/docs/concepts/security/pod-security-standards/ and limits). RBAC without wildcards, no
door to the outside, Ray with token authentication.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.manifests import check, policy_access
from jobs.manifests.finding import Finding
from jobs.manifests.lines import Document, Location, dotted, mapping
from jobs.manifests.schemas import Mistake

HOST = ("hostNetwork", "hostPID", "hostIPC")
UNPINNED = "unpinned"
SPARK = {"SparkApplication": ("spec",), "ScheduledSparkApplication": ("spec", "template")}


@dataclass(frozen=True)
class Container:
    """A container with what it inherits from its pod. `limits`, `requests`: resources by name."""

    location: Location
    image: Any
    image_at: Location
    security: dict[str, Any]
    pod_security: dict[str, Any]
    env: list[Any]
    limits: dict[str, Any]
    requests: dict[str, Any]
    ports: list[Any]

    def setting(self, key: str) -> Any:
        """A key of the container's security context, else of the pod's."""
        return self.security.get(key, self.pod_security.get(key))


def findings(paths: Sequence[Path]) -> list[Finding]:
    """Everything the policy forbids, by file and line. Text that cannot be read is a finding of `check`, not of this."""
    return of_documents(check.read(paths)[0])


def of_documents(documents: Sequence[Document]) -> list[Finding]:
    """As `findings`, of objects that were read."""
    return sorted({document.finding(at, sentence) for document in documents for at, sentence in mistakes(document)})


def mistakes(document: Document) -> Iterator[Mistake]:
    """(location, sentence) of what one object must not do."""
    yield from policy_access.mistakes(document)
    for location, pod in _pods(document.value, ()):
        yield from _host(pod, location)
        for container in _containers(pod, location):
            yield from _container(container)
    if document.kind in SPARK:
        at = SPARK[document.kind]
        for container in _spark(mapping(document.value, *at), at):
            yield from _container(container)


def _pods(value: Any, location: Location) -> Iterator[tuple[Location, dict[str, Any]]]:
    """Every pod's spec, wherever it is nested."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _pods(item, (*location, index))
    if not isinstance(value, dict):
        return
    # A template of the Spark operator is judged together with what the application says.
    if isinstance(value.get("containers"), list) and not {"driver", "executor"} & set(location):
        yield location, value
    for key, inner in value.items():
        yield from _pods(inner, (*location, key))


def _host(pod: dict[str, Any], at: Location) -> Iterator[Mistake]:
    for key in HOST:
        if pod.get(key):
            yield (*at, key), f"{dotted((*at, key))} shares the host's: remove it"
    for index, volume in enumerate(_list(pod.get("volumes"))):
        if "hostPath" in mapping(volume):
            where = (*at, "volumes", index, "hostPath")
            yield where, f"{dotted(where)} opens the host's files: use an emptyDir or a claim"


def _containers(pod: dict[str, Any], at: Location) -> Iterator[Container]:
    for key in ("initContainers", "containers"):
        for index, given in enumerate(_list(pod.get(key))):
            one = mapping(given)
            yield Container(
                (*at, key, index),
                one.get("image"),
                (*at, key, index, "image"),
                mapping(one, "securityContext"),
                mapping(pod, "securityContext"),
                _list(one.get("env")),
                mapping(one, "resources", "limits"),
                mapping(one, "resources", "requests"),
                _list(one.get("ports")),
            )


def _spark(spec: dict[str, Any], at: Location) -> Iterator[Container]:
    """Driver and executor as containers: their own keys, else those of their template."""
    for part in ("driver", "executor"):
        role, pod = mapping(spec, part), mapping(spec, part, "template", "spec")
        inner = mapping(next(iter(_list(pod.get("containers"))), None))
        limits = {"memory": role.get("memory"), "cpu": role.get("coreLimit") or role.get("cores")}
        own = (*at, part, "image")
        image, image_at = (role["image"], own) if role.get("image") else (spec.get("image"), (*at, "image"))
        if not image:
            image, image_at = inner.get("image"), (*at, part, "template", "spec", "containers", 0, "image")
        yield Container(
            (*at, part),
            image,
            image_at,
            mapping(inner, "securityContext") | mapping(role, "securityContext"),
            mapping(pod, "securityContext") | mapping(role, "podSecurityContext"),
            [*_list(role.get("env")), *_list(inner.get("env"))],
            {key: value for key, value in limits.items() if value},
            {},
            [],
        )


def _container(container: Container) -> Iterator[Mistake]:
    yield from _image(container)
    yield from _security(container)
    where, name = container.location, dotted(container.location)
    missing = [key for key in ("memory", "cpu") if not container.limits.get(key)]
    if "cpu" in missing and container.requests.get("cpu"):
        missing.remove("cpu")  # a limit on CPU only throttles; a request is what reserves
    if missing:
        yield where, f"{name} has no resource limits for {' and '.join(missing)}: add them"
    for index, port in enumerate(container.ports):
        if mapping(port).get("hostPort"):
            yield (
                (*where, "ports", index, "hostPort"),
                f"{name}.ports[{index}].hostPort opens a port of the host: remove it",
            )
    for index, variable in enumerate(container.env):
        one = mapping(variable)
        if policy_access.is_secret(str(one.get("name", "")), one.get("value")):
            at = (*where, "env", index)
            yield at, f"{dotted(at)}: {one.get('name')} is a secret written out: use valueFrom.secretKeyRef"


def _image(container: Container) -> Iterator[Mistake]:
    where, image = container.image_at, container.image
    if not isinstance(image, str) or not image:
        yield where, f"{dotted(where)} is missing: name an image by digest"
    elif UNPINNED in image:
        yield where, f"{dotted(where)} is unpinned ({image}): fill the digest in"
    elif "@sha256:" not in image:
        tag = image.rpartition("/")[2].partition(":")[2] or "latest"
        what = "is latest" if tag == "latest" else f"has the tag {tag} and no digest"
        yield where, f"{dotted(where)} {image!r} {what}: name it by digest (@sha256:...)"


def _security(container: Container) -> Iterator[Mistake]:
    at = (*container.location, "securityContext")
    name = dotted(at)
    if container.setting("runAsUser") == 0:
        yield (*at, "runAsUser"), f"{name}.runAsUser is 0: run as another user than root"
    elif container.setting("runAsNonRoot") is not True:
        yield (*at, "runAsNonRoot"), f"{name}.runAsNonRoot is not true: set it, here or for the pod"
    if container.security.get("privileged"):
        yield (*at, "privileged"), f"{name}.privileged: remove it"
    if container.security.get("allowPrivilegeEscalation") is not False:
        yield (*at, "allowPrivilegeEscalation"), f"{name}.allowPrivilegeEscalation is not false: set it"
    capabilities = mapping(container.security, "capabilities")
    if "ALL" not in _list(capabilities.get("drop")):
        yield (*at, "capabilities"), f"{name}.capabilities.drop does not name ALL: add it"
    if capabilities.get("add"):
        yield (*at, "capabilities", "add"), f"{name}.capabilities.add gives {capabilities['add']}: remove it"
    if mapping(container.setting("seccompProfile")).get("type") not in ("RuntimeDefault", "Localhost"):
        yield (*at, "seccompProfile"), f"{name}.seccompProfile is not RuntimeDefault: set it, here or for the pod"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
