"""A kubectl without a cluster: it remembers the objects it was given, and renders kustomizations with the real one ($REAL_KUBECTL)."""

import json
import os
import sys
from typing import Any

import recorder


def identity(one: dict[str, Any]) -> str:
    return f"{one['kind']}/{one['metadata'].get('namespace', '')}/{one['metadata']['name']}"


def given() -> dict[str, Any]:
    """The objects on stdin by identity."""
    value = json.loads(sys.stdin.read())
    return {identity(one): one for one in (value["items"] if value["kind"] == "List" else [value])}


def get(arguments: list[str], cluster: dict[str, Any]) -> None:
    if arguments[1] == "namespace":
        found = f"Namespace//{arguments[2]}" in cluster
        recorder.end(0, f"namespace/{arguments[2]}" if found else "")
    if arguments[1] == "secret":
        found = f"Secret/triplane/{arguments[2]}" in cluster
        recorder.end(0, f"secret/{arguments[2]}" if found else "")
    jobs = [one for name, one in cluster.items() if name.startswith(("RayJob/", "SparkApplication/"))]
    recorder.end(0, json.dumps({"items": jobs}))


def diff(cluster: dict[str, Any]) -> None:
    changed = [name for name, one in given().items() if cluster.get(name) != one]
    recorder.end(int(bool(changed)), "\n".join(f"+++ /tmp/MERGED-1/{name.replace('/', '.')}" for name in changed))


def delete(arguments: list[str], cluster: dict[str, Any]) -> dict[str, Any]:
    if arguments[1] == "namespace":
        inside = f"/{arguments[2]}/"
        return {
            name: one for name, one in cluster.items() if inside not in name and name != f"Namespace//{arguments[2]}"
        }
    if arguments[1] == "job":
        return {name: one for name, one in cluster.items() if name != f"Job/triplane/{arguments[2]}"}
    gone = given()
    return {name: one for name, one in cluster.items() if name not in gone}


def main() -> None:
    if sys.argv[1] == "kustomize":
        os.execv(os.environ["REAL_KUBECTL"], ["kubectl", *sys.argv[1:]])
    arguments = recorder.begin("kubectl")
    assert arguments[0] == "--context", "a call that names no cluster reaches whichever is current"
    verb, rest = arguments[2], arguments[2:]
    cluster = recorder.state("kubectl")
    if verb == "get":
        get(rest, cluster)
    if verb == "diff":
        diff(cluster)
    if verb in ("apply", "create"):
        recorder.save("kubectl", cluster | given())
    elif verb == "delete":
        recorder.save("kubectl", delete(rest, cluster))
    elif verb not in ("wait", "rollout", "logs"):
        recorder.end(2, error=f"the fake kubectl does not know {arguments}")
    recorder.end(0)


main()
