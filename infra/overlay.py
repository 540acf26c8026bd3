"""The rendered platform: a kustomize overlay and the pinned images -> objects, compared with the cluster and applied to it."""

import json
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from infra.command import parsed, run
from infra.settings import NAMESPACE, Settings
from triplane.errors import Refused, TriplaneError

MANAGER = ("--server-side", "--field-manager=triplane")
LEFT_OPEN = "unpinned"
CHANGED = re.compile(r"^\+\+\+ \S*/(\S+)", re.MULTILINE)
JOBS_OF = {"spark-operator": "sparkapplications.sparkoperator.k8s.io", "kuberay-operator": "rayjobs.ray.io"}
METRICS_SECRET = "triplane-metrics"


def render(overlay: Path) -> list[dict[str, Any]]:
    """Raises TriplaneError where kustomize does not render it."""
    text = run(["kubectl", "kustomize", str(overlay)]).stdout
    return [one for one in yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if one]


def pinned(objects: list[dict[str, Any]], images: Mapping[str, str]) -> list[dict[str, Any]]:
    """The objects with every image `NAME:unpinned` in the place of its pin. Raises Refused if anything is left open."""
    filled = [substituted(one, images) for one in objects]
    if still := [value for one in filled for value in _strings(one) if _is_open(value)]:
        raise Refused(f"the overlay still says {still[0]!r}: fill it in, in infra/pins.yaml or in the overlay")
    return filled


def substituted(value: Any, images: Mapping[str, str]) -> Any:
    """The value with every string `NAME:unpinned` in it replaced by the image of that name."""
    if isinstance(value, dict):
        return {key: substituted(inner, images) for key, inner in value.items()}
    if isinstance(value, list):
        return [substituted(inner, images) for inner in value]
    if isinstance(value, str) and value.endswith(f":{LEFT_OPEN}"):
        return images.get(value.removesuffix(f":{LEFT_OPEN}"), value)
    return value


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
    elif isinstance(value, str):
        yield value


def _is_open(value: str) -> bool:
    return value.endswith(f":{LEFT_OPEN}") or value.startswith(f"{LEFT_OPEN}:")


def namespaces(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in objects if one["kind"] == "Namespace"]


def is_new(settings: Settings) -> bool:
    """Whether the namespace is not there yet, and so nothing of the platform."""
    named = ("get", "namespace", NAMESPACE, "--ignore-not-found", "--output", "name")
    return not run(settings.kubectl(*named)).stdout.strip()


def differences(settings: Settings, objects: list[dict[str, Any]]) -> list[str]:
    """The names of the objects that applying would change."""
    done = run(settings.kubectl("diff", *MANAGER, "--filename", "-"), stdin=_list(objects), accepts=(0, 1))
    if done.returncode == 0:
        return []
    names = CHANGED.findall(done.stdout)
    if not names:
        raise TriplaneError(f"`kubectl diff` ended with 1 and showed no difference: {done.stderr[:500]}")
    return names


def apply(settings: Settings, objects: list[dict[str, Any]]) -> None:
    run(settings.kubectl("apply", *MANAGER, "--filename", "-"), stdin=_list(objects))


def ensure_metrics_token(settings: Settings) -> bool:
    """Makes the token that Prometheus and the jobs share, once. It goes through stdin and is nowhere else."""
    found = ("get", "secret", METRICS_SECRET, "--namespace", NAMESPACE, "--ignore-not-found", "--output", "name")
    if run(settings.kubectl(*found)).stdout.strip():
        return False
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": METRICS_SECRET, "namespace": NAMESPACE},
        "stringData": {"token": secrets.token_urlsafe(32)},
    }
    run(settings.kubectl("create", "--filename", "-"), stdin=json.dumps(secret))
    return True


def delete(settings: Settings, objects: list[dict[str, Any]], has_kueue: bool) -> None:
    """The namespace with all jobs in it, then what belongs to the whole cluster; operators still run and let go of what they hold."""
    run(settings.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait", "--timeout=15m"))
    wide = [one for one in objects if "namespace" not in one["metadata"] and one["kind"] != "Namespace"]
    wide = [one for one in wide if has_kueue or not one["apiVersion"].startswith("kueue.")]
    if wide:
        options = ("--filename", "-", "--ignore-not-found", "--wait", "--timeout=5m")
        run(settings.kubectl("delete", *options), stdin=_list(wide))


def running_jobs(settings: Settings, releases: Collection[str]) -> list[str]:
    """kind/name of the jobs that deleting the platform would end. A kind is known only while its operator is installed."""
    kinds = [kind for operator, kind in JOBS_OF.items() if operator in releases]
    if not kinds:
        return []
    named = ("get", ",".join(kinds), "--namespace", NAMESPACE, "--ignore-not-found", "--output", "json")
    items = (parsed(run(settings.kubectl(*named))) or {}).get("items", [])
    return [f"{one['kind']}/{one['metadata']['name']}" for one in items if not _has_ended(one.get("status", {}))]


def _has_ended(status: Mapping[str, Any]) -> bool:
    spark = status.get("applicationState", {}).get("state", "")
    return {spark, status.get("jobStatus", "")} & {"COMPLETED", "FAILED", "SUCCEEDED", "STOPPED"} != set()


def _list(objects: list[dict[str, Any]]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
