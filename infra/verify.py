"""Whether what infra/up installed works: stacks, operators, nodes, and one pod that reads the bucket as an evaluation would."""

import json
from typing import Any

from infra import stacks
from infra.command import run
from infra.console import say
from infra.pins import Pins
from infra.settings import NAMESPACE, Settings
from triplane.errors import TriplaneError

TIMEOUT = "10m"
SMOKE = "triplane-smoke"
PROGRAM = "import sys; from triplane import storage; print(len(storage.folders(sys.argv[1])), 'runs')"
TOKEN_CHECK = """every job's Ray asks for a token; while one runs, this has to print 401 (NAME-head-svc: its head's service):
  kubectl --context {context} --namespace triplane get services
  kubectl --context {context} --namespace triplane port-forward service/NAME-head-svc 8265 &
  curl --silent --output /dev/null --write-out '%{{http_code}}\\n' http://127.0.0.1:8265/api/jobs/"""


def verify(settings: Settings, pins: Pins, root: str) -> None:
    """Raises TriplaneError at the first thing that does not work."""
    for part in ("foundation", "cluster"):
        if (found := stacks.describe(settings, settings.stack(part))) is None:
            raise TriplaneError(f"stack {settings.stack(part)} is not there: run infra/up again")
        stacks.require_at_rest(found)
    say("verify: both stacks stand")
    core = ("--selector", "triplane.io/pool=core", f"--timeout={TIMEOUT}")
    run(settings.kubectl("wait", "nodes", "--for=condition=Ready", *core))
    say("verify: the core nodes are ready")
    for chart in pins.charts:
        for workload in chart.waits_for:
            watched = ("rollout", "status", workload, "--namespace", chart.namespace, f"--timeout={TIMEOUT}")
            run(settings.kubectl(*watched))
    say("verify: the operators and device plugins are up")
    smoke(settings, pins.images["triplane-ray"], root)
    say("verify: a pod read the bucket by its role, through the network policies")
    say("verify: " + TOKEN_CHECK.format(context=settings.name))


def smoke(settings: Settings, image: str, root: str) -> None:
    """One pod as triplane-eval lists the runs under the root. Whatever happens, its job is deleted again."""
    named = ("--namespace", NAMESPACE)
    run(settings.kubectl("delete", "job", SMOKE, *named, "--ignore-not-found", "--wait"))
    run(settings.kubectl("create", "--filename", "-"), stdin=json.dumps(smoke_job(image, root)))
    try:
        waited = ("wait", f"job/{SMOKE}", *named, "--for=condition=Complete", f"--timeout={TIMEOUT}")
        run(settings.kubectl(*waited))
    except TriplaneError as error:
        logs = run(settings.kubectl("logs", f"job/{SMOKE}", *named, "--tail=20"), accepts=range(256))
        said = " ".join((logs.stdout or logs.stderr).split())
        raise TriplaneError(
            f"the smoke check did not read {root}: {error}; the pod says: {said or 'nothing'}"
        ) from error
    finally:
        run(settings.kubectl("delete", "job", SMOKE, *named, "--ignore-not-found", "--wait"))


def smoke_job(image: str, root: str) -> dict[str, Any]:
    """Labelled as the watcher, whose policies and role it is to try."""
    container = {
        "name": "smoke",
        "image": image,
        "command": ["python", "-c", PROGRAM, f"{root}/run"],
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "NUMBA_CACHE_DIR", "value": "/tmp/numba"}],
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    pod = {
        "serviceAccountName": "triplane-eval",
        "automountServiceAccountToken": False,
        "restartPolicy": "Never",
        "nodeSelector": {"triplane.io/pool": "core"},
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}],
    }
    labels = {"triplane.io/plane": "eval", "triplane.io/role": "watch"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": SMOKE, "namespace": NAMESPACE},
        "spec": {
            "backoffLimit": 1,
            "activeDeadlineSeconds": 540,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
