"""What infra/up and infra/down refuse, where they stop, and what is left then: one clear sentence, the right exit code, nothing half-known.

The stages run in this process; validation of templates and manifests has tests of its own and is left out.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from infra import bucket, charts, main, stacks, validate
from infra.pins import Chart
from infra.settings import TEMPLATES, Settings
from tests.infra.fakes import world
from tests.infra.fakes.world import BUCKET, REGION, World

PLACE = ("--environment", "dev", "--region", REGION)


@pytest.fixture
def here(aws_server: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An empty account, an empty cluster, and this process living with the fakes."""
    world.reset(aws_server[0])
    made = world.make(tmp_path, *aws_server)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(validate, "templates", lambda paths, region: [])
    monkeypatch.setattr(validate, "manifests", lambda settings, images: [])
    world.pins(tmp_path)
    return made


def up(here: World, *arguments: str) -> int:
    return main.up([*PLACE, "--pins", str(here.folder / "pins.yaml"), *arguments])


def down(*arguments: str) -> int:
    return main.down([*PLACE, "--yes", *arguments])


def stacks_of(here: World) -> list[str]:
    summaries = here.client("cloudformation").list_stacks()["StackSummaries"]
    return sorted(one["StackName"] for one in summaries if one["StackStatus"] != "DELETE_COMPLETE")


def called(here: World, *words: str) -> list[str]:
    """The calls that hold all of these words."""
    return [line for line in map(" ".join, here.calls()) if all(word in line for word in words)]


def test_a_tool_that_is_missing_is_named_first(
    here: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here.folder / "bin" / "helm").unlink()
    monkeypatch.setenv("PATH", str(here.folder / "bin"))
    assert up(here, "--yes", "--bucket", BUCKET) == 2
    assert "not on PATH: helm (https://helm.sh/docs/intro/install/)" in capsys.readouterr().err
    assert here.calls() == []


def test_an_image_that_is_not_pinned_stops_everything(here: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.up([*PLACE, "--yes", "--bucket", BUCKET]) == 1
    said = capsys.readouterr().err
    assert "images.triplane-spark says 'unpinned: " in said and "images.triplane-ray says 'unpinned: " in said
    assert "nothing was sent" in said
    assert here.calls() == []


def test_an_image_by_its_tag_is_refused(here: World, capsys: pytest.CaptureFixture[str]) -> None:
    path = here.folder / "pins.yaml"
    path.write_text(path.read_text().replace(f"@{world.DIGEST}", ":1.0"))
    assert up(here, "--yes", "--bucket", BUCKET) == 1
    assert "name it by its digest" in capsys.readouterr().err
    assert here.calls() == []


def test_missing_credentials_are_told_before_anything_is_planned(
    here: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAIL", "get-caller-identity")
    assert up(here, "--yes", "--bucket", BUCKET) == 1
    assert "AWS does not know who you are" in capsys.readouterr().err
    assert len(here.calls()) == 1


def test_the_first_time_needs_a_bucket(here: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert up(here, "--yes") == 2
    assert "pass --bucket NAME" in capsys.readouterr().err
    assert stacks_of(here) == []


@pytest.mark.parametrize(
    ("region", "environment", "code", "words"),
    [
        ("us-east-1", "other", 1, "is not tagged triplane:environment=dev"),
        ("eu-west-1", "dev", 2, "is in eu-west-1, not in us-east-1"),
    ],
)
def test_a_bucket_that_cannot_be_this_one(
    region: str, environment: str, code: int, words: str, here: World, capsys: pytest.CaptureFixture[str]
) -> None:
    s3 = here.client("s3")
    there = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    s3.create_bucket(Bucket=BUCKET, **there)
    tags = {"TagSet": [{"Key": "triplane:environment", "Value": environment}]}
    s3.put_bucket_tagging(Bucket=BUCKET, Tagging=tags)
    assert up(here, "--yes", "--bucket", BUCKET) == code
    assert words in capsys.readouterr().err
    assert stacks_of(here) == []


def test_a_dry_run_prints_the_plan_and_leaves_nothing(here: World, capsys: pytest.CaptureFixture[str]) -> None:
    prices = here.folder / "prices.yaml"
    prices.write_text("eks-cluster: 0.5\nm7i.xlarge: 2\n")
    assert up(here, "--dry-run", "--bucket", BUCKET, "--prices", str(prices)) == 0
    printed = capsys.readouterr()
    assert "AWS::EKS::Cluster" in printed.out and "nothing was changed" in printed.err
    costs = printed.out.split("cost an hour, by the prices given\n")[1].splitlines()
    assert [line.split()[-1] for line in costs] == ["0.50", "given", "4.00", "given", "given", "4.50"]
    assert stacks_of(here) == []
    assert called(here, "execute-change-set") == called(here, "helm") == []


@pytest.mark.parametrize(("cidrs", "told"), [("", True), ("cluster: {EndpointPublicCidrs: [203.0.113.0/24]}", False)])
def test_who_could_not_go_on_from_here_is_told_before(
    cidrs: str, told: bool, here: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default the API server answers inside the network only: a quarter of an hour later every call would time out."""
    given = here.folder / "parameters.yaml"
    given.write_text(cidrs or "{}")
    assert up(here, "--dry-run", "--bucket", BUCKET, "--parameters", str(given)) == 0
    assert ("name your network: EndpointPublicCidrs" in capsys.readouterr().err) is told


def test_without_a_terminal_nobody_is_asked(here: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert up(here, "--bucket", BUCKET) == 2
    assert "there is no terminal: pass --yes" in capsys.readouterr().err
    assert stacks_of(here) == []


def test_an_answer_that_is_not_yes_changes_nothing(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert up(here, "--bucket", BUCKET) == 2
    assert stacks_of(here) == []


def test_an_interrupt_leaves_no_change_set(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(question: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", interrupt)
    assert up(here, "--bucket", BUCKET) == 130
    assert stacks_of(here) == []


def test_a_plan_that_is_dropped_leaves_alone_what_another_command_began_to_make(here: World) -> None:
    """Two people at an empty account: one looks at the plan, the other goes on; the first's "no" may not delete what the second makes."""
    settings = Settings("dev", REGION, here.folder)
    values = {"EnvironmentName": "dev", "BucketName": BUCKET}
    made = stacks.propose(settings, settings.stack("foundation"), TEMPLATES["foundation"], values)
    assert made is not None
    stacks.execute(settings, made)  # moto would make a second stack of the same name for a second plan
    stacks.discard(settings, made)
    assert stacks_of(here) == ["triplane-dev-foundation"]


@pytest.mark.parametrize(
    ("status", "steps"),
    [
        ("pending-install", ["uninstall", "upgrade"]),
        ("pending-upgrade", ["rollback", "upgrade"]),
        ("failed", ["upgrade"]),
        ("deployed", []),
    ],
)
def test_a_release_that_a_killed_helm_left_half_way_is_finished(status: str, steps: list[str], here: World) -> None:
    """helm 3 does not list it, and refuses to touch it: another operation is in progress, for ever."""
    settings = Settings("dev", REGION, here.folder)
    chart = Chart("kueue", "1.0.0", "kueue", "kueue-system", (), {})
    charts.install(settings, chart)
    path = here.folder / "helm.json"
    path.write_text(path.read_text().replace("deployed", status))
    here.forget()
    if what := charts.action(settings, chart, charts.installed(settings)):
        charts.carry_out(settings, chart, what)
    assert [call[1] for call in here.calls() if call[1] not in ("list", "get")] == steps
    assert charts.action(settings, chart, charts.installed(settings)) == ""


@pytest.mark.parametrize(
    ("failing", "standing"),
    [
        ("execute-change-set --stack-name triplane-dev-foundation", []),
        ("create-change-set --stack-name triplane-dev-cluster", ["triplane-dev-foundation"]),
        ("kubectl --context triplane-dev apply", ["triplane-dev-cluster", "triplane-dev-foundation"]),
    ],
)
def test_up_stops_at_the_first_failure_with_its_words(
    failing: str, standing: list[str], here: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAIL", failing)
    assert up(here, "--yes", "--bucket", BUCKET) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: `{failing.split()[0] if failing.startswith('kubectl') else 'aws'} ")
    assert error.endswith("was told to fail")
    after = here.calls()[[failing in line for line in map(" ".join, here.calls())].index(True) + 1 :]
    assert [call for call in after if "delete-change-set" not in call and "delete-stack" not in call] == []
    held = [one for one in stacks_of(here) if one in standing]
    assert held == standing


def test_what_failed_half_way_is_finished_by_the_same_command(
    here: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of the charts; the second run leaves alone what stands and keeps the parameters it is not given."""
    given = here.folder / "parameters.yaml"
    given.write_text("cluster: {GpuSize: 16, GpuCapacityType: CAPACITY_BLOCK, GpuCapacityReservationId: cr-1}\n")
    monkeypatch.setenv("FAKE_FAIL", "helm upgrade --install kueue")
    assert up(here, "--yes", "--bucket", BUCKET, "--parameters", str(given)) == 1
    assert "helm was told to fail" in capsys.readouterr().err
    assert [line.split()[3] for line in called(here, "helm upgrade")] == ["kuberay-operator", "spark-operator", "kueue"]
    monkeypatch.setenv("FAKE_FAIL", "")
    here.forget()
    assert up(here, "--yes") == 0
    assert [line.split()[3] for line in called(here, "helm upgrade")] == [
        *("kueue", "nvidia-device-plugin", "aws-efa-k8s-device-plugin")
    ]
    assert called(here, "execute-change-set") == []
    assert {"GpuSize": "16", "GpuCapacityType": "CAPACITY_BLOCK", "KubernetesVersion": "1.35"}.items() <= parameters_of(
        here, "triplane-dev-cluster"
    ).items()
    names_the_jobs_it_would_end(here, capsys)


def parameters_of(here: World, stack: str) -> dict[str, str]:
    found = here.client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0]
    return {one["ParameterKey"]: one["ParameterValue"] for one in found["Parameters"]}


def names_the_jobs_it_would_end(here: World, capsys: pytest.CaptureFixture[str]) -> None:
    """infra/down --dry-run of a cluster with one job that runs and one that has ended."""
    path, states = here.folder / "kubectl.json", {"trains": "RUNNING", "trained": "SUCCEEDED"}
    jobs = {
        f"RayJob/triplane/{name}": {"kind": "RayJob", "metadata": {"name": name}, "status": {"jobStatus": state}}
        for name, state in states.items()
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | jobs))
    capsys.readouterr()
    assert down("--dry-run") == 0
    printed = capsys.readouterr().out
    assert "RayJob/trains" in printed and "RayJob/trained" not in printed
    assert len(stacks_of(here)) == 2


def test_the_smoke_check_tells_what_the_pod_said_and_is_cleared_away(
    here: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAIL", "wait job/triplane-smoke")
    assert up(here, "--yes", "--bucket", BUCKET) == 1
    assert f"the smoke check did not read s3://{BUCKET}/root" in capsys.readouterr().err
    assert called(here, "logs job/triplane-smoke") != []
    assert "delete job triplane-smoke" in " ".join(here.calls()[-1])
    assert "Job/triplane/triplane-smoke" not in json.loads((here.folder / "kubectl.json").read_text())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cluster: {GpuSise: 16}", "cluster has no parameter 'GpuSise': did you mean GpuSize?"),
        ("clutser: {GpuSize: 16}", "'clutser' is no template with parameters"),
        ("[1, 2]", "is no mapping"),
    ],
)
def test_parameters_are_read_strictly(text: str, words: str, here: World, capsys: pytest.CaptureFixture[str]) -> None:
    given = here.folder / "parameters.yaml"
    given.write_text(text)
    assert up(here, "--yes", "--bucket", BUCKET, "--parameters", str(given)) == 2
    assert words in capsys.readouterr().err
    assert here.calls() == []


def test_the_foundation_alone_needs_no_images(here: World, capsys: pytest.CaptureFixture[str]) -> None:
    """It has to come first: the images are pushed to its repositories."""
    assert main.up([*PLACE, "--yes", "--foundation-only", "--bucket", BUCKET]) == 0
    assert "dkr.ecr.us-east-1.amazonaws.com/triplane-dev/triplane-ray" in capsys.readouterr().out
    assert stacks_of(here) == ["triplane-dev-foundation"]
    assert called(here, "kubectl") == called(here, "helm") == []
    assert main.up([*PLACE, "--yes", "--foundation-only"]) == 0
    assert "nothing to change" in capsys.readouterr().err
    assert main.up([*PLACE, "--yes", "--foundation-only", "--bucket", "another"]) == 2
    assert f"has the bucket {BUCKET}, not another" in capsys.readouterr().err


def fill(here: World) -> None:
    """Two versions of one object, and a marker of another's deletion."""
    s3 = here.client("s3")
    for body in (b"one", b"two"):
        s3.put_object(Bucket=BUCKET, Key="root/run/x", Body=body)
    s3.put_object(Bucket=BUCKET, Key="root/run/y", Body=b"")
    s3.delete_object(Bucket=BUCKET, Key="root/run/y")


def test_data_is_deleted_only_by_the_bucket_s_name(here: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.up([*PLACE, "--yes", "--foundation-only", "--bucket", BUCKET]) == 0
    fill(here)
    assert down("--delete-data", "another-bucket") == 2
    assert f"the bucket is {BUCKET}; type its name" in capsys.readouterr().err
    assert stacks_of(here) == ["triplane-dev-foundation"]
    assert down("--delete-data", BUCKET) == 0
    assert "4 object versions" in capsys.readouterr().err
    names = [one["Name"] for one in here.client("s3").list_buckets()["Buckets"]]
    assert names == [f"{BUCKET}-logs"]
    (key,) = here.client("kms").list_keys()["Keys"]
    assert called(here, "kms schedule-key-deletion", key["KeyId"], "--pending-window-in-days 30") != []
    assert main.up([*PLACE, "--yes", "--foundation-only", "--bucket", BUCKET]) == 0, "the access logs that stayed"
    assert parameters_of(here, "triplane-dev-foundation")["CreateAccessLogs"] == "false"


def test_deleting_the_data_is_finished_by_the_same_command(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bucket is what names the key: were it deleted first, nobody would find the key again, and it costs."""
    tags = {"TagSet": [{"Key": "triplane:environment", "Value": "dev"}]}
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "key/one"}}
    here.client("s3").create_bucket(Bucket=BUCKET)
    here.client("s3").put_bucket_tagging(Bucket=BUCKET, Tagging=tags)
    here.client("s3").put_bucket_encryption(Bucket=BUCKET, ServerSideEncryptionConfiguration={"Rules": [rule]})
    asked = []
    monkeypatch.setattr(bucket, "_delete_key", lambda settings, key: asked.append(key))
    monkeypatch.setenv("FAKE_FAIL", "s3api delete-bucket")
    assert down("--delete-data", BUCKET) == 1
    monkeypatch.setenv("FAKE_FAIL", "")
    assert down("--delete-data", BUCKET) == 0
    assert asked == ["one", "one"]


@pytest.mark.parametrize(
    ("said", "code"), [("", 0), ("KMSInvalidStateException: key/one is pending deletion.", 0), ("AccessDenied", 1)]
)
def test_a_key_that_is_on_its_way_out_is_left_to_it(
    said: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = subprocess.CompletedProcess([], 254 if said else 0, "", said)
    monkeypatch.setattr(bucket, "run", lambda arguments, accepts: answer)
    assert main._carried_out(lambda: bucket._delete_key(Settings("dev", REGION, tmp_path), "one")) == code


def test_a_kept_bucket_is_taken_up_again_with_its_key(here: World) -> None:
    assert main.up([*PLACE, "--yes", "--foundation-only", "--bucket", BUCKET]) == 0
    fill(here)
    assert down() == 0
    assert main.up([*PLACE, "--yes", "--foundation-only", "--bucket", BUCKET]) == 0
    values = parameters_of(here, "triplane-dev-foundation")
    (key,) = here.client("kms").list_keys()["Keys"]
    assert (values["CreateBucket"], values["ExistingKeyArn"]) == ("false", key["KeyArn"])
    assert here.client("s3").get_object(Bucket=BUCKET, Key="root/run/x")["Body"].read() == b"two"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--environment", "Dev", "--region", REGION], "--environment Dev"),
        (["--environment", "dev", "--region", "virginia"], "--region virginia"),
    ],
)
def test_names_are_checked_before_use(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.up(arguments) == main.down(arguments) == 2
    assert words in capsys.readouterr().err


def test_the_pins_name_their_sources() -> None:
    """Every version has where it was read, as a comment on its line."""
    lines = (world.ROOT / "infra" / "pins.yaml").read_text().splitlines()
    versions = [line for line in lines if line.strip().startswith("version:")]
    assert len(versions) == 6
    assert [line for line in versions if not re.search("@|https://", line.partition("#")[2])] == []
    assert TEMPLATES.keys() == {"foundation", "cluster"}
    assert set(yaml.safe_load("\n".join(lines))) == {"kubernetes", "charts", "bases", "images"}
