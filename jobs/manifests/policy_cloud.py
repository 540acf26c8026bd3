"""What no CloudFormation template of ours may do, although cfn-lint lets it: template files -> findings.

IAM without wildcards, buckets closed to the public and encrypted, security groups and the cluster's endpoint closed to the world, instance
metadata by token only, no key written out. Types and properties:
https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/aws-template-resource-type-ref.html.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs.manifests import lines
from jobs.manifests.finding import Finding
from jobs.manifests.lines import Document, Location, mapping
from jobs.manifests.policy_access import EVERYONE, KEY_SHAPED
from jobs.manifests.schemas import Mistake

CLOSED = ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")
# Actions that have no resource to name: https://docs.aws.amazon.com/service-authorization/latest/reference/.
OF_NO_RESOURCE = frozenset({"ecr:GetAuthorizationToken", "sts:GetCallerIdentity", "cloudwatch:PutMetricData"})
BROAD_POLICIES = ("AdministratorAccess", "PowerUserAccess", "IAMFullAccess", "AmazonS3FullAccess")
POLICY_KEYS = ("PolicyDocument", "AssumeRolePolicyDocument", "KeyPolicy", "RepositoryPolicyText")


def findings(paths: Sequence[Path]) -> list[Finding]:
    """Everything the policy forbids, and what is wrong with the text, by file and line."""
    found: list[Finding] = []
    for path in paths:
        documents, problems = lines.read(Path(path), intrinsics=True)
        found += problems
        for document in documents:
            found += [Finding(*document.place(at), sentence) for at, sentence in mistakes(document)]
    return sorted(set(found))


def mistakes(document: Document) -> Iterator[Mistake]:
    """(location, sentence) of what one template must not do."""
    for name, resource in mapping(document.value, "Resources").items():
        kind, at = str(mapping(resource).get("Type")), ("Resources", name, "Properties")
        for where, sentence in _resource(kind, mapping(resource, "Properties"), at):
            yield where, f"{kind} {name}: {sentence}"
    for where, text in _texts(document.value, ()):
        if KEY_SHAPED.search(text):
            yield where, "an access key is written out: remove it, and revoke the key"


def _resource(kind: str, properties: dict[str, Any], at: Location) -> Iterator[Mistake]:
    for where, policy in _policies(properties, at):
        for place, statement in _each(policy.get("Statement"), (*where, "Statement")):
            yield from _statement(kind, mapping(statement), place)
    if kind.startswith("AWS::IAM::"):
        for place, arn in _each(properties.get("ManagedPolicyArns"), (*at, "ManagedPolicyArns")):
            if any(name in str(arn) for name in BROAD_POLICIES):
                yield place, f"{_text(arn)} allows far too much: attach a policy with what is needed"
    if kind == "AWS::S3::Bucket":
        yield from _bucket(properties, at)
    if kind in ("AWS::EC2::SecurityGroup", "AWS::EC2::SecurityGroupIngress"):
        inner = properties if kind.endswith("Ingress") else properties.get("SecurityGroupIngress")
        for place, rule in _each(inner, at if kind.endswith("Ingress") else (*at, "SecurityGroupIngress")):
            yield from _ingress(mapping(rule), place)
    if kind == "AWS::EKS::Cluster":
        yield from _cluster(properties, at)
    if kind == "AWS::EC2::LaunchTemplate":
        options = mapping(properties, "LaunchTemplateData", "MetadataOptions")
        if options.get("HttpTokens") != "required":
            where = (*at, "LaunchTemplateData", "MetadataOptions", "HttpTokens")
            yield where, "MetadataOptions.HttpTokens is not required: any pod could take the node's credentials; set it"


def _policies(value: Any, at: Location) -> Iterator[tuple[Location, dict[str, Any]]]:
    """Every policy document inside a resource."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _policies(item, (*at, index))
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in POLICY_KEYS and isinstance(inner, dict):
                yield (*at, key), inner
            else:
                yield from _policies(inner, (*at, key))


def _statement(kind: str, statement: dict[str, Any], at: Location) -> Iterator[Mistake]:
    if statement.get("Effect") != "Allow":
        return
    for key in ("NotAction", "NotResource", "NotPrincipal"):
        if key in statement:
            yield (*at, key), f"{key} allows everything else: name what is allowed"
    actions = [str(action) for _, action in _each(statement.get("Action"), at)]
    for place, action in _each(statement.get("Action"), (*at, "Action")):
        if "*" in str(action):
            yield place, f"action {action!r} has a wildcard: name the actions that are needed"
    for place, resource in _each(statement.get("Resource"), (*at, "Resource")):
        # In a key's own policy `*` is the key.
        if resource == "*" and kind != "AWS::KMS::Key" and not OF_NO_RESOURCE.issuperset(actions):
            yield place, "resource '*' is every resource there is: name them"
    principal = statement.get("Principal")
    names = [one for _, one in _each(principal.get("AWS") if isinstance(principal, dict) else principal, at)]
    # An endpoint's policy only narrows what identities may do already.
    if "*" in names and "Condition" not in statement and kind != "AWS::EC2::VPCEndpoint":
        yield (*at, "Principal"), "principal '*' is the public: name who is meant"


def _bucket(properties: dict[str, Any], at: Location) -> Iterator[Mistake]:
    block = mapping(properties, "PublicAccessBlockConfiguration")
    if is_open := [key for key in CLOSED if block.get(key) is not True]:
        yield (
            (*at, "PublicAccessBlockConfiguration"),
            f"the bucket can be made public: set {', '.join(is_open)} to true",
        )
    if str(properties.get("AccessControl", "")).startswith(("Public", "AuthenticatedRead")):
        yield (*at, "AccessControl"), f"AccessControl {properties['AccessControl']} opens the bucket: remove it"
    if not mapping(properties, "BucketEncryption"):
        yield (*at, "BucketEncryption"), "the bucket is not encrypted by a rule of ours: add BucketEncryption"


def _ingress(rule: dict[str, Any], at: Location) -> Iterator[Mistake]:
    for key in ("CidrIp", "CidrIpv6"):
        if rule.get(key) in EVERYONE:
            yield (*at, key), f"{key} {rule[key]} is the whole internet: narrow it"


def _cluster(properties: dict[str, Any], at: Location) -> Iterator[Mistake]:
    network = mapping(properties, "ResourcesVpcConfig")
    where = (*at, "ResourcesVpcConfig", "EndpointPublicAccess")
    ranges = [cidr for _, cidr in _each(network.get("PublicAccessCidrs"), at)]
    if network.get("EndpointPublicAccess", True) is not False and (
        not ranges or set(EVERYONE) & set(map(_text, ranges))
    ):
        yield (
            where,
            "the API server is open to the whole internet: set EndpointPublicAccess: false or PublicAccessCidrs",
        )
    if not properties.get("EncryptionConfig"):
        yield (*at, "EncryptionConfig"), "secrets are not encrypted with a key of ours: add EncryptionConfig"


def _each(value: Any, at: Location) -> Iterator[tuple[Location, Any]]:
    """The items of a list, the one value that stands for a list of one, and both branches of an Fn::If."""
    if value is None:
        return
    if isinstance(value, dict) and list(value) == ["Fn::If"] and isinstance(value["Fn::If"], list):
        for index, branch in enumerate(value["Fn::If"][1:], 1):
            yield from _each(branch, (*at, "Fn::If", index))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _each(item, (*at, index))
    else:
        yield at, value


def _texts(value: Any, at: Location) -> Iterator[tuple[Location, str]]:
    if isinstance(value, str):
        yield at, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _texts(inner, (*at, key))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else next((text for _, text in _texts(value, ())), str(value))
