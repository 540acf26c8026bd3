"""The CloudFormation templates: correct by cfn-lint, within our policy, and each check seen to fail on a planted mistake."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from infra import template, validate
from infra.settings import TEMPLATES
from jobs.manifests import policy_cloud

ROOT = Path(__file__).parents[2]
FOUNDATION, CLUSTER = TEMPLATES["foundation"], TEMPLATES["cluster"]
ROLES = {"DataRole": "data", "TrainRole": "train", "EvalRole": "eval"}
READS, WRITES = "s3:GetObject", "s3:PutObject"


def resource(path: Path, name: str) -> dict[str, Any]:
    return template.load(path)["Resources"][name]


def prefixes(role: str, action: str) -> set[str]:
    """What a role may do `action` to, as prefixes of the bucket."""
    statements = resource(FOUNDATION, role)["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]
    found = set()
    for one in statements:
        if action in ([one["Action"]] if isinstance(one["Action"], str) else one["Action"]):
            found |= {arn["Fn::Sub"].partition("${BucketName}/")[2].removesuffix("/*") for arn in one["Resource"]}
    return found


def test_both_templates_are_correct() -> None:
    assert validate.templates((FOUNDATION, CLUSTER), "eu-west-1") == []


TYPOS = {
    FOUNDATION: [("EnableDnsHostnames: true", "EnableDnsHostname: true", "'EnableDnsHostname' was unexpected")],
    CLUSTER: [
        ("CapacityType: SPOT", "CapacityType: SPOTTY", "'SPOTTY' is not one of"),
        ("RoleArn: !Ref DataRoleArn", "RoleArn: !Ref DateRoleArn", "'DateRoleArn'"),
    ],
}


@pytest.mark.parametrize("source", TYPOS, ids=TEMPLATES)
def test_each_typo_is_found_with_its_line(source: Path, tmp_path: Path) -> None:
    text = planted = source.read_text()
    for good, typo, _ in TYPOS[source]:
        assert good in text
        planted = planted.replace(good, typo, 1)
    (tmp_path / source.name).write_text(planted)
    found = validate.templates((tmp_path / source.name,), "us-east-1")
    for good, _, words in TYPOS[source]:
        line = text[: text.index(good)].count("\n") + 1
        assert any(words in one and abs(int(one.split(":")[1]) - line) <= 12 for one in found), found


def test_templates_fit_a_request(tmp_path: Path) -> None:
    """CloudFormation takes 51,200 bytes without a detour over S3."""
    big = tmp_path / "big.yaml"
    big.write_text("#" * (validate.TEMPLATE_BYTES + 1))
    assert "split it" in validate.oversized((big,))[0]
    assert validate.oversized((FOUNDATION, CLUSTER)) == []


def test_both_keep_to_the_policy() -> None:
    assert policy_cloud.findings(list(TEMPLATES.values())) == []


@pytest.mark.parametrize(
    ("source", "good", "bad", "words"),
    [
        (FOUNDATION, "Action: [kms:Decrypt, kms:GenerateDataKey]", 'Action: "kms:*"', "wildcard"),
        (FOUNDATION, "Resource: !GetAtt FlowLogGroup.Arn", 'Resource: "*"', "every resource there is"),
        (FOUNDATION, "RestrictPublicBuckets: true", "RestrictPublicBuckets: false", "can be made public"),
        (CLUSTER, "HttpTokens: required", "HttpTokens: optional", "HttpTokens"),
        (CLUSTER, "EncryptionConfig:", "EncryptionConfigs:", "secrets are not encrypted"),
        (CLUSTER, "[HasPublicEndpoint, !Ref EndpointPublicCidrs", '[HasPublicEndpoint, "0.0.0.0/0"', "whole internet"),
    ],
)
def test_the_policy_sees_what_it_forbids(source: Path, good: str, bad: str, words: str, tmp_path: Path) -> None:
    assert good in source.read_text()
    planted = tmp_path / source.name
    planted.write_text(source.read_text().replace(good, bad, 1))
    assert any(words in one.message for one in policy_cloud.findings([planted]))


@pytest.mark.parametrize("name", ["BucketPolicy", "AccessLogsPolicy"])
def test_plain_http_is_refused(name: str) -> None:
    first = resource(FOUNDATION, name)["Properties"]["PolicyDocument"]["Statement"][0]
    assert (first["Effect"], first["Principal"], first["Action"]) == ("Deny", "*", "s3:*")
    assert first["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert len(first["Resource"]) == 2, "the bucket and what is in it"


@pytest.mark.parametrize("name", ["Bucket", "BucketPolicy", "AccessLogs", "AccessLogsPolicy", "Key"])
def test_what_holds_data_outlives_the_stack(name: str) -> None:
    """But for a creation that fails: what it leaves is empty, stands in the way of the next one, and a key costs."""
    assert resource(FOUNDATION, name)["DeletionPolicy"] == "RetainExceptOnCreate"
    assert resource(FOUNDATION, name)["UpdateReplacePolicy"] == "Retain"
    assert "DeletionPolicy" not in resource(FOUNDATION, "Vpc")


@pytest.mark.parametrize(("path", "name"), [(FOUNDATION, "FlowLogGroup"), (CLUSTER, "ControlPlaneLogs")])
def test_logs_are_encrypted_and_forgotten(path: Path, name: str) -> None:
    properties = resource(path, name)["Properties"]
    assert "Key" in str(properties["KmsKeyId"]) and properties["RetentionInDays"] in (90, {"Ref": "FlowLogDays"})


def test_the_key_may_be_used_by_all_that_it_encrypts() -> None:
    """A key's policy that names an account's actions one by one withholds the others, whatever a user's own policy says.

    https://docs.aws.amazon.com/AmazonECR/latest/userguide/encryption-at-rest.html: who makes a repository with a key of their own may
    create and retire grants; CloudFormation's own schema of AWS::KMS::Key: what its handlers call.
    """
    first = resource(FOUNDATION, "Key")["Properties"]["KeyPolicy"]["Statement"][0]
    assert {"kms:CreateGrant", "kms:RetireGrant", "kms:DescribeKey"} <= set(first["Action"])
    assert {"kms:DisableKeyRotation", "kms:PutKeyPolicy", "kms:ScheduleKeyDeletion"} <= set(first["Action"])


@pytest.mark.parametrize("name", ["SparkImages", "RayImages"])
def test_images_are_scanned_and_encrypted(name: str) -> None:
    properties = resource(FOUNDATION, name)["Properties"]
    assert properties["ImageScanningConfiguration"] == {"ScanOnPush": True}
    assert properties["EncryptionConfiguration"]["EncryptionType"] == "KMS"


def test_no_security_group_of_ours_opens_a_port() -> None:
    """There is none: nodes have the one that EKS makes, which opens nothing to the outside."""
    types = {type_ for path in TEMPLATES.values() for type_ in template.resources(path).values()}
    assert not {one for one in types if "SecurityGroup" in one or "LoadBalanc" in one}


@pytest.mark.parametrize("path", TEMPLATES.values(), ids=TEMPLATES)
def test_no_account_is_written_out(path: Path) -> None:
    assert re.findall(r"\b[0-9]{12}\b", path.read_text()) == []
    assert re.findall(r"\b[0-9]{12}\b", "arn:aws:iam::123456789012:role/x") == ["123456789012"]


def test_the_three_roles_are_for_pods_of_their_own_account_only() -> None:
    for role, plane in ROLES.items():
        (statement,) = resource(FOUNDATION, role)["Properties"]["AssumeRolePolicyDocument"]["Statement"]
        assert statement["Principal"] == {"Service": "pods.eks.amazonaws.com"}
        assert statement["Action"] == ["sts:AssumeRole", "sts:TagSession"]
        assert statement["Condition"]["StringEquals"] == {
            "aws:RequestTag/kubernetes-namespace": "triplane",
            "aws:RequestTag/kubernetes-service-account": f"triplane-{plane}",
        }


def test_a_role_writes_its_own_kinds_only() -> None:
    written = {plane: prefixes(role, WRITES) for role, plane in ROLES.items()}
    assert written["train"] == {"root/checkpoint", "root/leases", "root/run"}
    assert written["data"] & written["train"] == written["data"] & written["eval"] == {"root/leases"}
    assert "raw" in prefixes("DataRole", READS) and "raw" not in written["data"]
    assert {"root/tokens", "root/mix"} <= prefixes("TrainRole", READS)
    assert "eval" in prefixes("EvalRole", READS), "the benchmarks' files"
    assert "root/run" in prefixes("EvalRole", READS) and "root/run" not in written["eval"]
    deletes = {plane: prefixes(role, "s3:DeleteObject") for role, plane in ROLES.items()}
    assert deletes["eval"] == {"root/leases", "root/reports"}
    assert "root/documents" not in deletes["data"]


def kinds_made(package: str) -> set[str]:
    """Kinds of the artifacts that a plane begins: `begin(root, "kind", ...)`, `begin(kind="kind")` or the module's KIND."""
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        tree = ast.parse(path.read_text())
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        begun = [node for node in calls if ast.unparse(node.func).rpartition(".")[2] == "begin"]
        named = [node.args[1] for node in begun if len(node.args) > 1]
        named += [keyword.value for node in begun for keyword in node.keywords if keyword.arg == "kind"]
        found |= {one.value for one in named if isinstance(one, ast.Constant) and isinstance(one.value, str)}
        if any(ast.unparse(one) == "KIND" for one in named):
            found |= set(re.findall(r'^KIND(?:, \w+)* = "(\w+)"', path.read_text(), re.MULTILINE))
    return found


@pytest.mark.parametrize(
    ("role", "package"), [("DataRole", "dataplane"), ("TrainRole", "trainplane"), ("EvalRole", "evalplane")]
)
def test_a_role_may_write_every_kind_its_plane_makes(role: str, package: str) -> None:
    made = kinds_made(package)
    assert {"dataplane": "tokens", "trainplane": "run", "evalplane": "evaluation"}[package] in made
    assert {f"root/{kind}" for kind in made} <= prefixes(role, WRITES)


@pytest.mark.parametrize(
    ("group", "wanted"),
    [
        ("CoreNodes", {"CapacityType": "ON_DEMAND", "Labels": {"triplane.io/pool": "core"}}),
        ("DataNodes", {"CapacityType": "SPOT", "Labels": {"triplane.io/pool": "data"}}),
        ("GpuNodes", {"CapacityType": {"Ref": "GpuCapacityType"}}),
    ],
)
def test_the_pools(group: str, wanted: dict[str, Any]) -> None:
    properties = resource(CLUSTER, group)["Properties"]
    assert {key: properties[key] for key in wanted} == wanted


def test_gpus_are_tainted_and_none_until_asked_for() -> None:
    properties = resource(CLUSTER, "GpuNodes")["Properties"]
    assert properties["Taints"] == [{"Key": "nvidia.com/gpu", "Value": "present", "Effect": "NO_SCHEDULE"}]
    assert properties["ScalingConfig"]["MinSize"] == 0
    assert template.parameters(CLUSTER)["GpuSize"]["Default"] == 0
    assert template.parameters(CLUSTER)["GpuCapacityType"]["AllowedValues"] == ["ON_DEMAND", "CAPACITY_BLOCK"]


def interfaces(count: int) -> int:
    """How many network interfaces a GPU node gets when the parameter says `count`, by the template's own conditions."""
    conditions = {f"Efa{least}": count >= least for least in (4, 8, 16, 32)}
    listed = resource(CLUSTER, "GpuTemplate")["Properties"]["LaunchTemplateData"]["NetworkInterfaces"]
    return sum("Fn::If" not in one or conditions[one["Fn::If"][0]] for one in listed)


@pytest.mark.parametrize(("count", "expected"), [(0, 1), (1, 1), (4, 4), (8, 8), (16, 16), (32, 32)])
def test_a_node_has_one_interface_a_network_card(count: int, expected: int) -> None:
    assert interfaces(count) == expected
    listed = resource(CLUSTER, "GpuTemplate")["Properties"]["LaunchTemplateData"]["NetworkInterfaces"]
    cards = [one.get("NetworkCardIndex", one.get("Fn::If", [None, {}])[1].get("NetworkCardIndex")) for one in listed]
    assert cards == list(range(32))


def test_a_capacity_block_needs_its_reservation_and_the_api_server_is_never_open() -> None:
    rules = template.load(CLUSTER)["Rules"]
    assert rules["CapacityBlockIsReserved"]["Assertions"][0]["Assert"] == {
        "Fn::Not": [{"Fn::Equals": [{"Ref": "GpuCapacityReservationId"}, ""]}]
    }
    assert rules["ApiServerIsNotOpen"]["Assertions"][0]["Assert"] == {
        "Fn::Not": [{"Fn::Contains": [{"Ref": "EndpointPublicCidrs"}, "0.0.0.0/0"]}]
    }
    assert template.parameters(CLUSTER)["EndpointPublicCidrs"]["Default"] == ""
