"""The part of the `aws` command that infra/up and infra/down use, over boto3: arguments -> exit code, output, error, as the real one."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import boto3
from botocore import xform_name
from botocore.exceptions import ClientError

ERROR = 254  # what the real command ends with when the service refuses


@cache
def client(service: str, endpoint: str, region: str) -> Any:
    return boto3.client(
        service, endpoint_url=endpoint, region_name=region, aws_access_key_id="test", aws_secret_access_key="test"
    )


def execute(arguments: list[str], stdin: str, endpoint: str) -> tuple[int, str, str]:
    service, operation, *rest = arguments
    given = options(rest)
    region = given.pop("region")
    assert given.pop("output") == "json"
    given.pop("no-paginate", None)
    if service == "eks":  # moto has clusters, but none made by CloudFormation
        return 0, "Added new context\n", ""
    asked = client("s3" if service == "s3api" else service, endpoint, region)
    try:
        answer = getattr(asked, operation.replace("-", "_"))(**parameters(asked, operation, given, stdin))
    except ClientError as error:
        return ERROR, "", f"\n{error}\n"
    answer.pop("ResponseMetadata", None)
    return 0, json.dumps(answer, default=str) if answer else "", ""


def options(arguments: list[str]) -> dict[str, str]:
    """--name value, and --name alone."""
    given: dict[str, str] = {}
    name = ""
    for one in arguments:
        if one.startswith("--"):
            name = one.removeprefix("--")
            given[name] = ""
        else:
            given[name] = one
    return given


def parameters(asked: Any, operation: str, given: dict[str, str], stdin: str) -> dict[str, Any]:
    """The options as the operation's own arguments. Fails on one it does not have, as the real command does."""
    members = asked.meta.service_model.operation_model(
        asked.meta.method_to_api_mapping[operation.replace("-", "_")]
    ).input_shape.members
    known = {xform_name(name, "-"): name for name in members}
    return {known[name]: _value(members[known[name]].type_name, value, stdin) for name, value in given.items()}


def _value(type_: str, value: str, stdin: str) -> Any:
    if value == "file:///dev/stdin":
        value = stdin
    elif value.startswith("file://"):
        value = Path(value.removeprefix("file://")).read_text()
    if type_ in ("structure", "map", "integer", "boolean"):
        return json.loads(value)
    if type_ == "list":
        return json.loads(value) if value.startswith("[") else [value]
    return value
