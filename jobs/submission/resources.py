"""Whether a cluster could ever give a job what it asks for: job template, platform, machines, recipe -> findings.

More GPUs, CPUs or memory than any machine of the pool has, more than the queue or the namespace may hold, more workers than the template has
GPUs for, a model that does not fit into a GPU. Machine sizes: https://aws.amazon.com/ec2/instance-types/. What a machine offers is less than what
it has, so that asking for all of it never fits.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.manifests import lines
from jobs.manifests.finding import Finding
from jobs.manifests.lines import Document, Location, mapping
from jobs.manifests.semantics import QUEUE

GIB = 1 << 30
GPU, POOL, PLANE = "nvidia.com/gpu", "triplane.io/pool", "triplane.io/plane"
UNITS = {"": 1, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
UNITS |= {f"{letter}i": 1 << 10 * power for power, letter in enumerate("KMGTP", 1)}
SPARK_UNITS = {"": 1 << 20, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}  # a number alone is MiB


@dataclass(frozen=True)
class Machine:
    """Of one instance type: CPUs, bytes of memory, GPUs, bytes of one GPU's memory."""

    cpus: int
    memory: int
    gpus: int = 0
    gpu_memory: int = 0


MACHINES = {
    "m6a.4xlarge": Machine(16, 64 * GIB),
    "m6i.xlarge": Machine(4, 16 * GIB),
    "m6i.4xlarge": Machine(16, 64 * GIB),
    "m7a.4xlarge": Machine(16, 64 * GIB),
    "m7i.xlarge": Machine(4, 16 * GIB),
    "m7i.4xlarge": Machine(16, 64 * GIB),
    "p4d.24xlarge": Machine(96, 1152 * GIB, 8, 40 * GIB),
    "p4de.24xlarge": Machine(96, 1152 * GIB, 8, 80 * GIB),
    "p5.48xlarge": Machine(192, 2048 * GIB, 8, 80 * GIB),
    "p5en.48xlarge": Machine(192, 2048 * GIB, 8, 141 * GIB),
}


@dataclass(frozen=True)
class Pool:
    """Machines of a node group, the smallest of the types it may have; `most` of them."""

    name: str
    type: str
    machine: Machine
    most: int


@dataclass(frozen=True)
class Pods:
    """`count` equal pods of a job. `at`: where their count and each of their resources is written."""

    count: int
    pool: str | None
    asks: Mapping[str, float]  # resource -> amount of one pod, memory in bytes
    at: Mapping[str, Location]


def pools(template: Path) -> dict[str, Pool]:
    """The node groups of a CloudFormation template by their label `triplane.io/pool`; types that have no known size are left out."""
    documents, _ = lines.read(template, intrinsics=True)
    found = {}
    for document in documents:
        resources = mapping(document.value, "Resources")
        for group in resources.values():
            properties = mapping(group, "Properties")
            name = mapping(properties, "Labels").get(POOL)
            types = [one for one in _types(document.value, properties) if one in MACHINES]
            if mapping(group).get("Type") == "AWS::EKS::Nodegroup" and isinstance(name, str) and types:
                smallest = min(types, key=lambda one: (MACHINES[one].memory, MACHINES[one].cpus))
                most = _value(document.value, mapping(properties, "ScalingConfig").get("MaxSize"))
                found[name] = Pool(name, smallest, MACHINES[smallest], int(most) if str(most).isdecimal() else 1 << 30)
    return found


def _types(template: Any, properties: dict[str, Any]) -> list[str]:
    """The instance types of a node group: its own, or those of its launch template."""
    given = _value(template, properties.get("InstanceTypes"))
    if given is None:
        launch = mapping(properties, "LaunchTemplate", "Id").get("Ref")
        data = mapping(template, "Resources", str(launch), "Properties", "LaunchTemplateData")
        given = _value(template, data.get("InstanceType"))
    return given.split(",") if isinstance(given, str) else [str(one) for one in given or ()]


def _value(template: Any, given: Any) -> Any:
    """A value, or the default of the parameter that it refers to."""
    name = given.get("Ref") if isinstance(given, dict) else None
    return given if name is None else mapping(template, "Parameters", str(name)).get("Default")


def pods_of(job: Document) -> list[Pods]:
    """What a RayJob or SparkApplication would start."""
    if job.kind == "SparkApplication":
        spec = mapping(job.value, "spec")
        return [_spark_pods(spec, part) for part in ("driver", "executor") if isinstance(spec.get(part), dict)]
    at: Location = ("spec", "rayClusterSpec")
    cluster = mapping(job.value, "spec", "rayClusterSpec")
    groups = cluster.get("workerGroupSpecs")
    found = [_ray_pods(mapping(cluster, "headGroupSpec"), (*at, "headGroupSpec"), 1)]
    for index, group in enumerate(groups if isinstance(groups, list) else []):
        count = mapping(group).get("replicas", mapping(group).get("minReplicas", 0))
        found.append(
            _ray_pods(mapping(group), (*at, "workerGroupSpecs", index), count if isinstance(count, int) else 0)
        )
    return found


def _ray_pods(group: dict[str, Any], at: Location, count: int) -> Pods:
    pod = mapping(group, "template", "spec")
    containers = pod.get("containers")
    asks: dict[str, float] = {}
    where: dict[str, Location] = {"count": (*at, "replicas")}
    for index, container in enumerate(containers if isinstance(containers, list) else []):
        for part in ("limits", "requests"):  # a request is what is reserved; where there is none, the limit is
            for name, text in mapping(container, "resources", part).items():
                own = mapping(container, "resources", "requests")
                if part == "requests" or name not in own:
                    asks[name] = asks.get(name, 0.0) + quantity(text)
                    where[name] = (*at, "template", "spec", "containers", index, "resources", part, name)
    return Pods(count, mapping(pod, "nodeSelector").get(POOL), asks, where)


def _spark_pods(spec: dict[str, Any], part: str) -> Pods:
    role, at = mapping(spec, part), ("spec", part)
    selector = mapping(role, "template", "spec", "nodeSelector") | mapping(role, "nodeSelector")
    overhead = quantity(role.get("memoryOverhead", 0), SPARK_UNITS)
    count = role.get("instances", 1) if part == "executor" else 1
    asks = {
        "cpu": quantity(role.get("cores", 1)),
        "memory": quantity(role.get("memory", "1g"), SPARK_UNITS) + overhead,
        GPU: float(mapping(role, "gpu").get("quantity", 0)),
    }
    where: dict[str, Location] = {"count": (*at, "instances"), "cpu": (*at, "cores"), "memory": (*at, "memory")}
    pool = selector.get(POOL)
    return Pods(count if isinstance(count, int) else 0, pool, asks, {**where, GPU: (*at, "gpu")})


def quantity(text: Any, units: Mapping[str, float] = UNITS) -> float:
    """'500m' -> 0.5, '2Gi' -> 2147483648; 0 for what is none, which the schema says."""
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*", str(text))
    if not match or match[2] not in units or match[1].count(".") > 1:
        return 0.0
    return float(match[1]) * units[match[2]]


def findings(job: Document, platform: Sequence[Document], machines: Mapping[str, Pool]) -> list[Finding]:
    """What no machine, queue or namespace of the platform can give the job."""
    asked = pods_of(job)
    found = [job.finding(at, message) for one in asked for at, message in _too_large(one, machines)]
    pods = [_cut(one, machines) for one in asked]  # a pod that fits nowhere makes no sum too high
    for limit in [*_queue_limits(job, platform), *_namespace_limits(platform)]:
        found += [job.finding(at, message) for at, message in limit.exceeded(pods)]
    found += [job.finding(at, message) for at, message in _too_many(pods, machines)]
    return found


def _too_large(pods: Pods, machines: Mapping[str, Pool]) -> Iterator[tuple[Location, str]]:
    if pods.pool is None or not machines:
        return
    pool = machines.get(pods.pool)
    if pool is None:
        yield pods.at["count"], f"its nodeSelector names pool {pods.pool!r}: there are {', '.join(sorted(machines))}"
        return
    has = {"cpu": float(pool.machine.cpus), "memory": float(pool.machine.memory), GPU: pool.machine.gpus + 0.5}
    for name, most in has.items():
        if pods.asks.get(name, 0) >= most:
            asked, offered = shown(name, pods.asks[name]), shown(name, most // 1)
            why = f"asks for {asked} of {name} in one pod, a {pool.type} of pool {pool.name} has {offered}"
            yield pods.at[name], f"{why}{'' if name == GPU else ' and offers less'}: ask for less"


def _cut(pods: Pods, machines: Mapping[str, Pool]) -> Pods:
    """The pods as if they asked for no more than a machine of their pool has."""
    pool = machines.get(pods.pool or "")
    if pool is None:
        return pods
    machine = pool.machine
    most = {"cpu": machine.cpus, "memory": machine.memory, GPU: machine.gpus}
    return replace(pods, asks={name: min(amount, most.get(name, amount)) for name, amount in pods.asks.items()})


def _too_many(pods: Sequence[Pods], machines: Mapping[str, Pool]) -> Iterator[tuple[Location, str]]:
    for one in pods:
        pool = machines.get(one.pool or "")
        if pool is None or not one.asks.get(GPU):
            continue
        fit = pool.most * (pool.machine.gpus // int(one.asks[GPU]))
        if one.count > fit:
            yield (
                one.at["count"],
                f"{one.count} pods of {one.asks[GPU]:g} GPUs: at most {pool.most} machines of pool {pool.name} hold {fit}",
            )


def shown(name: str, amount: float) -> str:
    """An amount with its unit."""
    return f"{amount / GIB:g} GiB" if name == "memory" else f"{amount:g}"


@dataclass(frozen=True)
class Limit:
    """Of all pods together: resource -> amount, and who sets it. `pool`: only of pods there."""

    of: str
    most: Mapping[str, float]
    pool: str | None = None

    def exceeded(self, pods: Sequence[Pods]) -> Iterator[tuple[Location, str]]:
        """(where the largest part is asked for, sentence) of each resource that is asked for too much."""
        chosen = [one for one in pods if self.pool is None or one.pool == self.pool]
        for name, most in self.most.items():
            asked = sum(one.count * one.asks.get(name, 0.0) for one in chosen)
            if asked > most:
                largest = max(chosen, key=lambda one: one.count * one.asks.get(name, 0.0))
                what = f"the job asks for {shown(name, asked)} of {name}, {self.of} allows {shown(name, most)}"
                yield largest.at["count"], f"{what}: it would wait for ever; ask for less, or raise the quota"


def _queue_limits(job: Document, platform: Sequence[Document]) -> Iterator[Limit]:
    """Of the ClusterQueue behind the job's queue, by flavor: a flavor's labels say which pool it is of."""
    name = mapping(job.value, "metadata", "labels").get(QUEUE)
    queues = {one.name: mapping(one.value, "spec").get("clusterQueue") for one in platform if one.kind == "LocalQueue"}
    # A misspelled queue is a mistake of its own: its quota is that of the one that was meant.
    behind = next((queues[near] for near in difflib.get_close_matches(str(name), queues, 1)), None)
    queue = next((one for one in platform if one.kind == "ClusterQueue" and one.name == behind), None)
    flavors = {
        one.name: mapping(one.value, "spec", "nodeLabels").get(POOL) for one in platform if one.kind == "ResourceFlavor"
    }
    for group in _list(mapping(queue.value, "spec").get("resourceGroups")) if queue else []:
        given = [mapping(one) for one in _list(mapping(group).get("flavors"))]
        for flavor in given:
            most = {
                mapping(one).get("name", ""): quantity(mapping(one).get("nominalQuota"))
                for one in _list(flavor.get("resources"))
            }
            pool = flavors.get(str(flavor.get("name")))
            if pool is not None or len(given) == 1:
                yield Limit(f"queue {behind}, flavor {flavor.get('name')},", most, pool)


def _namespace_limits(platform: Sequence[Document]) -> Iterator[Limit]:
    for one in platform:
        if one.kind == "ResourceQuota":
            hard = mapping(one.value, "spec", "hard")
            most = {
                name.removeprefix("requests."): quantity(text)
                for name, text in hard.items()
                if name.startswith("requests.")
            }
            yield Limit(f"ResourceQuota {one.name}", most)


def workers(job: Document, threads: int) -> int | None:
    """How many workers of one GPU (of `threads` CPUs, where the job has no GPUs) its worker pods hold together; None if that is left open."""
    total = 0
    for one in pods_of(job)[1:]:
        if not {GPU, "cpu"} & set(one.asks):
            return None
        gpus, by_cpu = int(one.asks.get(GPU, 0)), int(one.asks.get("cpu", 0) // max(1, threads))
        total += one.count * (min(gpus, by_cpu) if gpus else by_cpu)
    return total


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
