"""What KubeRay and Kueue refuse in a RayJob or RayCluster and no schema says: spec -> sentences.

ray-operator/controllers/ray/utils/validation.go of ray-project/kuberay; pkg/controller/jobs/*/*_webhook.go of
kubernetes-sigs/kueue.
"""

import re
from collections.abc import Iterator
from typing import Any

from jobs.manifests import lines
from jobs.manifests.lines import Location, dotted, mapping
from jobs.manifests.schemas import Mistake

MAX_WORKER_GROUPS = 17  # a Workload of Kueue has 18 pod sets at most, and the head is one
TOKENS_SINCE = (2, 52)
POSITIVE = ("activeDeadlineSeconds", "preRunningDeadlineSeconds")


def mistakes(spec: dict[str, Any], at: Location) -> Iterator[Mistake]:
    """(location, sentence) of what KubeRay refuses in a RayJob's spec, which is at `at`."""
    submits_itself = spec.get("submissionMode") == "InteractiveMode" or spec.get("submitterPodTemplate")
    if not spec.get("entrypoint") and not submits_itself:
        yield at, f"{dotted(at)} has no entrypoint: add the command to run"
    cluster, selector = bool(spec.get("rayClusterSpec")), bool(spec.get("clusterSelector"))
    if cluster == selector:
        how = "both a rayClusterSpec and a clusterSelector" if cluster else "no rayClusterSpec and no clusterSelector"
        yield at, f"{dotted(at)} has {how}: give one of the two"
    for where, why in _combinations(spec, selector):
        yield (*at, *where), f"{dotted((*at, *where))} {why}"
    for key in POSITIVE:
        value = spec.get(key)
        if isinstance(value, int) and value <= 0:
            yield (*at, key), f"{dotted((*at, key))} is {value}: write a positive number of seconds"
    yield from _runtime_environment(spec, at)
    yield from cluster_mistakes(mapping(spec, "rayClusterSpec"), (*at, "rayClusterSpec"))


def _combinations(spec: dict[str, Any], has_selector: bool) -> Iterator[Mistake]:
    shuts_down, mode = spec.get("shutdownAfterJobFinishes") is True, spec.get("submissionMode")
    if spec.get("ttlSecondsAfterFinished") and not shuts_down:
        yield ("ttlSecondsAfterFinished",), "needs shutdownAfterJobFinishes: true: add it, or remove this"
    if spec.get("backoffLimit") and has_selector:
        yield ("backoffLimit",), "does not go with clusterSelector, as a retry makes a new cluster: remove it"
    if spec.get("backoffLimit") and mode == "InteractiveMode":
        yield ("backoffLimit",), "does not go with submissionMode: InteractiveMode: remove it"
    if has_selector and mode == "SidecarMode":
        yield ("clusterSelector",), "does not go with submissionMode: SidecarMode: remove one"
    for key in ("submitterPodTemplate", "submitterConfig"):
        if spec.get(key) and mode == "SidecarMode":
            yield (key,), "does not go with submissionMode: SidecarMode: remove one"
    if mapping(spec, "deletionStrategy").get("deletionRules") and shuts_down:
        yield ("deletionStrategy", "deletionRules"), "does not go with shutdownAfterJobFinishes: keep one of the two"


def _runtime_environment(spec: dict[str, Any], at: Location) -> Iterator[Mistake]:
    text, where = spec.get("runtimeEnvYAML"), (*at, "runtimeEnvYAML")
    if not isinstance(text, str):
        return
    documents, findings = lines.parse(text, "")
    for finding in findings:
        yield where, f"{dotted(where)}, line {finding.line} of it: {finding.message}"
    if not findings and not (len(documents) == 1 and isinstance(documents[0].value, dict)):
        yield where, f"{dotted(where)} is no mapping: write a runtime environment, such as `env_vars: {{A: b}}`"


def cluster_mistakes(spec: dict[str, Any], at: Location) -> Iterator[Mistake]:
    """(location, sentence) of what KubeRay refuses in a RayCluster's spec."""
    groups = spec.get("workerGroupSpecs")
    for index, group in enumerate(groups if isinstance(groups, list) else []):
        where: Location = (*at, "workerGroupSpecs", index)
        yield from _replicas(mapping(group), where)
    version = re.match(r"(\d+)\.(\d+)", str(spec.get("rayVersion", "")))
    if mapping(spec, "authOptions").get("mode") == "token" and (
        not version or tuple(map(int, version.groups())) < TOKENS_SINCE
    ):
        where = (*at, "rayVersion")
        yield where, f"{dotted(where)} must be 2.52.0 or later where authOptions.mode is token: set it"


def _replicas(group: dict[str, Any], at: Location) -> Iterator[Mistake]:
    least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)  # the defaults of the resource
    count = group.get("replicas", least)
    if not (isinstance(least, int) and isinstance(most, int) and isinstance(count, int)):
        return  # the schema says so
    where: Location = (*at, "minReplicas")
    if least > most:
        yield where, f"{dotted(where)} is {least}, above maxReplicas {most}: lower it"
    elif not least <= count <= most:
        where = (*at, "replicas")
        yield where, f"{dotted(where)} is {count}, not between minReplicas {least} and maxReplicas {most}: correct it"


def queued(spec: dict[str, Any], is_elastic: bool) -> Iterator[Mistake]:
    """(location, sentence) of what Kueue refuses in a RayJob with a queue. `is_elastic`: its annotation says that its size may change."""
    where: Location = ("spec", "clusterSelector")
    if spec.get("clusterSelector"):
        if not spec.get("rayClusterSpec"):
            yield where, "spec.clusterSelector: a queued RayJob brings its own cluster; give a rayClusterSpec instead"
        return
    where = ("spec", "shutdownAfterJobFinishes")
    if spec.get("shutdownAfterJobFinishes") is not True:
        yield where, f"{dotted(where)} must be true: a queued job otherwise keeps its share of the queue for ever"
    cluster = mapping(spec, "rayClusterSpec")
    where = ("spec", "rayClusterSpec", "enableInTreeAutoscaling")
    if cluster.get("enableInTreeAutoscaling") and not is_elastic:
        yield where, f"{dotted(where)}: a queued RayJob has a fixed size; remove it"
    groups = cluster.get("workerGroupSpecs")
    where = ("spec", "rayClusterSpec", "workerGroupSpecs")
    if not isinstance(groups, list):
        return
    if len(groups) > MAX_WORKER_GROUPS:
        yield where, f"{dotted(where)} has {len(groups)} groups: Kueue queues {MAX_WORKER_GROUPS} at most; merge some"
    for index, group in enumerate(groups):
        if mapping(group).get("groupName") == "head":
            yield (*where, index, "groupName"), "the name head is the head's own: rename the group"
