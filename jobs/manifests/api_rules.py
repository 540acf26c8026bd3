"""What an API server refuses in core kinds and pods and their published schemas leave out: values, names, quantities, cron schedules.

One object -> sentences. The values are those of https://kubernetes.io/docs/reference/kubernetes-api/, the names RFC 1123's as in
https://kubernetes.io/docs/concepts/overview/working-with-objects/names/.
"""

import re
from collections.abc import Iterator
from typing import Any

from jobs.manifests.lines import Document, Location, dotted, mapping
from jobs.manifests.schemas import Mistake, one_of

# By the key, or by the key that holds it and the key: the same wherever a pod, a policy or a job is nested.
VALUES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("concurrencyPolicy",): ("Allow", "Forbid", "Replace"),
    ("restartPolicy",): ("Always", "OnFailure", "Never"),
    ("imagePullPolicy",): ("Always", "IfNotPresent", "Never"),
    ("protocol",): ("TCP", "UDP", "SCTP"),
    ("dnsPolicy",): ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
    ("whenUnsatisfiable",): ("DoNotSchedule", "ScheduleAnyway"),
    ("policyTypes",): ("Ingress", "Egress"),
    ("accessModes",): ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"),
    ("tolerations", "effect"): ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    ("tolerations", "operator"): ("Exists", "Equal"),
    ("matchExpressions", "operator"): ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"),
    ("seccompProfile", "type"): ("RuntimeDefault", "Localhost", "Unconfined"),
}
QUANTITY = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+|[KMGTPE]i|[numkMGTPE])?$")
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
ANY_NAME = ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")  # these may have colons and capitals
MAX_NAME = 253
CRON_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
WORDS = ("jan feb mar apr may jun jul aug sep oct nov dec", "sun mon tue wed thu fri sat")
SHORTHANDS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
SPARK_KINDS = ("SparkApplication", "ScheduledSparkApplication")  # their pods get the application's image
CRON_KINDS = ("CronJob", "RayCronJob", "ScheduledSparkApplication")


def mistakes(document: Document) -> Iterator[Mistake]:
    """(location, sentence) of what an API server would refuse although schemas allow it."""
    name = document.metadata.get("name")
    if isinstance(name, str) and document.kind not in ANY_NAME and not (NAME.match(name) and len(name) <= MAX_NAME):
        yield (
            ("metadata", "name"),
            f"metadata.name {name!r} is no name: write lower-case letters, digits, hyphens and dots",
        )
    spec = mapping(document.value, "spec")
    schedule = spec.get("schedule")
    if document.kind in CRON_KINDS and isinstance(schedule, str) and not is_cron(schedule):
        yield (
            ("spec", "schedule"),
            f"spec.schedule {schedule!r} is no cron schedule: write minute hour day month weekday",
        )
    if document.kind in ("CronJob", "Job"):
        yield from _job_pod(document)
    if document.kind not in SPARK_KINDS:
        yield from _without_image(spec, ("spec",))
    yield from _values(spec, ("spec",))


def _job_pod(document: Document) -> Iterator[Mistake]:
    parents = ("spec", "jobTemplate") if document.kind == "CronJob" else ()
    where: Location = (*parents, "spec", "template", "spec", "restartPolicy")
    policy = mapping(document.value, *parents, "spec", "template", "spec").get("restartPolicy", "Always")
    if policy == "Always":
        yield where, f"{dotted(where)} must be OnFailure or Never in a {document.kind}: set it"


def is_cron(schedule: str) -> bool:
    """Whether five fields of a cron schedule, each with values in its range; or a shorthand such as @hourly."""
    fields = schedule.split()
    if schedule in SHORTHANDS or (len(fields) == 2 and fields[0] == "@every"):
        return True
    return len(fields) == 5 and all(map(_is_cron_field, fields, range(5)))


def _is_cron_field(text: str, position: int) -> bool:
    low, high = CRON_RANGES[position]
    words = WORDS[position - 3].split() if position >= 3 else []
    for part in text.split(","):
        match = re.fullmatch(r"(\*|\?|\w+(?:-\w+)?)(?:/([1-9]\d*))?", part)
        if not match:
            return False
        ends = [] if match[1] in "*?" else match[1].split("-")
        numbers = [words.index(end.lower()) + low if end.lower() in words else end for end in ends]
        if not all(str(number).isdecimal() and low <= int(number) <= high for number in numbers):
            return False
    return True


def _without_image(value: Any, location: Location) -> Iterator[Mistake]:
    """Containers that no image is given for: a merge that replaced a list instead of its item leaves such."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _without_image(item, (*location, index))
            if location[-1] in ("containers", "initContainers") and isinstance(item, dict) and not item.get("image"):
                where = dotted((*location, index))
                yield (*location, index), f"{where} has no image: add it (a patch may have replaced the whole list)"
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _without_image(inner, (*location, key))


def _values(value: Any, location: Location) -> Iterator[Mistake]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _values(item, (*location, index))
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _values(inner, (*location, key))
    elif isinstance(value, str):
        yield from _value(value, location)


def _value(value: str, location: Location) -> Iterator[Mistake]:
    words = [part for part in location if isinstance(part, str)]
    allowed = VALUES.get(tuple(words[-1:])) or VALUES.get(tuple(words[-2:]))
    if allowed and value not in allowed:
        yield location, f"{dotted(location)} is {value!r}: {one_of(value, allowed)}"
    if tuple(words[-3:-1]) in (("resources", "limits"), ("resources", "requests")) and not QUANTITY.match(value):
        yield location, f"{dotted(location)} is {value!r}, no quantity: write a number with a unit such as 500m or 2Gi"
