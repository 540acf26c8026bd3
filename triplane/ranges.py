"""Small ranges of remote objects, many a second: (url, start, length) -> bytes, over connections that stay open.

An S3 client spends three quarters of a millisecond of processor time on a GET; a loader needs thousands a second. So here connections are kept
and a read is a plain GET of a URL signed once for many ranges. Whatever does not come back at once as the range asked for is read again through
`triplane.storage`, which retries and explains. http(s):// is read too (AI2's public file lists name such URLs), nowhere else written.

Source: presigned URLs, https://docs.aws.amazon.com/AmazonS3/latest/userguide/ShareObjectPreSignedURL.html; RFC 9110 section 14 (ranges).
"""

import atexit
import http.client
import os
import threading
import time
import urllib.request
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from triplane import retry, storage, storage_s3
from triplane.errors import NotFound, TriplaneError

SIGNED_SECONDS = 3600
SIGN_AGAIN_SECONDS = 1200
ANSWER_SECONDS = 5  # small ranges come in far less; one that hangs is asked for again
MAX_KEPT = 1 << 16
MISSING = frozenset({404, 410})
CONNECTIONS = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
REDIRECTS = frozenset({301, 302, 307, 308})
MAX_REDIRECTS = 5
SAFE = "/%:@!$&'()*+,;="  # what a path may hold as it is (RFC 3986), escapes among it
SUCCESS = {"GET": frozenset({206}), "HEAD": REDIRECTS | {200}}
T = TypeVar("T")

_idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}
_lock, _signing = threading.Lock(), threading.Lock()


def _after_fork() -> None:
    """A child must not share its parent's sockets, nor wait on a lock that one of its parent's threads held."""
    global _lock, _signing
    _lock, _signing = threading.Lock(), threading.Lock()
    _idle.clear()


os.register_at_fork(after_in_child=_after_fork)


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
    return _resolved(url)[1]


def is_public(url: str) -> bool:
    """Whether it is http:// or https://, which `triplane.storage` does not know."""
    return url.startswith(("http://", "https://"))


def _read_public(url: str, start: int, length: int) -> bytes:
    place, _ = _resolved(url)

    def attempt() -> bytes:
        status, data = _get(place, start, length)
        if status == 206 and len(data) == length:
            return data
        raise _explained(url, status)

    return retry.call(attempt, _is_transient, f"read {url}")


@lru_cache(MAX_KEPT)
def _resolved(url: str) -> tuple[str, int]:
    """Where a URL leads in the end, and how many bytes are there."""
    return retry.call(lambda: _head(url), _is_transient, f"read {url}")


def _head(url: str) -> tuple[str, int]:
    place = url
    for _ in range(MAX_REDIRECTS):
        status, value = _exchange("HEAD", place, {}, _size_or_place)
        if status == 200 and value:
            return place, int(value)
        if status not in REDIRECTS or not value:
            raise _explained(url, status)
        place = urljoin(place, str(value))
    raise TriplaneError(f"{url} leads from one URL to another, {MAX_REDIRECTS} times: read the files from a mirror")


def _size_or_place(response: http.client.HTTPResponse) -> str | None:
    response.read()
    return response.headers["Content-Length" if response.status == 200 else "Location"]


def _explained(url: str, status: int) -> Exception:
    if status in MISSING:
        return NotFound(f"{url} does not exist: check the name, or read the files from a mirror")
    if not status or status == 429 or status >= 500:
        return ConnectionError(f"status {status}" if status else "no answer")
    return TriplaneError(
        f"{url} answered {status}, not with a range of it: read the files from a mirror that gives ranges"
    )


def _is_transient(error: Exception) -> bool:
    return isinstance(error, ConnectionError)


def _get(url: str, start: int, length: int) -> tuple[int, bytes]:
    """(status, body); no body unless the answer is a range: a whole object, or a page about an error, is not worth reading."""
    return _exchange("GET", url, {"Range": f"bytes={start}-{start + length - 1}"}, lambda response: response.read())


def _exchange(
    method: str, url: str, headers: dict[str, str], wanted: Callable[[http.client.HTTPResponse], T]
) -> tuple[int, T | bytes]:
    """(status, what is wanted of a success); status 0 when there was no answer, twice: a server may have closed a kept connection."""
    parts = urlsplit(url)
    path = quote(parts.path or "/", safe=SAFE)
    target = f"{path}?{parts.query}" if parts.query else path
    for is_kept in (True, False):
        connection = _borrow(parts.scheme, parts.netloc, is_kept)
        try:
            connection.request(method, target, headers=headers)
            response = connection.getresponse()
            if response.status in SUCCESS[method]:
                value = wanted(response)
                _give_back(parts.scheme, parts.netloc, connection)
                return response.status, value
            connection.close()
            return response.status, b""
        except (http.client.HTTPException, OSError):
            connection.close()
    return 0, b""


def _borrow(scheme: str, place: str, is_kept: bool) -> http.client.HTTPConnection:
    with _lock:
        idle = _idle.get((scheme, place))
        if is_kept and idle:
            return idle.pop()
    connection: http.client.HTTPConnection = CONNECTIONS[scheme](place, timeout=ANSWER_SECONDS)
    return connection


def _give_back(scheme: str, place: str, connection: http.client.HTTPConnection) -> None:
    with _lock:
        _idle.setdefault((scheme, place), []).append(connection)


@atexit.register
def close() -> None:
    """Closes the connections that wait for the next read."""
    with _lock:
        for connection in (one for idle in _idle.values() for one in idle):
            connection.close()
        _idle.clear()


def _signed(url: str) -> str | None:
    """A URL that anyone may GET for an hour; None where there is none (gs://), or where a proxy stands between."""
    if not url.startswith("s3://"):
        return None
    environment = tuple(os.environ.get(name) for name in storage_s3.CLIENT_VARIABLES)
    with _signing:  # else many threads make the same signature, and as many clients
        return _sign(url, environment, int(time.monotonic() // SIGN_AGAIN_SECONDS))


@lru_cache(MAX_KEPT)
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
