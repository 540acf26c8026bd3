"""Storage on S3 and what speaks its protocol: what `triplane.storage` does for s3://bucket/key.

Endpoint and credentials come from the environment (AWS_ENDPOINT_URL, ...). One client a process and endpoint, made anew after a fork.
Conditional writes: https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html (412: exists; 409: try again).
"""

import io
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from triplane import retry
from triplane.errors import Corrupt, NotFound, TriplaneError, UsageError
from triplane.storage_local import Entry
from triplane.storage_local import open_stream as open_local
from triplane.storage_local import stat as stat_local

T = TypeVar("T")

STREAM_BYTES = 8 << 20
PART_BYTES = 16 << 20
MAX_PARTS = 10_000
PART_THREADS = 4
ONE_PUT_BYTES = 64 << 20
CONNECT_SECONDS, READ_SECONDS = 10, 60
CLIENT_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_DEFAULT_REGION")
TRANSIENT_CODES = frozenset(
    "409 429 500 502 503 504 ConditionalRequestConflict OperationAborted InternalError ServiceUnavailable SlowDown "
    "Throttling ThrottlingException RequestTimeout TooManyRequests".split()
)
MISSING_CODES = frozenset({"404", "NoSuchKey", "NotFound"})
EXISTS_CODES = frozenset({"412", "PreconditionFailed"})
CONFLICT_CODES = frozenset({"409", "ConditionalRequestConflict", "OperationAborted"})

_clients: dict[tuple[str | None, ...], Any] = {}
_lock = threading.Lock()


def _after_fork() -> None:
    """A child must not share its parent's sockets, nor wait on a lock that one of its parent's threads held."""
    global _lock
    _lock = threading.Lock()
    _clients.clear()


os.register_at_fork(after_in_child=_after_fork)


def client() -> Any:
    """This process's client for the endpoint and identity that the environment names."""
    key = tuple(os.environ.get(name) for name in CLIENT_VARIABLES)
    with _lock:
        if key not in _clients:
            _clients[key] = _make_client()
        return _clients[key]


def _make_client() -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise UsageError("s3:// needs boto3: pip install 'triplane[s3]'") from error
    # Retries are ours (retry.call), so that one deadline covers them all.
    config = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=32,
    )
    return boto3.session.Session().client("s3", config=config)


def split(url: str) -> tuple[str, str]:
    """s3://bucket/key -> (bucket, key)."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise UsageError(f"{url} names no bucket: write s3://bucket/key")
    return bucket, key


def code_of(error: BaseException) -> str:
    """The S3 error code of a ClientError ('' for anything else)."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _status_of(error: BaseException) -> int:
    response = getattr(error, "response", None)
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) if isinstance(response, dict) else 0


def is_transient(error: Exception) -> bool:
    """Whether trying again may help: throttling, 5xx, 409, and every failure of the network between us."""
    if code_of(error):
        return code_of(error) in TRANSIENT_CODES or _status_of(error) >= 500
    return is_ambiguous(error)


def is_ambiguous(error: Exception) -> bool:
    """Whether a write may have taken effect although it failed: no answer came, or the server's own failure did."""
    if code_of(error):
        return _status_of(error) >= 500
    from botocore import exceptions as known
    from urllib3.exceptions import HTTPError

    network = (known.ConnectionError, known.HTTPClientError, known.ResponseStreamingError, known.IncompleteReadError)
    return isinstance(error, (*network, HTTPError, ConnectionError, TimeoutError))


def _call(url: str, action: str, operation: Callable[[], T]) -> T:
    """One S3 call with retries. Raises NotFound, or TriplaneError with the server's code."""
    try:
        return retry.call(operation, is_transient, f"{action} {url}")
    except TriplaneError:
        raise
    except Exception as error:
        raise _explained(url, action, error) from error


def _explained(url: str, action: str, error: Exception) -> TriplaneError:
    code = code_of(error)
    if code in MISSING_CODES:
        return NotFound(f"{url} does not exist: check the name, or run the step that makes it")
    if code == "NoSuchBucket":
        return NotFound(f"bucket {split(url)[0]} does not exist at {_endpoint()}: make it or correct the URL {url}")
    reason = code or f"{type(error).__name__}: {error}".splitlines()[0]
    return TriplaneError(f"cannot {action} {url} ({reason}): check credentials and endpoint {_endpoint()}")


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"


def _get(url: str, **extra: str) -> bytes:
    bucket, key = split(url)
    return _call(url, "read", lambda: client().get_object(Bucket=bucket, Key=key, **extra)["Body"].read())


def read(url: str) -> bytes:
    return _get(url)


def read_range(url: str, start: int, length: int) -> bytes:
    """The bytes that exist of [start, start + length); none when the object ends before `start`."""
    try:
        return _get(url, Range=f"bytes={start}-{start + length - 1}")
    except TriplaneError as error:
        if code_of(error.__cause__ or error) in {"InvalidRange", "416"}:
            return b""
        raise


def stat(url: str) -> Entry:
    found = _head(url)
    return Entry(url.rsplit("/", 1)[-1], int(found["ContentLength"]), found["LastModified"].timestamp())


def _head(url: str) -> dict[str, Any]:
    bucket, key = split(url)
    return _call(url, "read", lambda: client().head_object(Bucket=bucket, Key=key))


class _Ranges(io.RawIOBase):
    """Sequential reads as ranged GETs of one version (ETag) of an object: a dropped connection costs one range."""

    def __init__(self, url: str) -> None:
        self._url = url
        head = _head(url)
        self._bytes, self._etag, self._at = int(head["ContentLength"]), head["ETag"], 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._bytes - self._at)
        if length <= 0:
            return 0
        end = self._at + length - 1
        try:
            data = _get(self._url, Range=f"bytes={self._at}-{end}", IfMatch=self._etag)
        except TriplaneError as error:
            if code_of(error.__cause__ or error) in EXISTS_CODES:
                raise Corrupt(f"{self._url} was replaced while it was read: run the same command again") from error
            raise
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def open_stream(url: str) -> BinaryIO:
    return io.BufferedReader(_Ranges(url), STREAM_BYTES)


def put(url: str, data: bytes) -> None:
    bucket, key = split(url)
    _call(url, "write", lambda: client().put_object(Bucket=bucket, Key=key, Body=data))


def put_if_absent(url: str, data: bytes) -> bool:
    bucket, key = split(url)
    ambiguous = False

    def attempt() -> bool:
        nonlocal ambiguous
        try:
            client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
            return True
        except Exception as error:
            if code_of(error) in EXISTS_CODES:
                # After an answer that got lost, "exists" may mean our own earlier try: the content tells.
                return ambiguous and read(url) == data
            ambiguous = ambiguous or is_ambiguous(error)
            raise

    return _call(url, "write", attempt)


def put_file(url: str, source: Path) -> None:
    """One PUT up to 64 MiB, else a multipart upload with at most 4 parts (of 16 MiB, more beyond 160 GB) in memory."""
    length = stat_local(str(source)).bytes
    if length <= ONE_PUT_BYTES:
        with open_local(str(source)) as file:
            return put(url, file.read())
    bucket, key = split(url)
    upload = _call(url, "write", lambda: client().create_multipart_upload(Bucket=bucket, Key=key))["UploadId"]
    target = {"Bucket": bucket, "Key": key, "UploadId": upload}
    try:
        _complete(url, target, _upload_parts(url, target, source, length), length)
    except BaseException:
        with suppress(Exception):  # the first error matters; `triplane gc` aborts what stays
            client().abort_multipart_upload(**target)
        raise


def _upload_parts(url: str, target: dict[str, str], source: Path, length: int) -> list[dict[str, Any]]:
    part_bytes = max(PART_BYTES, -(-length // MAX_PARTS))

    def upload(number: int) -> dict[str, Any]:
        with open_local(str(source)) as file:
            file.seek((number - 1) * part_bytes)
            data = file.read(part_bytes)
        sent = _call(url, "write", lambda: client().upload_part(**target, PartNumber=number, Body=data))
        return {"PartNumber": number, **{k: v for k, v in sent.items() if k == "ETag" or k.startswith("ChecksumC")}}

    pool = ThreadPoolExecutor(PART_THREADS)
    try:
        return list(pool.map(upload, range(1, -(-length // part_bytes) + 1)))
    finally:
        pool.shutdown(cancel_futures=True)


def _complete(url: str, target: dict[str, str], parts: list[dict[str, Any]], length: int) -> None:
    def attempt() -> None:
        try:
            client().complete_multipart_upload(**target, MultipartUpload={"Parts": parts})
        except Exception as error:
            # A retry whose first answer was lost finds the upload gone: completed, if the object stands.
            if code_of(error) != "NoSuchUpload" or stat(url).bytes != length:
                raise

    _call(url, "write", attempt)


def _pages(url: str, operation: str, **extra: str) -> list[dict[str, Any]]:
    bucket, key = split(url)
    prefix = f"{key.rstrip('/')}/" if key else ""

    def attempt() -> list[dict[str, Any]]:
        return list(client().get_paginator(operation).paginate(Bucket=bucket, Prefix=prefix, **extra))

    return _call(url, "list", attempt)


def _relative(url: str, key: str) -> str:
    prefix = split(url)[1].rstrip("/")
    return key[len(prefix) + 1 :] if prefix else key


def entries(prefix_url: str) -> list[Entry]:
    objects = (one for page in _pages(prefix_url, "list_objects_v2") for one in page.get("Contents", ()))
    found = (Entry(_relative(prefix_url, o["Key"]), o["Size"], o["LastModified"].timestamp()) for o in objects)
    return sorted(entry for entry in found if entry.name)


def folders(prefix_url: str) -> list[str]:
    pages = _pages(prefix_url, "list_objects_v2", Delimiter="/")
    common = (one["Prefix"] for page in pages for one in page.get("CommonPrefixes", ()))
    return sorted(_relative(prefix_url, prefix).rstrip("/") for prefix in common)


def leftovers(prefix_url: str) -> list[Entry]:
    """Multipart uploads that were begun and neither completed nor aborted: `key?uploadId`; their bytes are unknown (0)."""
    uploads = (u for page in _pages(prefix_url, "list_multipart_uploads") for u in page.get("Uploads", ()))
    return sorted(
        Entry(f"{_relative(prefix_url, u['Key'])}?{u['UploadId']}", 0, u["Initiated"].timestamp()) for u in uploads
    )


def delete(url: str) -> None:
    bucket, key = split(url)
    _call(url, "delete", lambda: client().delete_object(Bucket=bucket, Key=key))


def delete_leftover(prefix_url: str, entry: Entry) -> None:
    name, _, upload = entry.name.rpartition("?")
    bucket, prefix = split(prefix_url)
    key = f"{prefix.rstrip('/')}/{name}" if prefix else name

    def attempt() -> None:
        try:
            client().abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
        except Exception as error:
            if code_of(error) != "NoSuchUpload":  # completed or aborted since it was listed
                raise

    _call(prefix_url, "delete", attempt)
