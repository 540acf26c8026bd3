"""A kubectl on PATH that records what it is asked and keeps objects in a folder, and two job templates for it to render."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.submission import follow

LOG = "".join(f"step {i}\n" for i in range(20))
FAKE = r"""
import json, sys
from pathlib import Path

folder = Path(__file__).parent
asked = sys.argv[1:]
given = asked[:1] + asked[3:] if asked[1:3] == ["-n", "triplane"] else asked
text = sys.stdin.read() if "-" in given else ""
with (folder / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps({"arguments": asked, "stdin": text}) + "\n")


def fail(message):
    print(message, file=sys.stderr)
    sys.exit(1)


def path_of(kind, name):
    return folder / "objects" / f"{kind}.{name}.json"


faults_at = folder / "faults.json"
faults = json.loads(faults_at.read_text()) if faults_at.exists() else {}
if faults.get(given[0]):
    message = faults[given[0]].pop(0)
    faults_at.write_text(json.dumps(faults))
    if message:
        fail(message)
if given[0] == "kustomize":
    print((folder / "rendered.yaml").read_text())
elif given[0] == "create":
    made = json.loads(text)
    kind = {"RayJob": "rayjobs.ray.io", "SparkApplication": "sparkapplications.sparkoperator.k8s.io"}.get(made["kind"], made["kind"])
    path = path_of(kind, made["metadata"]["name"])
    if path.exists():
        fail(f'Error from server (AlreadyExists): error when creating "STDIN": {kind} "{made["metadata"]["name"]}" already exists')
    made["metadata"] |= {"uid": "u-1", "creationTimestamp": "2026-11-25T10:00:00Z"}
    path.write_text(json.dumps(made))
    print(json.dumps(made))
elif given[0] == "get":
    if given[2] == "-l":
        print(json.dumps({"kind": "List", "items": [json.loads(p.read_text()) for p in sorted((folder / "objects").glob(given[1] + ".*"))]}))
    elif path_of(given[1], given[2]).exists():
        found = json.loads(path_of(given[1], given[2]).read_text())
        statuses_at = folder / "statuses.json"
        statuses = json.loads(statuses_at.read_text()) if statuses_at.exists() else []
        if statuses:
            found["status"] = statuses.pop(0) if len(statuses) > 1 else statuses[0]
            statuses_at.write_text(json.dumps(statuses))
        print(json.dumps(found))
elif given[0] == "logs":
    sys.stdout.buffer.write((folder / "log").read_bytes())
    sys.stdout.flush()
    if "--follow" in given and (folder / "stays").exists():
        import time

        (folder / "follower").write_text(str(__import__("os").getpid()))
        time.sleep(60)
elif given[0] == "delete":
    path_of(given[1], given[2]).unlink()
else:
    fail(f"unknown command {given[0]}")
"""
RAY = """
apiVersion: ray.io/v1
kind: RayJob
metadata: {name: triplane-train, namespace: triplane, labels: {triplane.io/plane: train}}
spec:
  entrypoint: python -m jobs.train /etc/triplane/recipe.yaml
  rayClusterSpec: {headGroupSpec: {template: {spec: {volumes: [{name: recipe, configMap: {name: triplane-train-recipe}}]}}}}
"""
SPARK = """
apiVersion: sparkoperator.k8s.io/v1beta2
kind: SparkApplication
metadata: {name: triplane-data, namespace: triplane, labels: {triplane.io/plane: data}}
spec:
  arguments: [/etc/triplane/recipe.yaml]
  driver: {template: {spec: {volumes: [{name: recipe, configMap: {name: triplane-data-recipe}}]}}}
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    (folder / "objects").mkdir(parents=True)
    (folder / "kubectl").write_text(f"#!{sys.executable} -IS\n{FAKE}")  # -IS: quick to start
    (folder / "kubectl").chmod(0o755)
    (folder / "rendered.yaml").write_text(f"{RAY}---{SPARK}")
    (folder / "log").write_text(LOG)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(follow, "RETRY_SECONDS", 0.02)
    return folder


def calls(cluster: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (cluster / "calls.jsonl").read_text().splitlines()]


def say(cluster: Path, name: str, value: Any) -> None:
    (cluster / f"{name}.json").write_text(json.dumps(value))
