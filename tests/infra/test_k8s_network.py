"""Who reaches whom: the NetworkPolicies of infra/k8s, played by the rules that a network plug-in follows.

A connection passes if the source may send it and the target may receive it; a pod that no policy selects may do both.
Rules: https://kubernetes.io/docs/concepts/services-networking/network-policies/.
"""

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

Document = dict[str, Any]
Render = Callable[[str], list[Document]]


@dataclass(frozen=True)
class Pod:
    namespace: str
    labels: tuple[tuple[str, str], ...]


def ours(plane: str, role: str) -> Pod:
    return Pod("triplane", (("triplane.io/plane", plane), ("triplane.io/role", role)))


def other(namespace: str, name: str = "any") -> Pod:
    key = "k8s-app" if namespace == "kube-system" else "app.kubernetes.io/name"
    return Pod(namespace, ((key, name),))


def selects(selector: Document, labels: dict[str, str]) -> bool:
    exact = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return exact and all(labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", []))


def is_peer(peer: Document, end: Pod | str) -> bool:
    if isinstance(end, str):
        block, address = peer.get("ipBlock"), ipaddress.ip_address(end)
        inside = (
            [address in ipaddress.ip_network(one) for one in [block["cidr"], *block.get("except", [])]] if block else []
        )
        return bool(inside) and inside[0] and not any(inside[1:])
    if "ipBlock" in peer:
        return False
    spaces = peer.get("namespaceSelector")
    where = (
        selects(spaces, {"kubernetes.io/metadata.name": end.namespace})
        if spaces is not None
        else end.namespace == "triplane"
    )
    return where and selects(peer.get("podSelector", {}), dict(end.labels))


def passes(policies: list[Document], direction: str, pod: Pod | str, end: Pod | str, port: int, protocol: str) -> bool:
    """Whether `pod`'s own side lets it through: addresses and other namespaces are not ours to rule."""
    if isinstance(pod, str) or pod.namespace != "triplane":
        return True
    mine = [one["spec"] for one in policies if selects(one["spec"]["podSelector"], dict(pod.labels))]
    mine = [one for one in mine if direction in one["policyTypes"]]
    key, peers = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    return not mine or any(
        any(is_peer(peer, end) for peer in rule[peers])
        and any(one["port"] <= port <= one.get("endPort", one["port"]) and one["protocol"] == protocol for one in rule["ports"])
        for one in mine for rule in one.get(key, [])
    )  # fmt: skip


def reaches(policies: list[Document], source: Pod | str, target: Pod | str, port: int, protocol: str = "TCP") -> bool:
    return passes(policies, "Egress", source, target, port, protocol) and passes(
        policies, "Ingress", target, source, port, protocol
    )


DRIVER, EXECUTOR = ours("data", "driver"), ours("data", "executor")
HEAD, WORKER, SUBMITTER = (ours("train", role) for role in ("head", "worker", "submitter"))
SCORER, WATCH = ours("eval", "worker"), ours("eval", "watch")
DNS, PROMETHEUS = other("kube-system", "kube-dns"), other("monitoring", "prometheus")
OPERATOR, STORE = other("kuberay-system", "kuberay-operator"), other("object-store")
S3, AGENT, NODE_IDENTITY, API = "52.216.8.1", "169.254.170.23", "169.254.169.254", "10.64.1.7"

Flow = tuple[Pod | str, Pod | str, int, str]
OPEN: list[Flow] = [
    (DRIVER, EXECUTOR, 7079, "a driver fetches results"),
    (EXECUTOR, DRIVER, 7078, "an executor reports"),
    (EXECUTOR, EXECUTOR, 7079, "shuffle, and blocks of a node that goes"),
    (DRIVER, API, 443, "a driver starts executors"),
    (WORKER, WORKER, 41000, "NCCL and gloo"),
    (WORKER, HEAD, 6379, "a worker joins"),
    (HEAD, WORKER, 10002, "Ray starts work"),
    (SUBMITTER, HEAD, 8265, "a job is handed over"),
    (OPERATOR, HEAD, 8265, "KubeRay asks how it is doing"),
    (PROMETHEUS, WORKER, 9464, "our figures"),
    (PROMETHEUS, HEAD, 8080, "Ray's"),
    (PROMETHEUS, DRIVER, 4040, "Spark's"),
]
SHUT: list[Flow] = [
    ("10.64.9.9", HEAD, 8265, "a machine of the network"),
    (other("default"), HEAD, 8265, "another team's pod"),
    (other("default"), DRIVER, 4040, "another team's pod"),
    (other("monitoring"), HEAD, 9464, "a pod beside Prometheus"),
    (OPERATOR, WORKER, 41000, "KubeRay needs one port"),
    (WORKER, SCORER, 41000, "training does not reach evaluation"),
    (SCORER, HEAD, 8265, "evaluation does not reach training"),
    (HEAD, DRIVER, 7078, "training does not reach data"),
    (EXECUTOR, API, 443, "an executor has no business with the API server"),
    (WORKER, API, 443, "nor has training"),
    (SUBMITTER, WORKER, 41000, "a submitter needs one port"),
    (SUBMITTER, S3, 443, "and no storage"),
    (WORKER, NODE_IDENTITY, 80, "the node's own identity"),
    (WORKER, S3, 80, "storage without TLS"),
    (WORKER, other("default"), 443, "another team's service"),
]


@pytest.fixture(params=["aws", "local"])
def policies(request: pytest.FixtureRequest, render: Render) -> list[Document]:
    return [one for one in render(f"overlays/{request.param}") if one["kind"] == "NetworkPolicy"]


@pytest.mark.parametrize(("source", "target", "port", "why"), OPEN)
def test_what_a_plane_needs_is_open(policies: list[Document], source: Pod, target: Pod, port: int, why: str) -> None:
    assert reaches(policies, source, target, port), why


@pytest.mark.parametrize(("source", "target", "port", "why"), SHUT)
def test_the_rest_is_shut(policies: list[Document], source: Pod, target: Pod, port: int, why: str) -> None:
    assert not reaches(policies, source, target, port), why


@pytest.mark.parametrize("pod", [DRIVER, EXECUTOR, HEAD, WORKER, SCORER, WATCH])
def test_planes_reach_storage_and_names(pod: Pod, render: Render) -> None:
    on_aws, on_local = (
        [one for one in render(f"overlays/{of}") if one["kind"] == "NetworkPolicy"] for of in ("aws", "local")
    )
    assert reaches(on_aws, pod, S3, 443) and reaches(on_aws, pod, AGENT, 80)
    assert reaches(on_local, pod, STORE, 9000) and not reaches(on_local, pod, S3, 443)
    assert all(
        reaches(policies, pod, DNS, 53, protocol) for policies in (on_aws, on_local) for protocol in ("TCP", "UDP")
    )


def test_deny_all_covers_every_pod(policies: list[Document]) -> None:
    [deny] = [one["spec"] for one in policies if one["metadata"]["name"] == "deny-all"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    stranger = Pod("triplane", (("app", "debug"),))
    assert not reaches(policies, stranger, S3, 443) and not reaches(policies, other("default"), stranger, 80)


def test_without_deny_all_a_stranger_is_free(policies: list[Document]) -> None:
    """Negative control: it is that one policy which shuts the rest."""
    others = [one for one in policies if one["metadata"]["name"] != "deny-all"]
    assert reaches(others, other("default"), Pod("triplane", (("app", "debug"),)), 80)


@pytest.mark.parametrize("name", ["data", "data-driver", "train", "train-submitter", "metrics", "dns"])
def test_each_policy_is_needed(policies: list[Document], name: str) -> None:
    """Negative control: taken away, something of the list above no longer works."""
    left = [one for one in policies if one["metadata"]["name"] != name]
    needed: list[Flow] = [*OPEN, (WORKER, DNS, 53, "names")]
    assert [why for source, target, port, why in needed if not reaches(left, source, target, port)]


def test_a_policy_that_opens_a_port_to_all_is_noticed(policies: list[Document]) -> None:
    """Negative control of the shut list."""
    [train] = [one for one in policies if one["metadata"]["name"] == "train"]
    train["spec"]["ingress"].append(
        {"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": 8265, "protocol": "TCP"}]}
    )
    assert reaches(policies, "10.64.9.9", HEAD, 8265)


def test_pods_carry_the_labels_that_policies_select(render: Render, pods: Any) -> None:
    """A pod without its labels would be shut in, and its job would hang without a word."""
    found = {
        (metadata["labels"]["triplane.io/plane"], metadata["labels"]["triplane.io/role"])
        for folder in ("jobs/aws", "overlays/aws") for one in render(folder) for metadata, _ in pods(one)
    }  # fmt: skip
    ray = {(plane, role) for plane in ("train", "eval") for role in ("head", "worker", "submitter")}
    assert found == {("data", "driver"), ("data", "executor"), ("eval", "watch")} | ray
