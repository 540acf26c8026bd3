"""The platform of infra/k8s: rights, ceilings, queues that jobs fit in, budgets against eviction, the scheduled evaluation."""

import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cli.common import data_folders

ROOT = Path(__file__).parents[2]
PLATFORMS = ("base", "overlays/aws", "overlays/local")
TARGETS = ("aws", "local")
UNITS = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    "g": Decimal(2**30),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
}
# vCPUs and GiB, and what a node has of the rest: https://aws.amazon.com/ec2/instance-types/.
MACHINES = {
    "m7i.xlarge": {"cpu": 4, "memory": 16 * 2**30},
    "m7i.4xlarge": {"cpu": 16, "memory": 64 * 2**30},
    "p5.48xlarge": {"cpu": 192, "memory": 2048 * 2**30, "nvidia.com/gpu": 8, "vpc.amazonaws.com/efa": 32},
}
Document = dict[str, Any]
Render = Callable[[str], list[Document]]
Named = Callable[[str, str, str], Document]
Pods = Callable[[Document], list[tuple[Document, Document]]]
Amounts = dict[str, Decimal]


def amount(quantity: str | int) -> Decimal:
    """A quantity of Kubernetes, or of Spark, in CPUs, bytes or pieces."""
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity)).groups()  # type: ignore[union-attr]
    return Decimal(number) * UNITS[unit]


def asked(spec: Document) -> Amounts:
    """What a pod's containers ask for."""
    wanted = [container["resources"]["requests"] for container in spec["containers"]]
    return {name: sum(amount(one.get(name, 0)) for one in wanted) for name in {key for one in wanted for key in one}}  # type: ignore[misc]


def pod_sets(job: Document) -> list[tuple[str, int, Amounts]]:
    """(pool, pods, what each asks for): what Kueue counts of a RayJob."""
    cluster = job["spec"]["rayClusterSpec"]
    sets = [(1, cluster["headGroupSpec"]["template"]["spec"]), (1, job["spec"]["submitterPodTemplate"]["spec"])]
    sets += [(group["replicas"], group["template"]["spec"]) for group in cluster["workerGroupSpecs"]]
    return [(spec.get("nodeSelector", {}).get("triplane.io/pool", "core"), count, asked(spec)) for count, spec in sets]


def does_not_fit(job: Document, queue: Document) -> list[str]:
    """What would keep a RayJob waiting for ever: more than a flavor has, or something that no flavor counts."""
    [group] = queue["spec"]["resourceGroups"]
    quota = {one["name"]: {r["name"]: amount(r["nominalQuota"]) for r in one["resources"]} for one in group["flavors"]}
    needed: dict[tuple[str, str], Decimal] = {}
    for pool, count, wants in pod_sets(job):
        for resource, each in wants.items():
            needed[pool, resource] = needed.get((pool, resource), Decimal(0)) + count * each
    return [f"{of} of {pool}" for (pool, of), sum_ in sorted(needed.items()) if sum_ > quota.get(pool, {}).get(of, -1)]


@pytest.mark.parametrize(("folder", "target"), [("aws", "aws"), ("aws-efa", "aws"), ("local", "local")])
@pytest.mark.parametrize("name", ["triplane-train", "triplane-eval"])
def test_a_job_fits_the_queue(folder: str, target: str, name: str, named: Named) -> None:
    job, queue = named(f"jobs/{folder}", "RayJob", name), named(f"overlays/{target}", "ClusterQueue", "triplane")
    assert does_not_fit(job, queue) == []
    worker = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    worker["replicas"] = 1000
    worker["template"]["spec"]["containers"][0]["resources"]["requests"]["ephemeral-storage"] = "1Gi"
    assert {"cpu", "ephemeral-storage"} <= {one.split()[0] for one in does_not_fit(job, queue)}


def spark_pods(application: Document) -> list[tuple[str, int, Amounts]]:
    spec = application["spec"]
    return [
        (
            part["template"]["spec"].get("nodeSelector", {}).get("triplane.io/pool", "core"),
            part.get("instances", 1),
            {"cpu": amount(part["cores"]), "memory": amount(part["memory"]) + amount(part["memoryOverhead"])},
        )
        for part in (spec["driver"], spec["executor"])
    ]


@pytest.mark.parametrize("target", TARGETS)
def test_a_job_fits_the_namespace(target: str, render: Render, named: Named) -> None:
    """Each plane once, all at the same time."""
    hard = named(f"overlays/{target}", "ResourceQuota", "triplane")["spec"]["hard"]
    sets = [
        one
        for document in render(f"jobs/{target}")
        for one in (spark_pods(document) if document["kind"] == "SparkApplication" else pod_sets(document))
    ]
    for resource in ("cpu", "memory", "nvidia.com/gpu"):
        assert sum(count * wants.get(resource, 0) for _, count, wants in sets) <= amount(hard[f"requests.{resource}"])
    assert sum(count for _, count, _ in sets) <= amount(hard["pods"])


def default_machines() -> dict[str, str]:
    """pool -> the first machine that infra/aws/cluster.yaml takes for it."""
    text = (ROOT / "infra" / "aws" / "cluster.yaml").read_text()
    found = dict(re.findall(r"(Core|Data|Gpu)InstanceTypes?: \{Type: \w+, Default: \"?([\w.]+)", text))
    return {pool.lower(): machine for pool, machine in found.items()}


def too_big(sets: list[tuple[str, int, Amounts]], machines: dict[str, str]) -> list[str]:
    """Pods that no empty node of their pool takes. 7 % of its memory and a little CPU are the node's own, so 90 % is the most."""
    return [
        f"{resource} in {pool}"
        for pool, _, wants in sets
        for resource, each in wants.items()
        if each > (Decimal("0.9") if resource in ("cpu", "memory") else 1) * MACHINES[machines[pool]].get(resource, 0)
    ]


@pytest.mark.parametrize("folder", ["aws", "aws-efa"])
def test_a_pod_fits_a_machine(folder: str, render: Render) -> None:
    """The first thing that users meet otherwise: FailedScheduling, for a node that has the CPUs but does not offer them all."""
    machines = default_machines()
    assert machines == {"core": "m7i.xlarge", "data": "m7i.4xlarge", "gpu": "p5.48xlarge"}
    for document in render(f"jobs/{folder}"):
        sets = spark_pods(document) if document["kind"] == "SparkApplication" else pod_sets(document)
        assert too_big(sets, machines) == []
    assert too_big([("core", 1, {"cpu": Decimal(4), "memory": amount("15Gi")})], machines) == [
        "cpu in core",
        "memory in core",
    ]


def test_network_adapters_are_asked_of_nodes_that_have_them(render: Render) -> None:
    """The cluster makes GPU nodes without them unless told, and then a job that asks for them never starts."""
    text = (ROOT / "infra" / "aws" / "cluster.yaml").read_text()
    assert re.search(r'GpuEfaInterfaces:\s+Type: \w+\s+Default: "0"', text)
    asking = {
        folder: "vpc.amazonaws.com/efa" in str(render(f"jobs/{folder}"))
        for folder in ("base", "aws", "aws-efa", "local")
    }
    assert asking == {"base": False, "aws": False, "aws-efa": True, "local": False}


def test_executors_leave_nothing_of_a_machine_unused(named: Named) -> None:
    _, executor = spark_pods(named("jobs/aws", "SparkApplication", "triplane-data"))
    assert too_big([("data", 1, {name: 2 * each for name, each in executor[2].items()})], default_machines()) == []


def excessive(documents: list[Document]) -> list[str]:
    """Rights beyond those that somebody needs."""
    found = []
    for role in documents:
        if role["kind"] in ("ClusterRole", "ClusterRoleBinding"):
            found.append(f"{role['metadata']['name']} is for the whole cluster")
        for rule in role.get("rules", []) if role["kind"] == "Role" else []:
            words = {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            found += [
                word for word in ("*", "secrets", "pods/exec", "escalate", "bind", "impersonate") if word in words
            ]
    return found


@pytest.mark.parametrize("folder", PLATFORMS)
def test_rights_are_the_least(folder: str, render: Render) -> None:
    documents = render(folder)
    assert excessive(documents) == []
    roles = {one["metadata"]["name"]: one for one in documents if one["kind"] == "Role"}
    assert [rule["resources"] for rule in roles["triplane-driver"]["rules"]] == [["pods"]]
    bound = {
        one["roleRef"]["name"]: [who["name"] for who in one["subjects"]]
        for one in documents
        if one["kind"] == "RoleBinding"
    }
    assert bound == {"triplane-driver": ["triplane-data"], "triplane-submitter": ["triplane-submitters"]}
    roles["triplane-driver"]["rules"].append({"apiGroups": ["*"], "resources": ["secrets"], "verbs": ["get"]})
    assert excessive(documents) == ["*", "secrets"]


@pytest.mark.parametrize("folder", PLATFORMS)
def test_accounts_hand_out_no_token(folder: str, render: Render) -> None:
    accounts = {one["metadata"]["name"]: one for one in render(folder) if one["kind"] == "ServiceAccount"}
    assert set(accounts) == {f"triplane-{plane}" for plane in ("data", "train", "eval")}
    assert {one["automountServiceAccountToken"] for one in accounts.values()} == {False}


def exposed(documents: list[Document]) -> list[str]:
    """Ways in from outside of the cluster, and a namespace that lets others make one."""
    found = [one["kind"] for one in documents if one["kind"] in ("Service", "Ingress", "Gateway", "HTTPRoute")]
    [quota] = [one["spec"]["hard"] for one in documents if one["kind"] == "ResourceQuota"]
    [space] = [one["metadata"]["labels"] for one in documents if one["kind"] == "Namespace"]
    found += [key for key in ("services.loadbalancers", "services.nodeports") if quota.get(key) != "0"]
    return found + ([] if space.get("pod-security.kubernetes.io/enforce") == "restricted" else ["pods of any kind"])


@pytest.mark.parametrize("folder", PLATFORMS)
def test_no_way_in_from_outside(folder: str, render: Render) -> None:
    documents = render(folder)
    assert exposed(documents) == []
    for one in documents:
        if one["kind"] == "ResourceQuota":
            del one["spec"]["hard"]["services.nodeports"]
        if one["kind"] == "Namespace":
            one["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "baseline"
    documents.append({"kind": "Service", "spec": {"type": "LoadBalancer"}})
    assert exposed(documents) == ["Service", "services.nodeports", "pods of any kind"]


def test_pods_without_requests_get_some(named: Named) -> None:
    """The quota refuses a pod that asks for nothing, and KubeRay and debuggers add containers."""
    [limit] = named("base", "LimitRange", "triplane")["spec"]["limits"]
    assert set(limit["defaultRequest"]) == {"cpu", "memory"} and limit["type"] == "Container"


def guarded(budgets: list[Document], labels: dict[str, str]) -> int:
    """How many budgets select a pod. Two would make its eviction an error for ever."""
    selectors = [one["spec"]["selector"] for one in budgets]
    return sum(
        all(labels.get(key) == value for key, value in one.get("matchLabels", {}).items())
        and all(labels.get(e["key"]) in e["values"] for e in one.get("matchExpressions", []))
        for one in selectors
    )


def test_what_a_job_dies_of_is_not_evicted(render: Render, pods: Pods) -> None:
    budgets = [one for one in render("overlays/aws") if one["kind"] == "PodDisruptionBudget"]
    found = {
        (metadata["labels"]["triplane.io/plane"], metadata["labels"]["triplane.io/role"]): guarded(budgets, metadata["labels"])
        for folder in ("jobs/aws", "overlays/aws") for document in render(folder) for metadata, _ in pods(document)
    }  # fmt: skip
    assert {pod for pod, count in found.items() if count} == {
        ("data", "driver"),
        ("train", "head"),
        ("train", "worker"),
    }
    assert max(found.values()) == 1
    quota = max(amount(one["spec"]["hard"]["pods"]) for one in render("overlays/aws") if one["kind"] == "ResourceQuota")
    assert all(one["spec"]["minAvailable"] > quota for one in budgets)


def unsafe_schedule(cron: Document) -> list[str]:
    spec, job = cron["spec"], cron["spec"]["jobTemplate"]["spec"]
    found = {
        "two at once": spec.get("concurrencyPolicy") == "Forbid",
        "a missed start": 10 < spec.get("startingDeadlineSeconds", 0) < 900,
        "the controller's time": spec.get("timeZone") == "Etc/UTC",
        "history": spec.get("successfulJobsHistoryLimit", 99) <= 10 and spec.get("failedJobsHistoryLimit", 99) <= 10,
        "end": job.get("activeDeadlineSeconds", 0) > 0 and job.get("ttlSecondsAfterFinished", 0) > 0,
        "retries": job.get("backoffLimit", 6) <= 3,
    }
    return [name for name, holds in found.items() if not holds]


@pytest.mark.parametrize("folder", PLATFORMS)
def test_the_schedule_is_safe(folder: str, named: Named) -> None:
    cron = named(folder, "CronJob", "triplane-watch")
    assert unsafe_schedule(cron) == []
    cron["spec"]["concurrencyPolicy"] = "Allow"
    for key in ("startingDeadlineSeconds", "timeZone", "failedJobsHistoryLimit"):
        del cron["spec"][key]
    assert unsafe_schedule(cron) == ["two at once", "a missed start", "the controller's time", "history"]


@pytest.mark.parametrize("folder", PLATFORMS)
def test_the_schedule_runs_the_watcher(folder: str, named: Named) -> None:
    job = named(folder, "CronJob", "triplane-watch")["spec"]["jobTemplate"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "jobs.watch"]
    assert container["args"] == ["$(RUN)", "--suite", "$(SUITE)", "--root", "$(ROOT)", "--once", "--alert"]
    given = {one["name"] for one in container["env"]}
    assert set(re.findall(r"\$\((\w+)\)", " ".join(container["args"]))) <= given
    read = {one["valueFrom"]["configMapKeyRef"]["key"] for one in container["env"] if "configMapKeyRef" in str(one)}
    assert read == set(named(folder, "ConfigMap", "triplane-watch")["data"])


def test_the_watcher_is_told_where_the_benchmarks_are(named: Named, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pod has no files of them, and the default is a folder of the checkout."""
    [container] = named("base", "CronJob", "triplane-watch")["spec"]["jobTemplate"]["spec"]["template"]["spec"][
        "containers"
    ]
    [variable] = [
        one["name"]
        for one in container["env"]
        if one.get("valueFrom", {}).get("configMapKeyRef", {}).get("key") == "data"
    ]
    monkeypatch.setenv(variable, "s3://bucket/eval")
    assert data_folders(None) == ["s3://bucket/eval"]
    monkeypatch.setenv(variable, "")
    assert data_folders(None) != [""], "an empty value is none"


def test_the_watcher_s_job_fails_at_once_where_trying_again_is_useless(named: Named) -> None:
    """A regression (4) and wrong use (2) are told at once, a lost node is not counted."""
    job = named("base", "CronJob", "triplane-watch")["spec"]["jobTemplate"]["spec"]
    fail, ignore = job["podFailurePolicy"]["rules"]
    assert (fail["action"], fail["onExitCodes"]["values"]) == ("FailJob", [2, 4])
    assert (ignore["action"], ignore["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_scheduled_until_a_run_is_named(target: str, named: Named) -> None:
    cron, watched = (named(f"overlays/{target}", kind, "triplane-watch") for kind in ("CronJob", "ConfigMap"))
    assert set(watched["data"]) == {"run", "suite", "root", "data"}
    assert cron["spec"]["suspend"] is not all(watched["data"][key] for key in ("run", "suite", "root"))


def test_namespaces_are_those_of_the_charts(render: Render) -> None:
    """A policy that lets KubeRay in by a namespace that it is not in would leave every job waiting."""
    pins = yaml.safe_load((ROOT / "infra" / "pins.yaml").read_text())
    assert pins["charts"]["kuberay-operator"]["namespace"] == "kuberay-system"
    assert "kuberay-system" in str([one for one in render("base") if one["kind"] == "NetworkPolicy"])
    assert pins["charts"]["spark-operator"]["values"]["spark"]["jobNamespaces"] == ["triplane"]
    [space] = [one["metadata"]["labels"] for one in render("base") if one["kind"] == "Namespace"]
    assert space["pod-security.kubernetes.io/enforce-version"] == f"v{pins['kubernetes']['version']}"
