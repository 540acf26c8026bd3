"""The job templates of infra/k8s/jobs: what keeps a job safe, bounded and alive when a node goes. Each check is shown to fail."""

import importlib.util
import mmap
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyspark
import pytest
import ray
from ray import _private

ROOT = Path(__file__).parents[2]
JOBS = ("jobs/base", "jobs/aws", "jobs/aws-efa", "jobs/local")
PLATFORMS = ("base", "overlays/aws", "overlays/local")
UIDS = {"triplane-spark": 185, "triplane-ray": 1000}
Document = dict[str, Any]
Render = Callable[[str], list[Document]]
Named = Callable[[str, str, str], Document]
Pods = Callable[[Document], list[tuple[Document, Document]]]

SPARK = ("SparkApplication", "triplane-data")
RAY = (("RayJob", "triplane-train"), ("RayJob", "triplane-eval"))
DRIVER = ("spec", "driver", "template", "spec")
EXECUTOR = ("spec", "executor", "template", "spec")
HEAD = ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec")
WORKER = ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec")


def at(document: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def insecure(spec: Document) -> list[str]:
    """What a pod may do that it need not; the restricted standard of Kubernetes and a little more."""
    found = [f"{key} is set" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    pod = spec.get("securityContext", {})
    if pod.get("runAsNonRoot") is not True or pod.get("runAsUser") not in UIDS.values() or "fsGroup" not in pod:
        found.append("the pod may be root")
    if "hostPath" in str(spec.get("volumes")):
        found.append("a volume is the host's")
    for container in spec["containers"] + spec.get("initContainers", []):
        context = container.get("securityContext", {})
        wanted = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        found += [f"{container['name']}: {key}" for key, value in wanted.items() if context.get(key) != value]
        found += [f"{container['name']}: privileged"] if context.get("privileged") else []
    return found


@pytest.mark.parametrize("folder", JOBS + PLATFORMS)
def test_every_pod_is_confined(folder: str, render: Render, pods: Pods) -> None:
    specs = [spec for document in render(folder) for _, spec in pods(document)]
    assert len(specs) == (8 if folder in JOBS else 1)
    assert [one for spec in specs for one in insecure(spec)] == []


def test_a_pod_that_is_not_confined_is_found(named: Named) -> None:
    spec = at(named("jobs/aws", *RAY[0]), WORKER)
    spec["hostNetwork"] = True
    spec["volumes"].append({"name": "host", "hostPath": {"path": "/"}})
    spec["securityContext"]["runAsUser"] = 0
    spec["containers"][0]["securityContext"] = {"privileged": True}
    assert len(insecure(spec)) == 9


@pytest.mark.parametrize("folder", JOBS + PLATFORMS)
def test_only_the_spark_driver_has_a_token_of_the_cluster(folder: str, render: Render, pods: Pods) -> None:
    holders = [
        metadata.get("labels", {}).get("triplane.io/role")
        for document in render(folder)
        for metadata, spec in pods(document)
        if spec.get("automountServiceAccountToken") is not False
    ]
    assert holders == (["driver"] if folder in JOBS else [])


@pytest.mark.parametrize("folder", JOBS)
def test_each_pod_has_its_planes_identity(folder: str, render: Render, pods: Pods) -> None:
    """Storage grants by it, and the other planes' prefixes are closed to it."""
    for document in render(folder):
        plane = document["metadata"]["labels"]["triplane.io/plane"]
        found = {(one["triplane.io/plane"], spec["serviceAccountName"]) for one, spec in labelled(document, pods)}
        assert found == {(plane, f"triplane-{plane}")}
        parts = [document["spec"][part] for part in ("driver", "executor") if part in document["spec"]]
        assert {part["serviceAccount"] for part in parts} <= {"triplane-data"}


def labelled(document: Document, pods: Pods) -> list[tuple[Document, Document]]:
    return [(metadata["labels"], spec) for metadata, spec in pods(document)]


def ungoverned(document: Document) -> list[str]:
    """What lets a RayJob start past the queue, outlive its end, or answer to anybody."""
    labels, spec = document["metadata"]["labels"], document["spec"]
    cluster = spec["rayClusterSpec"]
    found = {
        "queue": labels.get("kueue.x-k8s.io/queue-name") == document["metadata"]["name"]
        and spec.get("suspend") is True,
        "end": spec.get("shutdownAfterJobFinishes") is True and "enableInTreeAutoscaling" not in cluster,
        "token": cluster.get("authOptions") == {"mode": "token"},
        "service": "serviceType" not in cluster["headGroupSpec"] and "headService" not in cluster["headGroupSpec"],
        "submitter": spec.get("submissionMode") == "K8sJobMode",
    }
    return [rule for rule, holds in found.items() if not holds]


@pytest.mark.parametrize("folder", JOBS)
@pytest.mark.parametrize(("kind", "name"), RAY)
def test_ray_jobs_wait_in_the_queue_behind_a_token(folder: str, kind: str, name: str, named: Named) -> None:
    document = named(folder, kind, name)
    assert ungoverned(document) == []
    del document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"], document["spec"]["shutdownAfterJobFinishes"]
    document["spec"]["rayClusterSpec"]["authOptions"]["mode"] = "disabled"
    document["spec"]["rayClusterSpec"]["headGroupSpec"]["serviceType"] = "LoadBalancer"
    document["spec"]["submissionMode"] = "SidecarMode"
    assert ungoverned(document) == ["queue", "end", "token", "service", "submitter"]


def unbounded(document: Document) -> list[str]:
    """Limits that a job lacks, or that contradict each other."""
    spec = document["spec"]
    if document["kind"] == "SparkApplication":
        policy = spec["restartPolicy"]
        found = {
            "retries": 0 < policy["onFailureRetries"] <= 3 and 0 < policy["onSubmissionFailureRetries"] <= 5,
            "kept": spec.get("timeToLiveSeconds", 0) > 0,
            "time": at(document, DRIVER).get("activeDeadlineSeconds", 0) > 0,
        }
    else:
        found = {
            "retries": spec.get("backoffLimit", 6) <= 1 and spec.get("submitterConfig", {}).get("backoffLimit") == 3,
            "kept": spec.get("ttlSecondsAfterFinished", 0) > 0,
            "time": 0 < spec.get("preRunningDeadlineSeconds", 0) < spec.get("activeDeadlineSeconds", 0),
        }
    return [limit for limit, holds in found.items() if not holds]


@pytest.mark.parametrize("folder", JOBS)
def test_every_job_is_bounded(folder: str, render: Render) -> None:
    documents = render(folder)
    assert [unbounded(one) for one in documents] == [[], [], []]
    for one in documents:
        for key in ("timeToLiveSeconds", "ttlSecondsAfterFinished", "preRunningDeadlineSeconds"):
            one["spec"].pop(key, None)
    assert [unbounded(one) for one in documents] == [["kept", "time"], ["kept", "time"], ["kept"]]


def pool(spec: Document) -> tuple[str, str, list[str]]:
    where = spec.get("nodeSelector", {})
    tolerated = [one["key"] for one in spec.get("tolerations", [])]
    return where.get("triplane.io/pool", ""), where.get("eks.amazonaws.com/capacityType", ""), tolerated


PLACES = {
    "driver": ("core", "ON_DEMAND", []),
    "head": ("core", "ON_DEMAND", []),
    "submitter": ("core", "ON_DEMAND", []),
    "executor": ("data", "SPOT", ["triplane.io/spot"]),
    "worker": ("gpu", "", ["nvidia.com/gpu"]),
}


def astray(documents: list[Document], pods: Pods) -> list[str]:
    """Roles of pods that are not on the machines that PLACES gives them."""
    found = [(labels["triplane.io/role"], pool(spec)) for one in documents for labels, spec in labelled(one, pods)]
    return [role for role, where in found if where != PLACES[role]]


def test_what_must_stay_is_on_demand_and_executors_are_on_spot(render: Render, pods: Pods) -> None:
    documents = render("jobs/aws")
    assert astray(documents, pods) == []
    [spark] = [one for one in documents if one["kind"] == "SparkApplication"]
    at(spark, DRIVER)["nodeSelector"] = at(spark, EXECUTOR)["nodeSelector"]
    at(spark, EXECUTOR).pop("tolerations")
    assert astray(documents, pods) == ["driver", "executor"]


def test_other_clusters_need_no_pools(render: Render, pods: Pods) -> None:
    """Negative control: the selectors come from the overlay, and no kind cluster has such nodes."""
    specs = [spec for folder in ("jobs/base", "jobs/local") for one in render(folder) for _, spec in pods(one)]
    assert {pool(spec)[:2] for spec in specs} == {("", "")}


def test_pools_are_those_of_the_cluster(render: Render, pods: Pods) -> None:
    made = (ROOT / "infra" / "aws" / "cluster.yaml").read_text()
    specs = [spec for folder in ("jobs/aws", "overlays/aws") for one in render(folder) for _, spec in pods(one)]
    assert (
        {pool(spec)[0] for spec in specs}
        == set(re.findall(r"triplane.io/pool: (\w+)", made))
        == {"core", "data", "gpu"}
    )
    taints = set(re.findall(r"\{Key: ([\w./]+), Value: \"?\w+\"?, Effect: NO_SCHEDULE\}", made))
    assert {key for spec in specs for key in pool(spec)[2]} == taints == {"triplane.io/spot", "nvidia.com/gpu"}
    accounts = {spec["serviceAccountName"] for spec in specs}
    assert [one for one in accounts if not re.search(rf"ServiceAccount: {one}\b", made)] == []


def test_a_lost_node_is_handed_over(named: Named) -> None:
    application = named("jobs/aws", *SPARK)
    settings = application["spec"]["sparkConf"]
    assert settings["spark.decommission.enabled"] == settings["spark.storage.decommission.enabled"] == "true"
    assert settings["spark.storage.decommission.shuffleBlocks.enabled"] == "true"
    # A spot node is gone two minutes after it says so.
    given = int(settings["spark.executor.decommission.forceKillTimeout"].removesuffix("s"))
    assert given < at(application, EXECUTOR)["terminationGracePeriodSeconds"] <= 120
    assert at(named("jobs/aws", *RAY[0]), WORKER)["terminationGracePeriodSeconds"] >= 300


def test_spark_asks_who_joins(named: Named) -> None:
    settings = named("jobs/base", *SPARK)["spec"]["sparkConf"]
    assert settings["spark.authenticate"] == settings["spark.network.crypto.enabled"] == "true"
    assert settings["spark.ui.killEnabled"] == "false"


def spark_settings() -> set[str]:
    """Names that Spark's own classes hold: a misspelt setting is no error to Spark, only without effect."""
    names: set[str] = set()
    wanted = re.compile(r"/config/|deploy/k8s/Config|SecurityManager|TransportConf")
    for jar in (Path(pyspark.__file__).parent / "jars").glob("spark-*.jar"):
        if jar.name.startswith(("spark-core", "spark-kubernetes", "spark-network-common", "spark-common-utils")):
            with zipfile.ZipFile(jar) as opened:
                for entry in filter(wanted.search, opened.namelist()):
                    names |= {
                        one.decode() for one in re.findall(rb"spark\.[A-Za-z0-9.]*[A-Za-z0-9]", opened.read(entry))
                    }
    return names


def test_spark_knows_every_setting(named: Named) -> None:
    known = spark_settings()
    asked = {key for key in named("jobs/aws", *SPARK)["spec"]["sparkConf"] if not key.startswith("spark.metrics.conf.")}
    assert sorted(asked - known - {"spark.sql.shuffle.partitions"}) == []
    assert "spark.decomission.enabled" not in known and len(known) > 500


def test_ray_knows_every_setting_of_its_health_checks(named: Named) -> None:
    library = (Path(ray.__file__).parent / "_raylet.so").open("rb")
    environment = {
        one["name"]: one.get("value", "") for one in at(named("jobs/base", *RAY[0]), HEAD)["containers"][0]["env"]
    }
    settings = {
        key.removeprefix("RAY_"): int(value) for key, value in environment.items() if key.startswith("RAY_health")
    }
    with library, mmap.mmap(library.fileno(), 0, access=mmap.ACCESS_READ) as text:
        assert [name for name in settings if text.find(name.encode()) < 0] == []
        assert text.find(b"health_check_perriod_ms") < 0
    period, timeout = settings["health_check_period_ms"], settings["health_check_timeout_ms"]
    assert (period + timeout) * settings["health_check_failure_threshold"] <= 15_000


def test_versions_are_those_installed_here(named: Named) -> None:
    """What is tested here is what the templates ask for."""
    assert named("jobs/base", *SPARK)["spec"]["sparkVersion"] == pyspark.__version__
    assert {named("jobs/base", *one)["spec"]["rayClusterSpec"]["rayVersion"] for one in RAY} == {ray.__version__}


def test_entry_points_are_there(named: Named) -> None:
    entries = [named("jobs/base", *one)["spec"]["entrypoint"].split() for one in RAY]
    modules = [entry[2] for entry in entries]
    assert [entry[3] for entry in entries] == ["/etc/triplane/recipe.yaml"] * 2
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []
    application = named("jobs/base", *SPARK)["spec"]
    assert application["arguments"] == ["/etc/triplane/recipe.yaml"]
    program = application["mainApplicationFile"].removeprefix("local:///opt/triplane/")
    assert program == "jobs/build_mix.py" and (ROOT / program).is_file()


@pytest.mark.parametrize("folder", JOBS)
def test_who_runs_the_command_has_the_recipe_and_everybody_scratch(folder: str, render: Render, pods: Pods) -> None:
    for document in render(folder):
        name = document["metadata"]["name"]
        for labels, spec in labelled(document, pods):
            volumes = {one["name"]: one for one in spec["volumes"]}
            mounts = {one["mountPath"]: one["name"] for one in spec["containers"][0]["volumeMounts"]}
            assert "emptyDir" in volumes[mounts["/scratch"]] and "emptyDir" in volumes[mounts["/tmp"]]
            if labels["triplane.io/role"] in ("driver", "head"):
                assert volumes[mounts["/etc/triplane"]]["configMap"] == {"name": f"{name}-recipe"}
            if labels["triplane.io/role"] in ("head", "worker"):
                assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"


@pytest.mark.parametrize("folder", JOBS)
def test_ray_s_object_store_fits_into_shared_memory(
    folder: str, render: Render, pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ray's own rule for its size; one that does not fit lies on the disk, and more than 10 GB of it is an error at the start."""
    for document in render(folder):
        for labels, spec in labelled(document, pods):
            if labels["triplane.io/role"] in ("head", "worker"):
                [shared] = [one["emptyDir"] for one in spec["volumes"] if one["name"] == "dshm"]
                size = gibibytes(shared["sizeLimit"])
                monkeypatch.setattr(_private.utils, "get_shared_memory_bytes", lambda size=size: size)
                memory = gibibytes(spec["containers"][0]["resources"]["limits"]["memory"])
                assert _private.utils.resolve_object_store_memory(memory) <= size
    assert _private.utils.resolve_object_store_memory(2**40) > gibibytes("4Gi")


def gibibytes(quantity: str) -> int:
    """30Gi in bytes."""
    return int(quantity.removesuffix("Gi")) * 2**30


def test_spark_writes_its_event_log_where_a_volume_is(named: Named) -> None:
    """The folder must exist before the driver starts, and nothing else makes it."""
    application = named("jobs/base", *SPARK)
    folder = application["spec"]["sparkConf"]["spark.eventLog.dir"].removeprefix("file://")
    assert folder in [one["mountPath"] for one in at(application, DRIVER)["containers"][0]["volumeMounts"]]


@pytest.mark.parametrize("folder", JOBS)
def test_storage_keys_are_nobodys_on_aws(folder: str, render: Render, pods: Pods) -> None:
    """On AWS the pod's role; locally a Secret that is not in the repository. No value of a key anywhere."""
    text = str(render(folder))
    assert not re.search(r"AWS_(ACCESS|SECRET)|AKIA", text)
    from_secret = [
        labels["triplane.io/role"]
        for document in render(folder) for labels, spec in labelled(document, pods)
        if {"secretRef": {"name": "triplane-storage"}} in spec["containers"][0].get("envFrom", [])
    ]  # fmt: skip
    local = ["driver", "executor", "head", "head", "worker", "worker"]
    assert sorted(from_secret) == (local if folder == "jobs/local" else [])


def test_images_users_are_the_pods_users() -> None:
    """Files of an image belong to its user; a pod under another would find /scratch closed."""
    for image, uid in UIDS.items():
        text = (ROOT / "infra" / "images" / f"{image.removeprefix('triplane-')}.Dockerfile").read_text()
        assert f"USER {uid}:{uid}" in text
