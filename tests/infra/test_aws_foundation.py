"""foundation.yaml created for real in moto, and every resource read back as AWS's own API shows it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.settings import TEMPLATES
from tests.infra.fakes.world import BUCKET, World

PREFIXES = {"data": "root/tokens/*", "train": "root/run/*", "eval": "root/evaluation/*"}


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory, aws_server: tuple[str, str]) -> World:
    return World(tmp_path_factory.mktemp("aws"), aws_server[0], {})


def create(aws: World, stack: str, path: Path, **parameters: str) -> dict[str, str]:
    """The outputs of a new stack."""
    formation = aws.client("cloudformation")
    formation.create_stack(
        StackName=stack,
        TemplateBody=path.read_text(),
        Capabilities=["CAPABILITY_IAM"],
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
    )
    made = formation.describe_stacks(StackName=stack)["Stacks"][0]
    assert made["StackStatus"] == "CREATE_COMPLETE"
    return {one["OutputKey"]: one["OutputValue"] for one in made["Outputs"]}


@pytest.fixture(scope="module")
def outputs(aws: World) -> dict[str, str]:
    return create(aws, "foundation", TEMPLATES["foundation"], EnvironmentName="dev", BucketName=BUCKET)


def test_the_bucket_is_versioned_encrypted_private_and_logged(aws: World, outputs: dict[str, str]) -> None:
    s3 = aws.client("s3")
    assert outputs["RootUrl"] == f"s3://{BUCKET}/root"
    assert s3.get_bucket_versioning(Bucket=BUCKET)["Status"] == "Enabled"
    (rule,) = s3.get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"] == {
        "SSEAlgorithm": "aws:kms",
        "KMSMasterKeyID": outputs["KeyArn"],
    }
    assert set(s3.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"].values()) == {True}
    logging = s3.get_bucket_logging(Bucket=BUCKET)["LoggingEnabled"]
    assert (logging["TargetBucket"], logging["TargetPrefix"]) == (f"{BUCKET}-logs", f"{BUCKET}/")
    assert s3.get_bucket_tagging(Bucket=BUCKET)["TagSet"] == [{"Key": "triplane:environment", "Value": "dev"}]


def test_abandoned_uploads_end_after_a_day_and_old_versions_after_thirty(aws: World, outputs: dict[str, str]) -> None:
    rules = aws.client("s3").get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    by_name = {rule["ID"]: rule for rule in rules}
    assert by_name["abort-multipart"]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}
    assert by_name["forget-noncurrent"]["NoncurrentVersionExpiration"] == {"NoncurrentDays": 30}
    ending = [rule["Expiration"] for rule in rules if "Expiration" in rule]
    assert ending == [{"ExpiredObjectDeleteMarker": True}], "what is current is never deleted by a rule"


def test_a_second_put_keeps_the_first_version(aws: World, outputs: dict[str, str]) -> None:
    s3 = aws.client("s3")
    for body in (b"first", b"second"):
        s3.put_object(Bucket=BUCKET, Key="root/tokens/x", Body=body)
    assert len(s3.list_object_versions(Bucket=BUCKET, Prefix="root/tokens/x")["Versions"]) == 2


def test_the_key_turns_and_serves_nobody_else(aws: World, outputs: dict[str, str]) -> None:
    kms, key = aws.client("kms"), outputs["KeyArn"].rpartition("/")[2]
    assert kms.get_key_rotation_status(KeyId=key)["KeyRotationEnabled"] is True
    policy = document(kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"])
    assert [list(one["Principal"]) for one in policy["Statement"]] == [["AWS"], ["Service"]]


def physical(aws: World, name: str) -> str:
    made = aws.client("cloudformation").describe_stack_resources(StackName="foundation", LogicalResourceId=name)
    return made["StackResources"][0]["PhysicalResourceId"]


def test_private_subnets_lie_in_three_zones_and_reach_out_through_the_gateway(
    aws: World, outputs: dict[str, str]
) -> None:
    ec2 = aws.client("ec2")
    subnets = ec2.describe_subnets(SubnetIds=outputs["PrivateSubnetIds"].split(","))["Subnets"]
    assert len({one["AvailabilityZone"] for one in subnets}) == 3
    assert not any(one["MapPublicIpOnLaunch"] for one in subnets)
    private = physical(aws, "PrivateRoutes")
    # moto keeps a subnet's association as the name of its table, and does not list it with the table
    assert {physical(aws, f"PrivateSubnet{n}Routes") for n in (1, 2, 3)} == {private}
    (table,) = ec2.describe_route_tables(RouteTableIds=[private])["RouteTables"]
    (default,) = [route for route in table["Routes"] if route.get("DestinationCidrBlock") == "0.0.0.0/0"]
    assert default["NatGatewayId"] == physical(aws, "Nat")
    assert "GatewayId" not in default


def test_s3_is_reached_without_the_gateway_and_only_ours_is_written(aws: World, outputs: dict[str, str]) -> None:
    ec2 = aws.client("ec2")
    (endpoint,) = ec2.describe_vpc_endpoints(Filters=[{"Name": "vpc-id", "Values": [outputs["VpcId"]]}])["VpcEndpoints"]
    assert (endpoint["VpcEndpointType"], endpoint["ServiceName"]) == ("Gateway", "com.amazonaws.us-east-1.s3")
    assert endpoint["RouteTableIds"] == [physical(aws, "PrivateRoutes")]
    statements = document(endpoint["PolicyDocument"])["Statement"]
    writes = [arn for one in statements if "s3:PutObject" in one["Action"] for arn in one["Resource"]]
    assert writes == [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]


def test_traffic_is_logged_and_the_log_forgotten(aws: World, outputs: dict[str, str]) -> None:
    (flow,) = aws.client("ec2").describe_flow_logs()["FlowLogs"]
    assert (flow["ResourceId"], flow["TrafficType"]) == (outputs["VpcId"], "ALL")
    (group,) = aws.client("logs").describe_log_groups(logGroupNamePrefix="/triplane/dev/flow")["logGroups"]
    assert (group["logGroupName"], group["retentionInDays"]) == (flow["LogGroupName"], 90)


def test_image_tags_cannot_move(aws: World, outputs: dict[str, str]) -> None:
    repositories = aws.client("ecr").describe_repositories()["repositories"]
    assert {one["repositoryUri"] for one in repositories} == {outputs["SparkRepository"], outputs["RayRepository"]}
    assert {one["imageTagMutability"] for one in repositories} == {"IMMUTABLE"}


def document(value: Any) -> dict[str, Any]:
    """A policy as moto gives it back: a value, or text that is sometimes JSON and sometimes Python's; YAML reads both."""
    return yaml.safe_load(value) if isinstance(value, str) else value


@pytest.mark.parametrize("plane", PREFIXES)
def test_a_role_is_for_pods_and_reaches_its_prefixes(plane: str, aws: World, outputs: dict[str, str]) -> None:
    iam, name = aws.client("iam"), outputs[f"{plane.capitalize()}RoleArn"].rpartition("/")[2]
    trust = document(iam.get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"])["Statement"]
    assert [(one["Principal"], one["Action"]) for one in trust] == [
        ({"Service": "pods.eks.amazonaws.com"}, ["sts:AssumeRole", "sts:TagSession"])
    ]
    policy = document(iam.get_role_policy(RoleName=name, PolicyName="bucket")["PolicyDocument"])
    writes = {arn for one in policy["Statement"] if "s3:PutObject" in one["Action"] for arn in one["Resource"]}
    assert f"arn:aws:s3:::{BUCKET}/{PREFIXES[plane]}" in writes
    others = {f"arn:aws:s3:::{BUCKET}/{prefix}" for other, prefix in PREFIXES.items() if other != plane}
    assert not writes & others
    (keys,) = [one["Resource"] for one in policy["Statement"] if "kms:Decrypt" in one["Action"]]
    assert keys == outputs["KeyArn"]


def test_the_kept_bucket_is_taken_up_again(aws: World, outputs: dict[str, str]) -> None:
    """What infra/up says after infra/down: nothing is made that is there, and the roles have the old key."""
    again = create(
        aws,
        "again",
        TEMPLATES["foundation"],
        EnvironmentName="again",
        BucketName=BUCKET,
        CreateBucket="false",
        ExistingKeyArn=outputs["KeyArn"],
    )
    assert (again["BucketName"], again["KeyArn"]) == (BUCKET, outputs["KeyArn"])
    made = aws.client("cloudformation").describe_stack_resources(StackName="again")["StackResources"]
    assert not {one.get("ResourceType") for one in made} & {"AWS::S3::Bucket", "AWS::S3::BucketPolicy", "AWS::KMS::Key"}


def test_a_template_that_is_no_longer_private_is_read_back_so(aws: World, tmp_path: Path) -> None:
    """The reading above can fail."""
    planted = tmp_path / "foundation.yaml"
    text = TEMPLATES["foundation"].read_text().replace("RestrictPublicBuckets: true", "RestrictPublicBuckets: false")
    planted.write_text(
        text.replace("VersioningConfiguration: {Status: Enabled}", "VersioningConfiguration: {Status: Suspended}")
    )
    create(aws, "open", planted, EnvironmentName="open", BucketName="open-bucket")
    s3 = aws.client("s3")
    assert s3.get_bucket_versioning(Bucket="open-bucket")["Status"] == "Suspended"
    assert (
        s3.get_public_access_block(Bucket="open-bucket")["PublicAccessBlockConfiguration"]["RestrictPublicBuckets"]
        is False
    )
