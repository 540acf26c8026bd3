"""infra/up, infra/up again and infra/down as a user runs them: AWS played by moto, kubectl and helm by fakes that note each call."""

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import validate, verify
from infra.settings import Settings
from jobs.manifests import check, policy
from tests.infra.fakes import world
from tests.infra.fakes.world import BUCKET, World

Done = subprocess.CompletedProcess[str]
CHANGES = (
    "create-change-set",
    "execute-change-set",
    "delete-stack",
    "upgrade",
    "uninstall",
    "apply",
    "create",
    "delete",
)
SMOKE = "triplane-smoke"


@dataclass
class Story:
    """What each run printed, what it called, and what was left after it."""

    world: World
    runs: dict[str, Done] = field(default_factory=dict)
    calls: dict[str, list[list[str]]] = field(default_factory=dict)
    stacks: dict[str, list[str]] = field(default_factory=dict)
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, name: str, script: str, *arguments: str) -> None:
        self.world.forget()
        self.runs[name] = world.script(self.world, script, *arguments)
        self.calls[name] = self.world.calls()
        self.objects[name] = json.loads((self.world.folder / "kubectl.json").read_text())
        summaries = self.world.client("cloudformation").list_stacks()["StackSummaries"]
        self.stacks[name] = sorted(one["StackName"] for one in summaries if one["StackStatus"] != "DELETE_COMPLETE")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, aws_server: tuple[str, str]) -> Story:
    folder = tmp_path_factory.mktemp("up")
    told = Story(world.make(folder, *aws_server))
    pins = str(world.pins(folder))
    told.run("up", "up", "--yes", "--bucket", BUCKET, "--pins", pins)
    told.run("again", "up", "--yes", "--pins", pins)
    told.run("down", "down", "--yes")
    told.run("down again", "down", "--yes")
    return told


def steps(calls: list[list[str]]) -> list[str]:
    """The calls that change something, in a few words, the smoke check left out."""
    found = []
    for tool, *arguments in calls:
        verbs = [one for one in arguments if one in CHANGES]
        if not verbs or SMOKE in " ".join(arguments):
            continue
        named = [one for one in arguments if one.startswith("triplane-dev-") and ":" not in one]
        found.append(
            " ".join([tool, *verbs[:1], *named, *(arguments[2:3] if tool == "helm" and verbs[0] == "upgrade" else ())])
        )
    return found


@pytest.mark.parametrize(
    ("file", "good", "bad", "words"),
    [
        ("base/watch.yaml", "concurrencyPolicy: Forbid", "concurencyPolicy: Forbid", "concurencyPolicy"),
        ("base/watch.yaml", "drop: [ALL]", "drop: [NET_RAW]", "capabilities.drop does not name ALL"),
        ("base/network.yaml", "kind: NetworkPolicy", "kind: NetworkPolice", "did you mean NetworkPolicy?"),
    ],
)
def test_a_mistake_in_the_platform_is_found_before_anything_is_sent(
    file: str, good: str, bad: str, words: str, tmp_path: Path
) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: kustomizations cannot be rendered")
    copied = tmp_path / "k8s"
    shutil.copytree(world.ROOT / "infra" / "k8s", copied)
    planted = copied / file
    assert good in planted.read_text()
    planted.write_text(planted.read_text().replace(good, bad, 1))
    found = validate.manifests(Settings("dev", world.REGION, copied / "overlays" / "aws"), {})
    assert any(words in one and one.startswith(str(planted)) for one in found), found


def test_the_smoke_check_s_pod_keeps_to_the_rules_of_every_other(tmp_path: Path) -> None:
    path = tmp_path / "smoke.json"
    job = verify.smoke_job(f"registry.example/triplane-ray@{world.DIGEST}", f"s3://{BUCKET}/root")
    path.write_text(json.dumps(job))
    assert check.findings([path]) == policy.findings([path]) == []
    policies = yaml.safe_load_all((world.ROOT / "infra/k8s/overlays/aws/network.yaml").read_text())
    wanted = [one["spec"]["podSelector"]["matchExpressions"] for one in policies if one["kind"] == "NetworkPolicy"]
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert wanted and all(labels[rule["key"]] in rule["values"] for rules in wanted for rule in rules)
    job["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] = False
    path.write_text(json.dumps(job))
    assert any("runAsNonRoot" in one.message for one in policy.findings([path]))


def test_up_goes_through_the_stages_in_order(story: Story) -> None:
    done = story.runs["up"]
    assert done.returncode == 0, done.stderr
    said = [line.partition(":")[0] for line in done.stderr.splitlines() if line[:1] != " "]
    assert [one for at, one in enumerate(said) if at == 0 or one != said[at - 1]] == [
        *("validate", "plan", "apply", "verify", "done")
    ]
    assert steps(story.calls["up"]) == [
        "aws create-change-set triplane-dev-foundation",
        "aws execute-change-set triplane-dev-foundation",
        "aws create-change-set triplane-dev-cluster",
        "aws execute-change-set triplane-dev-cluster",
        "kubectl apply",
        "helm upgrade kuberay-operator",
        "helm upgrade spark-operator",
        "helm upgrade kueue",
        "helm upgrade nvidia-device-plugin",
        "helm upgrade aws-efa-k8s-device-plugin",
        "kubectl create",
        "kubectl apply",
        "kubectl create",
    ]
    assert story.stacks["up"] == ["triplane-dev-cluster", "triplane-dev-foundation"]


def test_the_plan_is_a_table_of_what_will_be_made(story: Story) -> None:
    printed = story.runs["up"].stdout
    assert "  Add  Bucket                AWS::S3::Bucket" in printed
    assert "  Install  kueue                      0.19.2" in printed
    assert "  Apply  NetworkPolicy/deny-all" in printed
    assert "AWS::EKS::Cluster" in printed


def test_charts_are_installed_at_their_pins(story: Story) -> None:
    installs = {call[3]: call for call in story.calls["up"] if call[:3] == ["helm", "upgrade", "--install"]}
    kuberay = installs["kuberay-operator"]
    assert kuberay[4:9] == [
        "kuberay-operator",
        "--repo",
        "https://ray-project.github.io/kuberay-helm/",
        "--version",
        "1.6.1",
    ]
    assert installs["kueue"][4:7] == ["oci://registry.k8s.io/kueue/charts/kueue", "--version", "0.19.2"]
    for call in installs.values():
        assert call[-2:] == ["--kube-context", "triplane-dev"], "helm must be told which cluster"
        assert {"--wait", "--create-namespace"} <= set(call)


def test_every_call_names_the_region_or_the_cluster(story: Story) -> None:
    for tool, *arguments in story.calls["up"]:
        named = {"aws": "--region", "kubectl": "--context", "helm": "--kube-context"}[tool]
        assert arguments[arguments.index(named) + 1] in ("us-east-1", "triplane-dev")


def images(value: Any) -> list[str]:
    """Every `image:` in an object."""
    if isinstance(value, dict):
        own = [value["image"]] if isinstance(value.get("image"), str) else []
        return own + [one for inner in value.values() for one in images(inner)]
    return [one for inner in value for one in images(inner)] if isinstance(value, list) else []


def test_the_platform_is_applied_with_the_images_of_the_pins(story: Story) -> None:
    applied = story.objects["up"]
    assert images(applied["CronJob/triplane/triplane-watch"]) == [f"registry.example/triplane-ray@{world.DIGEST}"]
    assert {one.partition("/")[0] for one in applied} >= {
        "Namespace",
        "ServiceAccount",
        "NetworkPolicy",
        "ClusterQueue",
    }
    assert "unpinned" not in json.dumps(applied)
    assert story.objects["down"] == {}


def test_the_token_for_the_metrics_is_made_once_and_in_no_argument(story: Story) -> None:
    secret = story.objects["up"]["Secret/triplane/triplane-metrics"]
    token = secret["stringData"]["token"]
    assert len(token) >= 40
    assert token not in json.dumps(story.calls["up"]) + story.runs["up"].stdout + story.runs["up"].stderr
    assert story.objects["again"]["Secret/triplane/triplane-metrics"] == secret


def test_verify_waits_for_nodes_and_operators_and_tries_one_pod(story: Story) -> None:
    waited = [
        " ".join(call[3:]) for call in story.calls["up"] if call[0] == "kubectl" and call[3] in ("wait", "rollout")
    ]
    assert waited[0] == "wait nodes --for=condition=Ready --selector triplane.io/pool=core --timeout=10m"
    assert waited[1].startswith("rollout status deployment/kuberay-operator --namespace kuberay-system")
    assert len(waited) == 1 + 6 + 1
    assert waited[-1] == f"wait job/{SMOKE} --namespace triplane --for=condition=Complete --timeout=10m"
    assert "this has to print 401" in story.runs["up"].stderr


def test_up_again_changes_nothing_and_says_so(story: Story) -> None:
    again = story.runs["again"]
    assert again.returncode == 0, again.stderr
    assert "apply: nothing to change" in again.stderr
    assert again.stdout == ""
    proposed = ["aws create-change-set triplane-dev-foundation", "aws create-change-set triplane-dev-cluster"]
    made = ["kubectl create"]  # the smoke check's job, which is deleted again
    assert steps(story.calls["again"]) == proposed + made
    assert [call for call in story.calls["again"] if "execute-change-set" in call] == []


def test_down_goes_the_other_way_and_keeps_the_bucket(story: Story) -> None:
    done = story.runs["down"]
    assert done.returncode == 0, done.stderr
    calls = [" ".join(call[:4]) for call in story.calls["down"] if any(one in CHANGES for one in call)]
    assert [one.replace("kubectl --context triplane-dev", "kubectl") for one in calls[:7]] == [
        "kubectl delete",
        "kubectl delete",
        "helm uninstall aws-efa-k8s-device-plugin --namespace",
        "helm uninstall nvidia-device-plugin --namespace",
        "helm uninstall kueue --namespace",
        "helm uninstall spark-operator --namespace",
        "helm uninstall kuberay-operator --namespace",
    ]
    deleted = [call[4] for call in story.calls["down"] if call[:3] == ["aws", "cloudformation", "delete-stack"]]
    assert [one.split("/")[1] for one in deleted] == ["triplane-dev-cluster", "triplane-dev-foundation"]
    assert story.stacks["down"] == []
    assert story.world.client("s3").head_bucket(Bucket=BUCKET)
    assert f"kept s3://{BUCKET}" in done.stderr


def test_down_again_finds_nothing(story: Story) -> None:
    assert story.runs["down again"].returncode == 0
    assert "nothing to take down" in story.runs["down again"].stderr
    assert steps(story.calls["down again"]) == []
