"""The bucket outlives the stack: a name -> whether to make it or to take the one that is there; and deleting it for good."""

import json
from collections.abc import Iterator
from typing import Any

from infra.command import parsed, run, words
from infra.settings import Settings
from triplane.errors import Refused, TriplaneError, UsageError

TAG = "triplane:environment"
KEYS_PER_REQUEST = 1000
KEY_DAYS = 30
AWS_FAILED = (0, 254, 255)


def adopted(settings: Settings) -> dict[str, str]:
    """The foundation's parameters for its bucket at its first creation. Raises UsageError for a bucket that cannot be this one."""
    name = settings.bucket
    if not name:
        raise UsageError("the bucket has no name yet: pass --bucket NAME (lower-case, unique in the world)")
    if not exists(settings, name):
        return {"BucketName": name, **_adopted_logs(settings, f"{name}-logs")}
    require_ours(settings, name)
    location = parsed(run(settings.aws("s3api", "get-bucket-location", "--bucket", name)))["LocationConstraint"]
    if (location or "us-east-1") != settings.region:
        raise UsageError(f"bucket {name} is in {location or 'us-east-1'}, not in {settings.region}: name another")
    rules = parsed(run(settings.aws("s3api", "get-bucket-encryption", "--bucket", name)))
    default = rules["ServerSideEncryptionConfiguration"]["Rules"][0]["ApplyServerSideEncryptionByDefault"]
    return {"BucketName": name, "CreateBucket": "false", "ExistingKeyArn": default.get("KMSMasterKeyID", "")}


def _adopted_logs(settings: Settings, name: str) -> dict[str, str]:
    """The bucket of access logs stays when the data is deleted, and one that stands cannot be made again."""
    if not exists(settings, name):
        return {}
    require_ours(settings, name)
    return {"CreateAccessLogs": "false"}


def exists(settings: Settings, name: str) -> bool:
    """Raises UsageError if it is somebody else's."""
    done = run(settings.aws("s3api", "head-bucket", "--bucket", name), accepts=AWS_FAILED)
    if done.returncode == 0:
        return True
    if "(404)" in done.stderr:
        return False
    if "(403)" in done.stderr:
        raise UsageError(f"bucket {name} belongs to another account or is closed to you: name another with --bucket")
    raise TriplaneError(f"bucket {name} cannot be looked up: {' '.join(done.stderr.split())}")


def require_ours(settings: Settings, name: str) -> None:
    """Raises Refused unless the bucket's tag says that it is this environment's."""
    done = run(settings.aws("s3api", "get-bucket-tagging", "--bucket", name), accepts=AWS_FAILED)
    tags = {one["Key"]: one["Value"] for one in parsed(done)["TagSet"]} if done.returncode == 0 else {}
    if tags.get(TAG) != settings.environment:
        raise Refused(f"bucket {name} is not tagged {TAG}={settings.environment}: it was not made by this environment")


def delete(settings: Settings, name: str) -> int:
    """Every version of every object, then its key in KEY_DAYS days, then the bucket. Returns the number of versions.

    The bucket is what names the key, so it goes last: a key that nothing names any more would be paid for ever.
    """
    rules = run(settings.aws("s3api", "get-bucket-encryption", "--bucket", name), accepts=AWS_FAILED)
    count = 0
    for versions in _versions(settings, name):
        request = json.dumps({"Objects": versions, "Quiet": True})
        at = ("--bucket", name, "--delete", "file:///dev/stdin")
        answer = parsed(run(settings.aws("s3api", "delete-objects", *at), stdin=request)) or {}
        if failed := answer.get("Errors"):
            raise TriplaneError(f"{failed[0]['Key']} of bucket {name} cannot be deleted: {failed[0].get('Message')}")
        count += len(versions)
    if rules.returncode == 0 and (key := _key(parsed(rules))):
        _delete_key(settings, key.rpartition("/")[2])
    run(settings.aws("s3api", "delete-bucket", "--bucket", name))
    return count


def _delete_key(settings: Settings, key: str) -> None:
    window = ("--pending-window-in-days", str(KEY_DAYS))
    done = run(settings.aws("kms", "schedule-key-deletion", "--key-id", key, *window), accepts=AWS_FAILED)
    if done.returncode and "pending deletion" not in done.stderr:  # by an earlier run that did not get further
        raise TriplaneError(f"key {key} cannot be deleted: {words(done)}")


def _key(encryption: dict[str, Any]) -> str:
    rule = encryption["ServerSideEncryptionConfiguration"]["Rules"][0]
    return rule["ApplyServerSideEncryptionByDefault"].get("KMSMasterKeyID", "")


def _versions(settings: Settings, name: str) -> Iterator[list[dict[str, str]]]:
    """Pages of what is left, until nothing is."""
    page = ("--bucket", name, "--no-paginate", "--max-keys", str(KEYS_PER_REQUEST))
    while True:
        found = parsed(run(settings.aws("s3api", "list-object-versions", *page))) or {}
        both = [*found.get("Versions", []), *found.get("DeleteMarkers", [])]
        if not both:
            return
        yield [{"Key": one["Key"], "VersionId": one["VersionId"]} for one in both]
