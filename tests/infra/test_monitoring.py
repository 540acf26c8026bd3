"""What the planes tell and what Prometheus and Grafana ask for, by the names in triplane/metrics.py: the same, and behind the same token."""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from triplane import metrics
from triplane.errors import UsageError

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "infra" / "monitoring"
VARIABLES = {metrics.PORT_VARIABLE, metrics.ADDRESS_VARIABLE, metrics.TOKEN_VARIABLE}
Document = dict[str, Any]
Render = Callable[[str], list[Document]]
Pods = Callable[[Document], list[tuple[Document, Document]]]


def emitted() -> dict[str, set[str]]:
    """Every figure and its labels, as the head of triplane/metrics.py lists them."""
    listed = re.findall(r"triplane_(\w+)\{([\w, ]+)\}", metrics.__doc__ or "")
    return {f"triplane_{name}": set(labels.split(", ")) for name, labels in listed}


def asked() -> list[str]:
    """The dashboard's queries."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def unanswered(queries: list[str]) -> list[str]:
    """Names that nobody emits, labels that a figure does not have, and counters that are shown as they are."""
    found = []
    for query in queries:
        [name] = re.findall(r"triplane_\w+", query)
        labels = {one for group in re.findall(r"by \(([\w, ]+)\)", query) for one in group.split(", ")}
        found += [name] if name not in emitted() else sorted(labels - emitted()[name])
        found += [f"{name} without a rate"] if name.endswith("_total") and "rate(" not in query else []
    return found


def test_the_list_of_figures_is_what_the_code_emits() -> None:
    assert set(emitted()) == {f"triplane_{name}" for name in metrics._HELP}
    calls = [
        call
        for package in ("triplane", "dataplane", "trainplane", "evalplane")
        for path in (ROOT / package).rglob("*.py") if "metrics." in (text := path.read_text())
        for call in ast.walk(ast.parse(text))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("metrics.count", "metrics.gauge")
    ]  # fmt: skip
    told = {f"triplane_{ast.literal_eval(one.args[0])}": {k.arg for k in one.keywords if k.arg} for one in calls}
    assert set(told) == set(emitted())
    assert [name for name, labels in told.items() if labels and labels != emitted()[name]] == []


def test_the_dashboard_asks_for_what_is_emitted() -> None:
    queries = asked()
    assert unanswered(queries) == []
    assert set(emitted()) - set(re.findall(r"triplane_\w+", " ".join(queries))) == {"triplane_done_total"}
    wrong = ["sum(rate(triplane_token_total[2m]))", "max by (job) (triplane_loss)", "sum(triplane_tokens_total)"]
    assert unanswered(wrong) == ["triplane_token_total", "job", "triplane_tokens_total without a rate"]


def scraped(render: Render, pods: Pods) -> list[tuple[dict[str, str], Document]]:
    """(labels, container) of every container that opens a port called metrics."""
    return [
        (metadata["labels"], container)
        for folder in ("jobs/base", "jobs/aws", "jobs/local", "overlays/aws", "overlays/local")
        for document in render(folder) for metadata, spec in pods(document) for container in spec["containers"]
        if any(port["name"] == "metrics" for port in container.get("ports", []))
    ]  # fmt: skip


def unserved(container: Document) -> list[str]:
    """Why no figure of a container can be had: a variable that is missing, or one that says something else than its port."""
    given = {one["name"]: one for one in container["env"]}
    found = sorted(VARIABLES - set(given))
    [port] = [one["containerPort"] for one in container["ports"] if one["name"] == "metrics"]
    if given.get(metrics.PORT_VARIABLE, {}).get("value") != str(port):
        found.append(f"port {port}")
    return found


def test_who_opens_the_port_serves_on_it_behind_the_token(render: Render, pods: Pods) -> None:
    found = scraped(render, pods)
    assert {(one["triplane.io/plane"], one["triplane.io/role"]) for one, _ in found} == {
        *(("data", "driver"), ("train", "head"), ("train", "worker"), ("eval", "head"), ("eval", "worker")),
        ("eval", "watch"),
    }
    assert [unserved(container) for _, container in found] == [[]] * len(found)
    container = found[0][1]
    container["env"] = [one for one in container["env"] if one["name"] != metrics.TOKEN_VARIABLE]
    [port] = [one for one in container["ports"] if one["name"] == "metrics"]
    port["containerPort"] = 9465
    assert unserved(container) == [metrics.TOKEN_VARIABLE, "port 9465"]


def test_a_pod_without_the_token_would_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(metrics.PORT_VARIABLE, "9464")
    monkeypatch.setenv(metrics.ADDRESS_VARIABLE, "10.0.0.7")
    monkeypatch.delenv(metrics.TOKEN_VARIABLE, raising=False)
    with pytest.raises(UsageError, match=metrics.TOKEN_VARIABLE):
        metrics.serve.__wrapped__()


def monitors() -> dict[str, Document]:
    documents = yaml.safe_load_all((MONITORING / "podmonitors.yaml").read_text())
    return {one["metadata"]["name"]: one for one in documents}


def test_prometheus_sends_the_token_that_the_pods_ask_for(render: Render, pods: Pods) -> None:
    [endpoint] = monitors()["triplane"]["spec"]["podMetricsEndpoints"]
    wanted = endpoint["authorization"]
    assert wanted["type"] == "Bearer" and endpoint["port"] == "metrics"
    for labels, container in scraped(render, pods):
        given = {one["name"]: one for one in container["env"]}
        assert given[metrics.TOKEN_VARIABLE]["valueFrom"]["secretKeyRef"] == wanted["credentials"]
        assert given[metrics.ADDRESS_VARIABLE]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
        for rule in monitors()["triplane"]["spec"]["selector"]["matchExpressions"]:
            assert labels[rule["key"]] in rule["values"]


def test_ports_that_are_scraped_are_there_and_open(render: Render, pods: Pods) -> None:
    """PodMonitor has no schema here, so at least the names must meet; `spark-ui` is Spark's own, 4040."""
    asked_for = {endpoint["port"] for one in monitors().values() for endpoint in one["spec"]["podMetricsEndpoints"]}
    ports = {
        port["name"]: port["containerPort"]
        for folder in ("jobs/base", "base") for one in render(folder) for _, spec in pods(one)
        for container in spec["containers"] for port in container.get("ports", [])
    }  # fmt: skip
    assert asked_for == {"metrics", "ray-metrics", "spark-ui"}
    [policy] = [one for one in render("base") if (one["kind"], one["metadata"]["name"]) == ("NetworkPolicy", "metrics")]
    opened = {port["port"] for port in policy["spec"]["ingress"][0]["ports"]}
    assert opened == {(ports | {"spark-ui": 4040})[name] for name in asked_for}
