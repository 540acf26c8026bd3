"""Small ranges of remote objects, many a second: (url, start, length) -> bytes, over connections that stay open.

An S3 client spends three quarters of a millisecond of processor time on a GET; a loader needs thousands a second. So here each thread keeps a
connection and sends a plain GET of a URL signed once for many ranges. Whatever does not come back at once as the range asked for is read again
through `triplane.storage`, which retries and explains. http(s):// is read too (AI2's public file lists name such URLs), nowhere else written.

Source: presigned URLs, https://docs.aws.amazon.com/AmazonS3/latest/userguide/ShareObjectPreSignedURL.html; RFC 9110 section 14 (ranges).
"""

import http.client
import os
import threading
import time
import urllib.request
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from triplane import retry, storage, storage_s3
from triplane.errors import NotFound, TriplaneError

SIGNED_SECONDS = 3600
SIGN_AGAIN_SECONDS = 1200
ANSWER_SECONDS = 30
MAX_SIGNED = 1 << 16
MISSING = frozenset({404, 410})
CONNECTIONS = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}

_thread = threading.local()
os.register_at_fork(after_in_child=lambda: _thread.__dict__.clear())  # a child must not share its parent's sockets


def read(url: str, start: int, length: int) -> bytes:
    """Exactly `length` bytes from `start`. Raises as `storage.read_range`."""
    if is_public(url):
        return _read_public(url, start, length)
    signed = _signed(url)
    status, data = _get(signed, start, length) if signed else (0, b"")
    return data if status == 206 and len(data) == length else storage.read_range(url, start, length)


def size(url: str) -> int:
    """Bytes of an object, at http(s):// too. Raises NotFound, TriplaneError."""
    if not is_public(url):
        return storage.size(url)
    return retry.call(lambda: _head(url), _is_transient, f"read {url}")


def is_public(url: str) -> bool:
    """Whether it is http:// or https://, which `triplane.storage` does not know."""
    return url.startswith(("http://", "https://"))


def _read_public(url: str, start: int, length: int) -> bytes:
    def attempt() -> bytes:
        status, data = _get(url, start, length)
        if status == 206 and len(data) == length:
            return data
        raise _explained(url, status)

    return retry.call(attempt, _is_transient, f"read {url}")


def _head(url: str) -> int:
    response = _exchange("HEAD", url, {})
    if response is None or response.status != 200:
        raise _explained(url, response.status if response else 0)
    response.read()
    return int(response.headers["Content-Length"])


def _explained(url: str, status: int) -> Exception:
    if status in MISSING:
        return NotFound(f"{url} does not exist: check the name, or read the files from a mirror")
    if not status or status == 429 or status >= 500:
        return ConnectionError(f"status {status}" if status else "no answer")
    return TriplaneError(f"{url} answered {status} to a ranged GET: read the files from a mirror that gives ranges")


def _is_transient(error: Exception) -> bool:
    return isinstance(error, ConnectionError)


def _get(url: str, start: int, length: int) -> tuple[int, bytes]:
    """(status, body); no body unless the answer is a range; status 0 when there was no answer."""
    response = _exchange("GET", url, {"Range": f"bytes={start}-{start + length - 1}"})
    if response is None:
        return 0, b""
    try:
        if response.status == 206:
            return 206, response.read()
    except (http.client.HTTPException, OSError):
        _close(url)
        return 0, b""
    _close(url)  # an error's body, or a whole object, is not worth reading
    return response.status, b""


def _exchange(method: str, url: str, headers: dict[str, str]) -> http.client.HTTPResponse | None:
    """The answer on this thread's connection, opened again once: a server may have closed a kept one."""
    parts = urlsplit(url)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    for _ in range(2):
        connection = _connection(parts.scheme, parts.netloc)
        try:
            connection.request(method, target, headers=headers)
            return connection.getresponse()
        except (http.client.HTTPException, OSError):
            connection.close()
    return None


def _connection(scheme: str, place: str) -> http.client.HTTPConnection:
    kept, server = _thread.__dict__, f"{scheme}://{place}"
    if server not in kept:
        kept[server] = CONNECTIONS[scheme](place, timeout=ANSWER_SECONDS)
    connection: http.client.HTTPConnection = kept[server]
    return connection


def _close(url: str) -> None:
    parts = urlsplit(url)
    _connection(parts.scheme, parts.netloc).close()


def _signed(url: str) -> str | None:
    """A URL that anyone may GET for an hour; None where there is none (gs://), or where a proxy stands between."""
    if not url.startswith("s3://"):
        return None
    environment = tuple(os.environ.get(name) for name in storage_s3.CLIENT_VARIABLES)
    return _sign(url, environment, int(time.monotonic() // SIGN_AGAIN_SECONDS))


@lru_cache(MAX_SIGNED)
def _sign(url: str, environment: tuple[str | None, ...], period: int) -> str | None:
    bucket, key = storage_s3.split(url)
    signed: str = _signer(environment).generate_presigned_url(
        "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=SIGNED_SECONDS
    )
    place = urlsplit(signed)
    is_proxied = place.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(place.netloc)
    return None if is_proxied else signed


@lru_cache(8)
def _signer(environment: tuple[str | None, ...]) -> Any:
    storage_s3.client()  # says in one sentence when boto3 is missing
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client("s3", config=Config(signature_version="s3v4"))
