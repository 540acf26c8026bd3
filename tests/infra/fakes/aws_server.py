"""moto's server with the gaps of its CloudFormation filled, for infra/up and infra/down to run against: PORT SOCKET -> a server on
loopback, and beside it a socket on which the fake `aws` (aws.py) has its calls carried out.

moto creates S3 buckets without versioning, lifecycle, public access block or logging, and knows no bucket policy: those properties are
applied here through its own S3 backend, so that reading a bucket back shows what the template says. EKS and placement groups it does not
know at all: such resources are only noted, with a name for `!Ref` and made-up attributes for `!GetAtt`. No cluster exists anywhere.
It cannot delete a stack's route tables either, and so no network; and a stack made by a change set has no outputs there.
"""

import json
import socketserver
import sys
import threading
from typing import Any

import aws_cli
from moto.cloudformation import parsing
from moto.cloudformation.models import ChangeSet, Stack
from moto.core.common_models import CloudFormationModel
from moto.ec2.models import ec2_backends
from moto.ec2.models.route_tables import RouteTable
from moto.s3.models import FakeBucket, s3_backends
from moto.server import main

NOTED = (
    "AWS::EC2::PlacementGroup",
    "AWS::EKS::AccessEntry",
    "AWS::EKS::Addon",
    "AWS::EKS::Cluster",
    "AWS::EKS::Nodegroup",
    "AWS::EKS::PodIdentityAssociation",
)
LIFECYCLE = {
    "ExpirationInDays": lambda value: {"Expiration": {"Days": value}},
    "NoncurrentVersionExpiration": lambda value: {"NoncurrentVersionExpiration": value},
    "AbortIncompleteMultipartUpload": lambda value: {"AbortIncompleteMultipartUpload": value},
    "ExpiredObjectDeleteMarker": lambda value: {"Expiration": {"ExpiredObjectDeleteMarker": str(value).lower()}},
}


def lifecycle(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """CloudFormation's rules in the shape of S3's XML, which is what moto stores."""
    made = []
    for rule in rules:
        translated = {"ID": rule["Id"], "Status": rule["Status"], "Filter": {"Prefix": ""}}
        for key in rule.keys() - {"Id", "Status"}:
            translated |= LIFECYCLE[key](rule[key])
        made.append(translated)
    return made


def apply(backend: Any, bucket: str, properties: dict[str, Any]) -> None:
    """What moto leaves out of a bucket."""
    backend.put_bucket_versioning(bucket, properties["VersioningConfiguration"]["Status"])
    backend.put_bucket_lifecycle(bucket, lifecycle(properties["LifecycleConfiguration"]["Rules"]))
    blocked = {key: str(value).lower() for key, value in properties["PublicAccessBlockConfiguration"].items()}
    backend.put_public_access_block(bucket, blocked)
    ownership = properties["OwnershipControls"]["Rules"][0]["ObjectOwnership"]
    backend.put_bucket_ownership_controls(bucket, ownership)
    if logging := properties.get("LoggingConfiguration"):
        backend.get_bucket(bucket).logging = {
            "TargetBucket": logging["DestinationBucketName"],
            "TargetPrefix": logging["LogFilePrefix"],
        }


def whole_bucket(create: Any) -> Any:
    def created(resource_name: str, cloudformation_json: Any, account_id: str, region_name: str, **more: Any) -> Any:
        bucket = create(resource_name, cloudformation_json, account_id, region_name, **more)
        apply(s3_backends[account_id]["aws"], resource_name, cloudformation_json["Properties"])
        return bucket

    return staticmethod(created)


class Noted(CloudFormationModel):
    """A resource that is remembered and nothing else."""

    __module__ = "moto.noted.cfn"  # moto files its models by the second word

    def __init__(self, name: str, region: str, type_: str) -> None:
        self.name, self.region, self.type = name, region, type_

    @property
    def physical_resource_id(self) -> str:
        return self.name

    @staticmethod
    def cloudformation_name_type() -> str:
        return "Name"

    @classmethod
    def has_cfn_attr(cls, attr: str) -> bool:
        return True

    def get_cfn_attribute(self, attribute_name: str) -> str:
        return f"{self.name}-{attribute_name}".lower()

    @classmethod
    def create_from_cloudformation_json(cls, resource_name, cloudformation_json, account_id, region_name, **kwargs):  # type: ignore[no-untyped-def]
        properties = cloudformation_json["Properties"]
        if cls.cloudformation_type() == "AWS::S3::BucketPolicy":
            policy = json.dumps(properties["PolicyDocument"]).encode()
            # moto enforces policies without their conditions, so the real attribute would refuse every request
            s3_backends[account_id]["aws"].get_bucket(properties["Bucket"]).noted_policy = policy
        return cls(properties.get("Name", resource_name), region_name, cls.cloudformation_type())

    @classmethod
    def update_from_cloudformation_json(cls, original_resource, new_resource_name, cloudformation_json, **where):  # type: ignore[no-untyped-def]
        return original_resource

    @classmethod
    def delete_from_cloudformation_json(cls, resource_name, cloudformation_json, account_id, region_name):  # type: ignore[no-untyped-def]
        return None


def noted(type_: str) -> type[CloudFormationModel]:
    name = type_.replace("::", "")
    return type(name, (Noted,), {"cloudformation_type": staticmethod(lambda: type_), "__module__": "moto.noted.cfn"})


def delete_route_table(table: RouteTable, account_id: str, region: str) -> None:
    del ec2_backends[account_id][region].route_tables[table.id]


def retaining(delete: Any) -> Any:
    """moto knows RetainExceptOnCreate not; what is deleted here was created before, so the exception is none."""

    def deleted(resources: parsing.ResourceMap) -> None:
        for one in resources._resource_json_map.values():
            if one.get("DeletionPolicy") == "RetainExceptOnCreate":
                one["DeletionPolicy"] = "Retain"
        delete(resources)

    return deleted


def with_outputs(apply_changes: Any) -> Any:
    def applied(change_set: ChangeSet) -> None:
        apply_changes(change_set)
        change_set.stack.template_dict = change_set.template_dict
        change_set.stack.output_map = change_set.stack._create_output_map()

    return applied


def has_parameters(stack: Stack, others: dict[str, str]) -> bool:
    """Whether these change nothing; one left out has its default, as on AWS."""
    standing = {name: flat(value) for name, value in stack.stack_parameters.items()}
    return {**standing, **others} == standing


def flat(value: Any) -> str:
    """A list as CloudFormation shows it."""
    return ",".join(value) if isinstance(value, list) else str(value)


def parameter_list(stack: Stack) -> list[dict[str, str]]:
    return [{"ParameterKey": key, "ParameterValue": flat(value)} for key, value in stack.stack_parameters.items()]


def fill() -> None:
    """Changes moto in this process."""
    ChangeSet.apply = with_outputs(ChangeSet.apply)  # type: ignore[method-assign]
    Stack.has_parameters = has_parameters  # type: ignore[method-assign]
    Stack.parameter_list = property(parameter_list)  # type: ignore[method-assign, assignment]
    parsing.ResourceMap.delete = retaining(parsing.ResourceMap.delete)  # type: ignore[method-assign]
    RouteTable.delete = delete_route_table  # type: ignore[attr-defined]
    FakeBucket.create_from_cloudformation_json = whole_bucket(FakeBucket.create_from_cloudformation_json)  # type: ignore[method-assign]
    models = dict(parsing.get_model_map())
    models |= {type_: noted(type_) for type_ in (*NOTED, "AWS::S3::BucketPolicy")}
    parsing.get_model_map = lambda: models
    parsing.get_model_list = lambda: list(models.values())


class Call(socketserver.StreamRequestHandler):
    """One line of JSON in, one out: a call of the `aws` command."""

    def handle(self) -> None:
        asked = json.loads(self.rfile.readline())
        code, out, error = aws_cli.execute(asked["arguments"], asked["stdin"], f"http://127.0.0.1:{sys.argv[1]}")
        self.wfile.write(json.dumps({"code": code, "out": out, "error": error}).encode() + b"\n")


if __name__ == "__main__":
    fill()
    calls = socketserver.ThreadingUnixStreamServer(sys.argv[2], Call)
    threading.Thread(target=calls.serve_forever, daemon=True).start()
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])
