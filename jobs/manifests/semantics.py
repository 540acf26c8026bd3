"""What operators refuse or get wrong and no schema says: one object -> sentences.

SparkApplications: sparkapplication_webhook.go of kubernetes-sigs/kueue; pod templates: kubeflow/spark-operator issue 2459, where one that no
schema refused stopped the operator for everyone. Ray's kinds are in `ray_jobs`.
"""

from collections.abc import Iterator
from typing import Any

from jobs.manifests import ray_jobs, schemas
from jobs.manifests.lines import Document, Location, dotted, mapping
from jobs.manifests.schemas import Mistake

QUEUE = "kueue.x-k8s.io/queue-name"
ELASTIC = "kueue.x-k8s.io/elastic-job"
TEMPLATE = "io.k8s.api.core.v1.PodTemplateSpec"


def mistakes(document: Document) -> Iterator[Mistake]:
    """(location, sentence) of what an object's operator would refuse."""
    spec = mapping(document.value, "spec")
    is_queued = QUEUE in mapping(document.value, "metadata", "labels")
    if document.kind == "RayJob":
        yield from ray_jobs.mistakes(spec, ("spec",))
        if is_queued:
            annotations = mapping(document.value, "metadata", "annotations")
            yield from ray_jobs.queued(spec, annotations.get(ELASTIC) == "true")
    if document.kind == "RayCronJob":
        yield from ray_jobs.mistakes(mapping(spec, "jobTemplate"), ("spec", "jobTemplate"))
    if document.kind == "RayCluster":
        yield from ray_jobs.cluster_mistakes(spec, ("spec",))
    if document.kind == "SparkApplication":
        yield from _spark_application(spec, ("spec",), is_queued)
    if document.kind == "ScheduledSparkApplication":
        yield from _spark_application(mapping(spec, "template"), ("spec", "template"), False)


def _spark_application(spec: dict[str, Any], at: Location, is_queued: bool) -> Iterator[Mistake]:
    where: Location = (*at, "dynamicAllocation", "enabled")
    if is_queued and mapping(spec, "dynamicAllocation").get("enabled"):
        yield where, f"{dotted(where)}: a queued SparkApplication has a fixed size; set executor.instances"
    for part in ("driver", "executor"):
        where = (*at, part, "template")
        template = mapping(spec, part).get("template")
        if template is not None:
            yield from _pod_template(template, where)


def _pod_template(template: Any, where: Location) -> Iterator[Mistake]:
    """The schema accepts anything here. Spark adds its own container, so a template may have none."""
    for location, sentence in schemas.check(schemas.definition(TEMPLATE), template).mistakes:
        if sentence != "key 'spec.containers' is missing: add it":
            yield (*where, *location), f"{dotted(where)}: {sentence}"
