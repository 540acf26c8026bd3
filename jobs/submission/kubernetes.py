"""Jobs on Kubernetes by `kubectl`: a job template of infra/k8s/jobs, named, with the recipe in a ConfigMap beside it.

A plane's template is a SparkApplication (spark-operator, v1beta2) or a RayJob (KubeRay, v1); its status says how the job is doing, and in its
message how it ended. What is sent goes through stdin. Field names: the CRDs; messages: `driver container failed with ExitCode: N` of
kubeflow/spark-operator, `Job entrypoint command failed with exit code N` of Ray.
"""

import codecs
import copy
import hashlib
import json
import re
import selectors
import shlex
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from jobs.submission import package, pins
from jobs.submission.job import RECIPE, Job, Parcel, State, Unreachable
from triplane import storage
from triplane.errors import LostRace, NotFound, Refused, TriplaneError, UsageError

NAMESPACE = "triplane"
PLANE_LABEL, FINGERPRINT = "triplane.io/plane", "triplane.io/fingerprint"
MOUNTED = f"/etc/triplane/{RECIPE}"
RAY_JOB, SPARK_APPLICATION = "rayjobs.ray.io", "sparkapplications.sparkoperator.k8s.io"
KINDS = {"RayJob": RAY_JOB, "SparkApplication": SPARK_APPLICATION}
MAX_RECIPE_BYTES = 1 << 20  # of a ConfigMap
CHUNK = 1 << 16
CALL_SECONDS, DELETE_SECONDS = 60, 180
NOT_NOW = (
    "unable to connect",
    "refused",
    "timeout",
    "timed out",
    "unavailable",
    "internal error",
    "currently unable",
    "etcdserver",
)
NOT_US = ("unauthorized", "forbidden", "must be logged in", "provide credentials")
RAY_STATUS: dict[str, Any] = {"Running": "running", "Failed": "failed", "ValidationFailed": "failed"}
RAY_RESULT: dict[str, Any] = {"SUCCEEDED": "succeeded", "STOPPED": "stopped"}
SPARK_STATUS: dict[str, Any] = {
    "RUNNING": "running",
    "SUCCEEDING": "running",
    "FAILING": "running",
    "COMPLETED": "succeeded",
    "FAILED": "failed",
}
_EXIT_CODE = re.compile(r"exit ?code:? (-?[0-9]+)", re.IGNORECASE)


@dataclass(frozen=True)
class Kubernetes:
    """The jobs in the namespace `triplane` of kubectl's current context; `manifests` is the kustomization of templates to submit from."""

    target: str
    plane: str | None = None
    manifests: Path | None = None

    def prepare(self, job: Job) -> Parcel:
        """The plane's template and the command it will run. Raises UsageError for a template, a root or a recipe that cannot work."""
        template = self._template(job.plane)
        recipe = job.recipe.encode()
        if storage.is_local(job.root):
            raise UsageError(
                f"--root {job.root} is a folder of this machine: pods need s3://bucket/prefix or gs://bucket/prefix"
            )
        if len(recipe) > MAX_RECIPE_BYTES:
            raise UsageError(
                f"the recipe is {package.size(len(recipe))}, a ConfigMap holds {package.size(MAX_RECIPE_BYTES)}"
            )
        code = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()
        spec = _filled(template, "x", job)["spec"]
        command = spec["arguments"] if job.plane == "data" else shlex.split(spec["entrypoint"])
        what = f"{template['kind']} {template['metadata']['name']} and a ConfigMap of the recipe"
        return Parcel(what, len(json.dumps(template)) + len(recipe), code, tuple(command), template)

    def find(self, id: str) -> State | None:
        """Of any plane: a name is one job's, as the ConfigMap of its recipe goes by it."""
        return next((_state(item) for kind in self._kinds() for item in self._get(kind, id)), None)

    def submit(self, id: str, job: Job, parcel: Parcel) -> None:
        """Creates the job, then the ConfigMap that its pods wait for, as the job's own: it goes when the job goes. Raises LostRace."""
        wanted = _filled(parcel.content, id, job)
        wanted["metadata"].setdefault("annotations", {})[FINGERPRINT] = job.fingerprint(parcel.code)
        made = json.loads(_kubectl(["create", "-f", "-", "-o", "json"], json.dumps(wanted)))
        try:
            _kubectl(["create", "-f", "-"], json.dumps(_recipe_map(id, job, made)))
        except (
            BaseException
        ):  # also an interruption: its pods would wait for the recipe, and the same command attach to it
            self.cancel(id)
            raise

    def log_of(self, id: str) -> str:
        """A retried SparkApplication has another driver, a retried RayJob another cluster and submitter, under the names of the first."""
        status = self._said(id).get("status") or {}
        return f"{id} {status.get('executionAttempts', '')} {status.get('rayClusterName', '')}"

    def stream(self, id: str, emit: Callable[[str], None], stop: threading.Event) -> None:
        """`kubectl logs` of what runs the command: RayJob's submitter, or Spark's driver. Raises Unreachable while there is none."""
        pod = self._speaker(id)
        command = ["kubectl", "logs", "-n", NAMESPACE, "--follow", pod]
        with subprocess.Popen(command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            _pass_on(process, emit, stop)
        if process.returncode != 0 and not stop.is_set():
            raise Unreachable(f"{pod} shows no output now")

    def output(self, id: str) -> str:
        return _kubectl(["logs", "-n", NAMESPACE, self._speaker(id)])

    def cancel(self, id: str) -> None:
        """Deletes the job, and waits until its pods' owner is gone. Raises NotFound."""
        kind = next((kind for kind in self._kinds() if self._get(kind, id)), None)
        if kind is None:
            raise NotFound(f"there is no job {id} in namespace {NAMESPACE}: list them by `triplane jobs list --to k8s`")
        arguments = [
            "delete",
            "-n",
            NAMESPACE,
            kind,
            id,
            "--wait=true",
            "--cascade=foreground",
            f"--timeout={DELETE_SECONDS}s",
        ]
        _kubectl(arguments, seconds=DELETE_SECONDS + CALL_SECONDS)

    def jobs(self) -> list[State]:
        found = [_state(item) for kind in self._kinds() for item in self._get(kind, "-l", PLANE_LABEL)]
        return sorted(found, key=lambda one: one.started or 0.0)

    def _kinds(self) -> list[str]:
        """The plane's own first."""
        return sorted(KINDS.values(), key=lambda kind: (kind == SPARK_APPLICATION) != (self.plane == "data"))

    def _get(self, kind: str, *which: str) -> list[dict[str, Any]]:
        try:
            said = _kubectl(["get", "-n", NAMESPACE, kind, *which, "--ignore-not-found", "-o", "json"])
        except TriplaneError as error:
            is_other = self.plane is None or kind != self._kinds()[0]
            if is_other and ("have a resource type" in str(error) or (isinstance(error, Refused) and self.plane)):
                return []  # its operator is not installed there, or it is not ours to see
            raise
        value = json.loads(said) if said.strip() else {"items": []}
        return value.get("items", [value])

    def _said(self, id: str) -> dict[str, Any]:
        said = next((item for kind in self._kinds() for item in self._get(kind, id)), None)
        if said is None:
            raise Unreachable(f"there is no job {id} now")
        return said

    def _speaker(self, id: str) -> str:
        """What has the job's output, as kubectl names it."""
        said = self._said(id)
        driver = said.get("status", {}).get("driverInfo", {}).get("podName") or f"{id}-driver"
        return f"pod/{driver}" if said["kind"] == "SparkApplication" else f"job/{id}"

    def _template(self, plane: str) -> dict[str, Any]:
        manifests = self.manifests or Path()
        rendered = yaml.safe_load_all(_kubectl(["kustomize", str(manifests)]))
        found = [one for one in rendered if one and _labels(one).get(PLANE_LABEL) == plane and one.get("kind") in KINDS]
        if len(found) != 1:
            raise UsageError(
                f"{self.manifests} renders {len(found)} jobs labelled {PLANE_LABEL}: {plane}: it takes one"
            )
        template: dict[str, Any] = pins.filled(found[0], pins.images(manifests))
        if left := next(pins.left_open(template), None):
            raise UsageError(
                f"{template['kind']} {template['metadata']['name']} has the image {left}: fill its digest in, in pins.yaml beside "
                f"the folder k8s or in {self.manifests}"
            )
        return template


def _labels(document: dict[str, Any]) -> dict[str, str]:
    return document.get("metadata", {}).get("labels") or {}


def _filled(template: dict[str, Any], id: str, job: Job) -> dict[str, Any]:
    """The template as this job: its name, its ConfigMap, its command. Raises UsageError if it reads no recipe."""
    made = copy.deepcopy(template)
    old = made["metadata"]["name"]
    made["metadata"] |= {"name": id, "namespace": made["metadata"].get("namespace", NAMESPACE)}
    spec = made["spec"]
    given = spec.get("arguments") or [] if job.plane == "data" else shlex.split(spec.get("entrypoint") or "")
    if MOUNTED not in given or not _rename(spec, f"{old}-recipe", f"{id}-recipe"):
        raise UsageError(
            f"{made['kind']} {old} does not read {MOUNTED} from a ConfigMap {old}-recipe: correct the template"
        )
    position = given.index(MOUNTED)
    command = [*given[:position], *job.arguments(MOUNTED), *given[position + 1 :]]
    spec["arguments" if job.plane == "data" else "entrypoint"] = command if job.plane == "data" else shlex.join(command)
    return made


def _rename(value: Any, old: str, new: str) -> int:
    """Puts `new` in the place of every `name: old` -> how many there were."""
    if isinstance(value, list):
        return sum(_rename(one, old, new) for one in value)
    if not isinstance(value, dict):
        return 0
    count = sum(_rename(one, old, new) for one in value.values())
    if value.get("name") == old:
        value["name"] = new
        return count + 1
    return count


def _recipe_map(id: str, job: Job, made: dict[str, Any]) -> dict[str, Any]:
    owner = {"apiVersion": made["apiVersion"], "kind": made["kind"], "name": id, "uid": made["metadata"]["uid"]}
    about = {"name": f"{id}-recipe", "namespace": made["metadata"].get("namespace", NAMESPACE)}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**about, "labels": {PLANE_LABEL: job.plane}, "ownerReferences": [owner]},
        "data": {RECIPE: job.recipe},
    }


def _state(said: dict[str, Any]) -> State:
    """What the status of a RayJob or SparkApplication says. A RayJob's own word counts, not that of the Ray job inside, which it may retry."""
    status: dict[str, Any] = said.get("status") or {}
    about = said["metadata"]
    if said["kind"] == "RayJob":
        phase, message = status.get("jobDeploymentStatus", ""), status.get("message") or status.get("reason") or ""
        result: Any = RAY_STATUS.get(phase, "pending")
        if phase == "Complete":
            result = RAY_RESULT.get(status.get("jobStatus", ""), "failed")
        ended = status.get("endTime")
    else:
        application = status.get("applicationState") or {}
        result, message = (
            SPARK_STATUS.get(application.get("state", ""), "pending"),
            application.get("errorMessage") or "",
        )
        ended = status.get("terminationTime")
    code = _EXIT_CODE.search(message) if result == "failed" else None
    return State(
        id=about["name"],
        status=result,
        exit_code=int(code[1]) if code else None,
        message=message,
        plane=_labels(said).get(PLANE_LABEL, ""),
        fingerprint=(about.get("annotations") or {}).get(FINGERPRINT, ""),
        started=_seconds(about.get("creationTimestamp")),
        ended=_seconds(ended),
    )


def _seconds(text: str | None) -> float | None:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if text else None


def _pass_on(process: "subprocess.Popen[bytes]", emit: Callable[[str], None], stop: threading.Event) -> None:
    """Hands on what comes, as it comes, also half a line; ends the process when asked to stop."""
    assert process.stdout is not None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not stop.is_set():
            if selector.select(0.2):
                chunk = process.stdout.read(CHUNK)
                if not chunk:
                    return
                emit(decoder.decode(chunk))
    process.terminate()


def _kubectl(arguments: Sequence[str], text: str | None = None, seconds: int = CALL_SECONDS) -> str:
    """stdout of a call. Raises Unreachable, Refused, LostRace by what kubectl says, TriplaneError otherwise."""
    try:
        given = text.encode() if text is not None else None
        done = subprocess.run(["kubectl", *arguments], input=given, capture_output=True, timeout=seconds)
    except FileNotFoundError as error:
        raise TriplaneError("kubectl is not on PATH: install it, and point it to the cluster") from error
    except subprocess.TimeoutExpired as error:
        raise Unreachable(f"the cluster did not answer `kubectl {arguments[0]}` in {seconds} s") from error
    if done.returncode == 0:
        return done.stdout.decode("utf-8", "replace")  # not as text: a job's \r would become \n, and another length
    said = (done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if "AlreadyExists" in said:
        raise LostRace(
            f"a job of this name was submitted by another command at this moment ({said}): run this one again"
        )
    if any(word in said.lower() for word in NOT_US):
        raise Refused(f"the cluster does not let us: {said}: log in, or ask for the role")
    if any(word in said.lower() for word in NOT_NOW):
        raise Unreachable(f"the cluster does not answer: {said}")
    raise TriplaneError(f"kubectl {arguments[0]} failed: {said}")
