"""The pods that Spark itself makes of the data template: its own builders, in a JVM of the installed pyspark, without a cluster.

What kustomize renders is what Spark is told; whether it keeps it, only Spark can say. Settings are given as kubeflow/spark-operator's
internal/controller/sparkapplication/submission.go gives them.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.java_gateway import launch_gateway

Document = dict[str, Any]
Named = Callable[[str, str, str], Document]
APP = "spark-app-1"


def settings(application: Document, folder: Path) -> dict[str, str]:
    """What the operator's spark-submit is told, templates written to files."""
    spec = application["spec"]
    found = {
        "spark.master": "k8s://https://127.0.0.1:1",
        "spark.app.name": application["metadata"]["name"],
        "spark.app.id": APP,
        "spark.kubernetes.namespace": application["metadata"]["namespace"],
        "spark.kubernetes.container.image": spec["image"],
        **{key: str(value) for key, value in spec["sparkConf"].items()},
    }
    for part in ("driver", "executor"):
        path = folder / f"{part}.yaml"
        path.write_text(yaml.safe_dump(spec[part]["template"]))
        kept = {f"spark.{part}.{key}": str(spec[part][key]) for key in ("cores", "memory", "memoryOverhead")}
        found |= kept | {
            f"spark.kubernetes.{part}.podTemplateFile": path.as_uri(),
            f"spark.kubernetes.{part}.podTemplateContainerName": f"spark-kubernetes-{part}",
            f"spark.kubernetes.authenticate.{part}.serviceAccountName": spec[part]["serviceAccount"],
        }
    return found


def companion(of: Any, name: str) -> Any:
    return getattr(getattr(of, f"{name}$"), "MODULE$")


def as_json(jvm: Any, value: Any) -> Any:
    return json.loads(jvm.io.fabric8.kubernetes.client.utils.Serialization.asJson(value))


def as_pod(jvm: Any, made: Any) -> Document:
    """Spark holds its own container apart from the pod until the end."""
    pod = as_json(jvm, made.pod())
    pod["spec"]["containers"] = [as_json(jvm, made.container()), *pod["spec"].get("containers", [])]
    return pod


def build(jvm: Any, gateway: Any, given: dict[str, str], program: str) -> dict[str, Any]:
    """`driver` and `executor`: pods; `beside`: kinds of what is made with the driver."""
    conf, nothing = jvm.org.apache.spark.SparkConf(False), companion(jvm.scala, "None")
    for key, value in given.items():
        conf.set(key, value)
    client = jvm.io.fabric8.kubernetes.client.KubernetesClientBuilder().build()
    kubernetes = companion(jvm.org.apache.spark.deploy.k8s, "KubernetesConf")
    main = jvm.org.apache.spark.deploy.k8s.submit.PythonMainAppResource(program)
    runner = "org.apache.spark.deploy.PythonRunner"
    wanted = kubernetes.createDriverConf(conf, APP, main, runner, gateway.new_array(jvm.String, 0), nothing)
    driver = jvm.org.apache.spark.deploy.k8s.submit.KubernetesDriverBuilder().buildFromFeatures(wanted, client)
    conf.set("spark.driver.host", "driver.triplane.svc")
    key = companion(jvm.org.apache.spark.internal.config, "package").AUTH_SECRET_FILE()
    secrets = jvm.org.apache.spark.SecurityManager(conf, nothing, key)
    secrets.initializeAuth()
    profile = companion(jvm.org.apache.spark.resource, "ResourceProfile").getOrCreateDefaultProfile(conf)
    executor = jvm.org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBuilder().buildFromFeatures(
        kubernetes.createExecutorConf(conf, "1", APP, nothing, 0), secrets, client, profile
    )
    beside = [one.getKind() for one in driver.getDriverKubernetesResourcesAsJavaList()]
    return {"driver": as_pod(jvm, driver.pod()), "executor": as_pod(jvm, executor.pod()), "beside": beside}


@pytest.fixture(scope="module")
def built(named: Named, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    application = named("jobs/aws", "SparkApplication", "triplane-data")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        patched.setenv("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
        gateway = launch_gateway()
    try:
        given = settings(application, tmp_path_factory.mktemp("templates"))
        program = application["spec"]["mainApplicationFile"]
        bare = {key: value for key, value in given.items() if key not in application["spec"]["sparkConf"]}
        without = build(gateway.jvm, gateway, bare, program)
        yield {"asked": application, "without": without} | build(gateway.jvm, gateway, given, program)
    finally:
        gateway.shutdown()
        gateway.proc.stdin.close()
        gateway.proc.wait(timeout=30)


@pytest.mark.parametrize("part", ["driver", "executor"])
def test_spark_keeps_what_the_template_says(part: str, built: dict[str, Any]) -> None:
    template, pod = built["asked"]["spec"][part]["template"], built[part]
    assert template["metadata"]["labels"].items() <= pod["metadata"]["labels"].items()
    kept = {key: value for key, value in template["spec"].items() if key not in ("containers", "volumes")}
    assert {key: pod["spec"].get(key) for key in kept} == kept
    [mine], [made] = template["spec"]["containers"], pod["spec"]["containers"]
    assert made["securityContext"] == mine["securityContext"]
    assert [one for one in mine["volumeMounts"] if one not in made["volumeMounts"]] == []
    assert {one["name"] for one in template["spec"]["volumes"]} <= {one["name"] for one in pod["spec"]["volumes"]}
    assert {one["name"] for one in mine["env"]} <= {one["name"] for one in made["env"]}


@pytest.mark.parametrize("part", ["driver", "executor"])
def test_no_name_is_there_twice(part: str, built: dict[str, Any]) -> None:
    """An API server refuses such a pod, and Spark adds ports and volumes of its own."""
    spec = built[part]["spec"]
    [container] = spec["containers"]
    for many in (container["ports"], container["env"], spec["volumes"]):
        names = [one["name"] for one in many]
        assert sorted(set(names)) == sorted(names)
    paths = [one["mountPath"] for one in container["volumeMounts"]]
    assert len(set(paths)) == len(paths)


def test_ports_are_those_that_the_policies_open(built: dict[str, Any]) -> None:
    ports = {
        part: {one["name"]: one["containerPort"] for one in built[part]["spec"]["containers"][0]["ports"]}
        for part in ("driver", "executor")
    }
    assert {"driver-rpc-port": 7078, "blockmanager": 7079, "spark-ui": 4040, "metrics": 9464}.items() <= ports[
        "driver"
    ].items()
    assert ports["executor"]["blockmanager"] == 7079


def test_sizes_are_what_was_asked(built: dict[str, Any]) -> None:
    sizes = {part: built[part]["spec"]["containers"][0]["resources"]["requests"] for part in ("driver", "executor")}
    assert sizes["driver"] == {"cpu": "2", "memory": f"{(4 + 6) * 1024}Mi"}
    assert sizes["executor"] == {"cpu": "7", "memory": f"{(6 + 20) * 1024}Mi"}


def test_scratch_is_ours_and_an_executor_hands_over(built: dict[str, Any]) -> None:
    """The local directories are the volume with a limit, and a node that goes ends an executor by the script of the image."""
    for part in ("driver", "executor"):
        [container] = built[part]["spec"]["containers"]
        assert {"name": "SPARK_LOCAL_DIRS", "value": "/var/data/spark"} in container["env"]
    [executor] = built["executor"]["spec"]["containers"]
    assert executor["lifecycle"]["preStop"]["exec"]["command"] == ["/opt/decom.sh"]


def test_the_driver_needs_rights_over_pods_alone(built: dict[str, Any]) -> None:
    """What the operator makes beside it; no policy, whose making the operator's role may not allow."""
    assert sorted(built["beside"]) == ["ConfigMap", "Service"]


def test_without_our_settings_spark_does_otherwise(built: dict[str, Any]) -> None:
    """Negative control: each of these comes from sparkConf, none from the template."""
    executor = built["without"]["executor"]["spec"]
    assert executor["terminationGracePeriodSeconds"] == 30
    assert "preStop" not in executor["containers"][0].get("lifecycle", {})
    assert sorted(built["without"]["beside"]) == ["ConfigMap", "NetworkPolicy", "Service"]
