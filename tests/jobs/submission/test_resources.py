"""What a cluster can give: machine sizes as published, quantities, node groups of the real template, and each limit from both sides."""

import gzip
import json
from pathlib import Path
from typing import Any

import moto
import pytest

from jobs.manifests.lines import parse
from jobs.submission import resources
from jobs.submission.resources import GIB, GPU, Machine, Pool

INFRA = Path(resources.__file__).parents[2] / "infra"
POOL = Pool("gpu", "p5.48xlarge", resources.MACHINES["p5.48xlarge"], 4)
JOB = """
kind: RayJob
metadata: {{name: a, labels: {{kueue.x-k8s.io/queue-name: q}}}}
spec:
  rayClusterSpec:
    headGroupSpec: {{template: {{spec: {{containers: [{{resources: {{limits: {{cpu: 2, memory: 8Gi}}}}}}]}}}}}}
    workerGroupSpecs:
      - replicas: {replicas}
        template:
          spec:
            nodeSelector: {{triplane.io/pool: {pool}}}
            containers:
              - resources:
                  requests: {{cpu: {cpu}, memory: {memory}}}
                  limits: {{memory: {memory}, nvidia.com/gpu: {gpus}}}
"""
PLATFORM = """
kind: LocalQueue
metadata: {name: q}
spec: {clusterQueue: big}
---
kind: ResourceFlavor
metadata: {name: gpus}
spec: {nodeLabels: {triplane.io/pool: gpu}}
---
kind: ClusterQueue
metadata: {name: big}
spec: {resourceGroups: [{flavors: [{name: gpus, resources: [{name: nvidia.com/gpu, nominalQuota: 24}]}]}]}
---
kind: ResourceQuota
metadata: {name: all}
spec: {hard: {requests.memory: 4008Gi, pods: "5"}}
"""


def messages(**changes: Any) -> list[str]:
    values = {"replicas": 2, "pool": "gpu", "cpu": 160, "memory": "1600Gi", "gpus": 8} | changes
    (job,), _ = parse(JOB.format(**values), "job.yaml")
    platform, _ = parse(PLATFORM, "platform.yaml")
    return [one.message.removeprefix("RayJob a: ") for one in resources.findings(job, platform, {"gpu": POOL})]


def test_machine_sizes_are_those_published() -> None:
    types = json.loads(
        gzip.decompress((Path(moto.__file__).parent / "ec2/resources/instance_types.json.gz").read_bytes())
    )
    for name, machine in resources.MACHINES.items():
        about = types[name]
        gpus = about.get("GpuInfo", {}).get("Gpus", [{"Count": 0, "MemoryInfo": {"SizeInMiB": 0}}])[0]
        memory = about["MemoryInfo"]["SizeInMiB"] << 20
        gpu_memory = gpus["MemoryInfo"]["SizeInMiB"] << 20
        assert machine == Machine(about["VCpuInfo"]["DefaultVCpus"], memory, gpus["Count"], gpu_memory), name


def test_pools_are_those_of_the_template() -> None:
    found = resources.pools(INFRA / "aws" / "cluster.yaml")
    assert {name: pool.type.split(".")[1] for name, pool in found.items()} == {
        "core": "xlarge",
        "data": "4xlarge",
        "gpu": "48xlarge",
    }
    assert found["gpu"].most == 16 and found["gpu"].machine.gpus == 8
    assert resources.pools(INFRA / "none.yaml") == {}


@pytest.mark.parametrize(
    ("text", "amount"), [("500m", 0.5), ("2", 2), ("2Gi", 2 * GIB), ("1e3", 1000), ("4k", 4000), ("x", 0), ("1.2.3", 0)]
)
def test_quantities(text: str, amount: float) -> None:
    assert resources.quantity(text) == amount


def test_what_fits_has_no_findings() -> None:
    assert messages() == []


def test_more_than_a_machine_has() -> None:
    assert messages(gpus=9) == [
        "asks for 9 of nvidia.com/gpu in one pod, a p5.48xlarge of pool gpu has 8: ask for less"
    ]
    assert messages(cpu=191) == []
    assert messages(cpu=192) == [
        "asks for 192 of cpu in one pod, a p5.48xlarge of pool gpu has 192 and offers less: ask for less"
    ]
    assert messages(replicas=1, memory="2Ti") == [
        "asks for 2048 GiB of memory in one pod, a p5.48xlarge of pool gpu has 2048 GiB and offers less: ask for less"
    ]
    assert messages(pool="gpus") == ["its nodeSelector names pool 'gpus': there are gpu"]


def test_more_than_the_queue_or_the_namespace_may_hold() -> None:
    assert messages(replicas=3, memory="1Gi") == []
    assert messages(replicas=4, memory="1Gi") == [
        "the job asks for 32 of nvidia.com/gpu, queue big, flavor gpus, allows 24: it would wait for ever; ask for less, or raise the quota"
    ]
    assert messages(memory="2000Gi") == []
    assert messages(memory="2001Gi") == [
        "the job asks for 4010 GiB of memory, ResourceQuota all allows 4008 GiB: it would wait for ever; ask for less, or raise the quota"
    ]


def test_more_pods_than_machines() -> None:
    assert messages(replicas=4, gpus=5, memory="1Gi") == []
    assert messages(replicas=6, gpus=4, memory="1Gi") == []  # two a machine
    assert messages(replicas=5, gpus=5, memory="1Gi")[-1] == "5 pods of 5 GPUs: at most 4 machines of pool gpu hold 4"


def test_places_for_workers() -> None:
    (job,), _ = parse(JOB.format(replicas=2, pool="gpu", cpu=16, memory="1Gi", gpus=8), "job.yaml")
    assert resources.workers(job, threads=1) == 16
    assert resources.workers(job, threads=4) == 8
    (job,), _ = parse(JOB.format(replicas=3, pool="gpu", cpu=16, memory="1Gi", gpus=0), "job.yaml")
    assert resources.workers(job, threads=4) == 12
    assert resources.workers(job, threads=17) == 0  # of 17 CPUs no pod holds any
    (job,), _ = parse("kind: RayJob\nspec: {rayClusterSpec: {workerGroupSpecs: [{replicas: 2}]}}\n", "job.yaml")
    assert resources.workers(job, threads=1) is None  # the template leaves it to the cluster


def test_a_spark_application() -> None:
    text = """
kind: SparkApplication
metadata: {name: a}
spec:
  driver: {cores: 2, memory: 4g}
  executor: {instances: 4, cores: 7, memory: 6g, memoryOverhead: 20g, template: {spec: {nodeSelector: {triplane.io/pool: data}}}}
"""
    pool = Pool("data", "m7i.4xlarge", resources.MACHINES["m7i.4xlarge"], 2)
    (job,), _ = parse(text, "job.yaml")
    driver, executors = resources.pods_of(job)
    assert (driver.count, driver.asks["memory"]) == (1, 4 * GIB)
    assert (executors.count, executors.asks["cpu"], executors.asks["memory"], executors.asks[GPU]) == (
        4,
        7,
        26 * GIB,
        0,
    )
    assert resources.findings(job, [], {"data": pool}) == []
    (job,), _ = parse(text.replace("memoryOverhead: 20g", "memoryOverhead: 60g"), "job.yaml")
    (finding,) = resources.findings(job, [], {"data": pool})
    assert "asks for 66 GiB of memory in one pod, a m7i.4xlarge of pool data has 64 GiB" in finding.message
