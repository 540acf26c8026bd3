"""Jobs on Kubernetes, with a kubectl on PATH that records what it is asked and keeps objects in a folder."""

import json
import shlex
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import jobs
from jobs.submission import follow, kubernetes, pins
from jobs.submission import submit as submission
from jobs.submission.job import Job, State, Unreachable
from jobs.submission.kubernetes import Kubernetes
from tests.jobs.submission.fake_kubectl import LOG, calls, say
from triplane.errors import LostRace, NotFound, Refused, TriplaneError, UsageError

TEMPLATES = Path(jobs.__file__).parents[1] / "infra" / "k8s" / "jobs"
TRAIN = Job("train", "name: x\n", "s3://bucket/root", ("a=it's",))
DATA = Job("data", "name: x\n", "s3://bucket/root", ("a=1",))
RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
COMPLETE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED", "endTime": "2026-11-25T10:05:00Z"}


def submitted(job: Job = TRAIN, name: str | None = "a", manifests: str = "any/folder") -> submission.Submitted:
    return submission.submit(Kubernetes("k8s", job.plane, Path(manifests)), job, name, lambda line: None)


def followed(plane: str = "train", id: str = "a") -> tuple[State, str, list[str]]:
    written: list[str] = []
    said: list[str] = []
    state = follow.follow(Kubernetes("k8s", plane), id, written.append, said.append)
    return state, "".join(written), said


def test_a_training_run_is_created_with_its_recipe(cluster: Path) -> None:
    made = submitted()
    created = [one for one in calls(cluster) if "create" in one["arguments"]]
    job, recipe = (json.loads(one["stdin"]) for one in created)
    assert [one["arguments"] for one in created] == [["create", "-f", "-", "-o", "json"], ["create", "-f", "-"]]
    assert job["metadata"]["name"] == "a" and job["metadata"]["namespace"] == "triplane"
    assert job["metadata"]["annotations"] == {"triplane.io/fingerprint": made.fingerprint}
    assert (
        job["spec"]["entrypoint"]
        == """python -m jobs.train /etc/triplane/recipe.yaml --root s3://bucket/root 'a=it'"'"'s'"""
    )
    assert (
        job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"][0]["configMap"]["name"]
        == "a-recipe"
    )
    assert recipe["data"] == {"recipe.yaml": "name: x\n"}
    assert recipe["metadata"]["name"] == "a-recipe" and recipe["metadata"]["namespace"] == "triplane"
    assert recipe["metadata"]["ownerReferences"] == [
        {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": "a", "uid": "u-1"}
    ]
    assert list(made.parcel.command) == shlex.split(job["spec"]["entrypoint"])
    assert next(one["arguments"] for one in calls(cluster)) == ["kustomize", "any/folder"]


def test_a_build_is_a_spark_application(cluster: Path) -> None:
    submitted(DATA, "b")
    job = json.loads(next(one["stdin"] for one in calls(cluster) if one["stdin"]))
    assert (job["kind"], job["metadata"]["name"]) == ("SparkApplication", "b")
    assert job["spec"]["arguments"] == ["/etc/triplane/recipe.yaml", "s3://bucket/root", "a=1"]


def ray(phase: str, result: str = "", message: str = "") -> dict[str, str]:
    return {"jobDeploymentStatus": phase, "jobStatus": result, "message": message}


def spark(state: str) -> dict[str, Any]:
    failed = {"errorMessage": "driver container failed with ExitCode: 3, Reason: Error"} if state == "FAILED" else {}
    return {"applicationState": {"state": state, **failed}}


@pytest.mark.parametrize(
    ("kind", "status", "wanted", "exit_code"),
    [
        ("RayJob", {}, "pending", None),
        ("RayJob", ray("Initializing"), "pending", None),
        ("RayJob", ray("Suspended"), "pending", None),
        ("RayJob", ray("Running", "RUNNING"), "running", None),
        ("RayJob", ray("Running", "SUCCEEDED"), "running", None),
        ("RayJob", ray("Retrying", "FAILED", "failed with exit code 2, last"), "pending", None),
        ("RayJob", ray("Complete", "SUCCEEDED"), "succeeded", 0),
        ("RayJob", ray("Complete", "STOPPED"), "stopped", 143),
        ("RayJob", ray("Complete", "FAILED", "Job entrypoint command failed with exit code -9, last"), "failed", 137),
        ("RayJob", ray("Failed", "FAILED", "Job entrypoint command failed with exit code 2, last"), "failed", 2),
        ("RayJob", ray("Failed", "RUNNING", "The job ran into its deadline"), "failed", 1),
        ("RayJob", ray("ValidationFailed"), "failed", 1),
        ("SparkApplication", {}, "pending", None),
        ("SparkApplication", spark("SUBMITTED"), "pending", None),
        ("SparkApplication", spark("SUBMISSION_FAILED"), "pending", None),
        ("SparkApplication", spark("RUNNING"), "running", None),
        ("SparkApplication", spark("FAILING"), "running", None),
        ("SparkApplication", spark("PENDING_RERUN"), "pending", None),
        ("SparkApplication", spark("COMPLETED"), "succeeded", 0),
        ("SparkApplication", spark("FAILED"), "failed", 3),
    ],
)
def test_what_a_status_says(kind: str, status: dict[str, Any], wanted: str, exit_code: int | None) -> None:
    state = kubernetes._state({"kind": kind, "metadata": {"name": "a"}, "status": status})
    assert (state.status, state.own_exit_code if state.is_over else None) == (wanted, exit_code)


def test_a_ray_job_is_followed_to_its_end(cluster: Path) -> None:
    submitted()
    say(
        cluster,
        "statuses",
        [{}, RUNNING, ray("Retrying", "FAILED"), RUNNING, ray("Failed", "FAILED", "failed with exit code 2, last")],
    )
    state, written, said = followed()
    assert (state.own_exit_code, written) == (2, LOG)
    assert said == ["a failed with exit code 2: failed with exit code 2, last"]
    assert (state.plane, state.started) == ("train", 1795600800.0)


def test_a_spark_application_is_followed_by_its_driver(cluster: Path) -> None:
    submitted(DATA, "b")
    say(cluster, "statuses", [spark("SUBMITTED"), spark("RUNNING"), spark("FAILED")])
    state, written, _ = followed("data", "b")
    assert (state.own_exit_code, written) == (3, LOG)
    assert ["logs", "-n", "triplane", "pod/b-driver"] in [one["arguments"] for one in calls(cluster)]


def test_output_is_passed_on_as_it_is_and_nothing_of_it_twice(cluster: Path) -> None:
    text = "10 %\r20 %\r\n" * 100 + "\u00e9\ufffd\n"
    (cluster / "log").write_bytes(text.encode().replace("\ufffd".encode(), b"\xff"))
    submitted()
    say(cluster, "statuses", [{}, RUNNING, COMPLETE])
    assert followed()[1] == text


def test_half_a_line_is_shown_and_leaving_leaves_no_kubectl(cluster: Path) -> None:
    (cluster / "log").write_text("first\nsecond\nno end")
    (cluster / "stays").touch()
    submitted()
    stop, came = threading.Event(), [""]

    def emit(text: str) -> None:
        came[0] += text

    reader = threading.Thread(target=Kubernetes("k8s", "train").stream, args=("a", emit, stop))
    reader.start()
    deadline = time.monotonic() + 20
    while came[0] != "first\nsecond\nno end" or not (cluster / "follower").exists():
        assert time.monotonic() < deadline, came
        time.sleep(0.01)
    stop.set()
    reader.join(10)
    assert not Path("/proc", (cluster / "follower").read_text()).exists()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (spark("RUNNING") | {"executionAttempts": 1}, spark("RUNNING") | {"executionAttempts": 2}),
        ({**RUNNING, "rayClusterName": "a-1"}, {**RUNNING, "rayClusterName": "a-2"}),
    ],
)
def test_a_retry_has_a_log_of_its_own(cluster: Path, before: Any, after: Any) -> None:
    submitted()
    say(cluster, "statuses", [before, before, after])
    first, again, retried = (Kubernetes("k8s", "train").log_of("a") for _ in range(3))
    assert first == again != retried


def test_a_cluster_that_is_away_for_a_while(cluster: Path) -> None:
    submitted()
    gone = "Unable to connect to the server: dial tcp 10.0.0.1:443: connect: connection refused"
    say(cluster, "statuses", [RUNNING] * 3 + [COMPLETE])
    say(
        cluster,
        "faults",
        {"get": [gone] * 2, "logs": ['Error from server (BadRequest): container "x" is waiting to start']},
    )
    state, written, said = followed()
    assert (state.status, written) == ("succeeded", LOG)
    assert [line for line in said if "connection refused" in line or "answers again" in line] == said[:-1]


def test_the_same_attaches_and_another_is_refused(cluster: Path) -> None:
    assert (submitted().attached, submitted().attached) == (False, True)
    with pytest.raises(LostRace, match="give another --name"):
        submitted(Job("train", "name: y\n", TRAIN.root, ()))
    say(cluster, "statuses", [{"jobDeploymentStatus": "Failed"}])
    assert not submission.plan(Kubernetes("k8s", "train", Path("x")), TRAIN, None).attached


def test_a_name_taken_at_this_moment_is_a_lost_race(cluster: Path) -> None:
    say(cluster, "faults", {"create": ['Error from server (AlreadyExists): rayjobs.ray.io "a" already exists']})
    with pytest.raises(LostRace, match="AlreadyExists"):
        submitted()


def test_without_its_recipe_the_job_is_taken_back(cluster: Path) -> None:
    say(
        cluster,
        "faults",
        {"create": ["", "Error from server (Forbidden): configmaps is forbidden: User cannot create"]},
    )
    with pytest.raises(Refused, match="configmaps is forbidden"):
        submitted()
    assert list((cluster / "objects").iterdir()) == []


def test_an_interruption_leaves_no_job_without_its_recipe(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = kubernetes._kubectl

    def interrupted(arguments: Sequence[str], text: str | None = None, seconds: int = 60) -> str:
        if text is not None and "ConfigMap" in text:
            raise KeyboardInterrupt
        return ask(arguments, text, seconds)

    monkeypatch.setattr(kubernetes, "_kubectl", interrupted)
    with pytest.raises(KeyboardInterrupt):
        submitted()
    assert list((cluster / "objects").iterdir()) == []


def test_a_name_is_one_jobs_whatever_its_plane(cluster: Path) -> None:
    """The ConfigMap of the recipe goes by it, and so does `triplane jobs`."""
    submitted(DATA, "a")
    before = sorted(path.name for path in (cluster / "objects").iterdir())
    with pytest.raises(LostRace, match=r"a is another data job at k8s .*give another --name"):
        submitted(TRAIN, "a")
    assert sorted(path.name for path in (cluster / "objects").iterdir()) == before
    for message in ('error: the server doesn\'t have a resource type "sparkapplications"', "(Forbidden): no"):
        say(cluster, "faults", {"get": ["", message]})
        submitted(TRAIN, f"b{len(message)}")  # what is not there or not ours to see does not matter


def test_cancel_deletes_and_waits(cluster: Path) -> None:
    submitted()
    Kubernetes("k8s").cancel("a")
    deleted = [one["arguments"] for one in calls(cluster) if "delete" in one["arguments"]]
    assert deleted == [
        ["delete", "-n", "triplane", "rayjobs.ray.io", "a", "--wait=true", "--cascade=foreground", "--timeout=180s"]
    ]
    assert follow.wait_for_end(Kubernetes("k8s"), "a", lambda line: None) == State("a", "stopped")
    with pytest.raises(NotFound, match="there is no job a in namespace triplane"):
        Kubernetes("k8s").cancel("a")


def test_a_list_of_both_kinds_and_of_one_without_the_other_operator(cluster: Path) -> None:
    submitted()
    submitted(DATA, "b")
    assert {(one.id, one.plane, one.status) for one in Kubernetes("k8s").jobs()} == {
        ("a", "train", "pending"),
        ("b", "data", "pending"),
    }
    say(cluster, "faults", {"get": ['error: the server doesn\'t have a resource type "rayjobs"']})
    assert [one.id for one in Kubernetes("k8s").jobs()] == ["b"]


@pytest.mark.parametrize(
    ("message", "kind", "words"),
    [
        (
            "Unable to connect to the server: dial tcp: lookup nothing: no such host",
            Unreachable,
            "the cluster does not answer",
        ),
        ("error: You must be logged in to the server (Unauthorized)", Refused, "log in, or ask for the role"),
        (
            "error: current-context does not exist",
            TriplaneError,
            "kubectl get failed: error: current-context does not exist",
        ),
        ('error: the server doesn\'t have a resource type "rayjobs"', TriplaneError, "have a resource type"),
    ],
)
def test_what_kubectl_says_is_passed_on(cluster: Path, message: str, kind: type, words: str) -> None:
    say(cluster, "faults", {"get": [message]})
    with pytest.raises(kind, match=words) as caught:
        submitted()
    assert type(caught.value) is kind
    assert list((cluster / "objects").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("triplane.io/plane: train", "triplane.io/plane: trian"), "renders 0 jobs labelled triplane.io/plane: train"),
        (("triplane.io/plane: data", "triplane.io/plane: train"), "renders 2 jobs labelled"),
        (
            ("jobs.train /etc/triplane/recipe.yaml", "jobs.train"),
            "does not read /etc/triplane/recipe.yaml from a ConfigMap triplane-train-recipe",
        ),
        (("name: triplane-train-recipe", "name: recipe"), "does not read /etc/triplane/recipe.yaml from a ConfigMap"),
    ],
)
def test_a_template_that_cannot_work(cluster: Path, change: tuple[str, str], words: str) -> None:
    text = (cluster / "rendered.yaml").read_text()
    (cluster / "rendered.yaml").write_text(text.replace(*change))
    with pytest.raises(UsageError, match=words):
        submitted()


def test_what_a_pod_cannot_have(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for root in ("/data", "file:///data"):
        with pytest.raises(UsageError, match=f"--root {root} is a folder of this machine"):
            submitted(Job("train", "", root, ()))
    with pytest.raises(UsageError, match=r"the recipe is 2\.1 MB, a ConfigMap holds 1\.0 MB"):
        submitted(Job("train", "#" * (2 << 20), "s3://b/r", ()))
    monkeypatch.setenv("PATH", str(cluster / "objects"))
    with pytest.raises(TriplaneError, match="kubectl is not on PATH"):
        submitted()


def test_an_image_is_sent_by_its_digest_or_not_at_all(cluster: Path, tmp_path: Path) -> None:
    manifests = tmp_path / "infra" / "k8s" / "jobs" / "aws"
    manifests.mkdir(parents=True)
    rendered = cluster / "rendered.yaml"
    container = "containers: [{name: ray, image: triplane-ray:unpinned}], volumes:"
    rendered.write_text(rendered.read_text().replace("volumes:", container, 1))
    pins = tmp_path / "infra" / "pins.yaml"
    for said in (
        None,
        "images: {}",
        "images: {triplane-ray: 'unpinned: none was built'}",
        "images: {triplane-spark: a}",
    ):
        if said is not None:
            pins.write_text(said)
        with pytest.raises(UsageError, match=r"RayJob triplane-train has the image .*unpinned.*: fill its digest in"):
            submitted(manifests=str(manifests))
    assert {one["arguments"][0] for one in calls(cluster)} == {"kustomize"}
    image = f"registry.example/ray@sha256:{'2' * 64}"
    pins.write_text(f"images: {{triplane-ray: {image}}}\n")
    submitted(manifests=str(manifests))
    sent = [one["stdin"] for one in calls(cluster) if one["arguments"][0] == "create"]
    assert image in sent[0] and not any("unpinned" in one for one in sent)


@pytest.mark.parametrize("folder", ["/", "/etc"])
def test_templates_that_lie_beside_no_pins(folder: str) -> None:
    assert pins.images(Path(folder)) == {}


@pytest.mark.skipif(
    shutil.which("kubectl") is None or not TEMPLATES.exists(), reason="needs kubectl and the repository's templates"
)
@pytest.mark.parametrize("overlay", ["aws", "aws-efa", "local"])
@pytest.mark.parametrize("plane", ["data", "train", "eval"])
def test_the_repositorys_own_templates(overlay: str, plane: str, tmp_path: Path) -> None:
    shutil.copytree(TEMPLATES.parent, tmp_path / "k8s")
    named = ", ".join(f"triplane-{name}: r/{name}@sha256:{'1' * 64}" for name in ("spark", "ray"))
    (tmp_path / "pins.yaml").write_text(f"images: {{{named}}}\n")
    job = Job(plane, "name: x\n", "s3://bucket/root", ("a=1",))
    backend = Kubernetes("k8s", plane, tmp_path / "k8s" / "jobs" / overlay)
    parcel = backend.prepare(job)
    assert ends_with(parcel.command, job.arguments("/etc/triplane/recipe.yaml"))
    assert f"triplane-{plane}-recipe" in yaml.safe_dump(parcel.content)


def ends_with(command: Sequence[str], arguments: list[str]) -> bool:
    return list(command)[-len(arguments) :] == arguments
