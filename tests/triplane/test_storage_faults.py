"""Storage when the network fails: a small proxy before the S3 server answers 409 and 503, loses answers and cuts bodies short."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from triplane import retry, storage, storage_s3
from triplane.errors import TriplaneError

CONFLICT = "<Error><Code>ConditionalRequestConflict</Code><Message>concurrent</Message></Error>"
SLOW_DOWN = "<Error><Code>SlowDown</Code><Message>slow</Message></Error>"
DENIED = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>"


class Proxy:
    """Forwards to the S3 server; the next requests of a method meet the faults queued for it, then all is well."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.faults: dict[str, list[str | Callable[[], None]]] = {}
        self.seen: list[str] = []

    def next_fault(self, method: str) -> str | Callable[[], None] | None:
        self.seen.append(method)
        queued = self.faults.get(method, [])
        return queued.pop(0) if queued else None


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = proxy.next_fault(self.command)
            if callable(fault):
                fault()
            if fault == "reset before":
                self.close_connection = True
                return
            if isinstance(fault, str) and fault[0].isdigit():
                status, _, text = fault.partition(" ")
                self._answer(int(status), {"Content-Type": "application/xml"}, text.encode())
                return
            upstream = http.client.HTTPConnection(proxy.upstream.hostname or "", proxy.upstream.port)
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            data = answer.read()
            upstream.close()
            if fault == "lose answer":
                self.close_connection = True
                return
            kept = {
                k: v
                for k, v in answer.getheaders()
                if k.lower() not in ("connection", "transfer-encoding", "date", "server")
            }
            self._answer(answer.status, kept, data, cut=fault == "cut body")

        def _answer(self, status: int, headers: dict[str, str], data: bytes, cut: bool = False) -> None:
            self.send_response(status)
            length = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
            for key, value in (headers | {"Content-Length": length}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection = cut or self.close_connection

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _forward

    return Handler


@contextmanager
def _serving(proxy: Proxy) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(proxy))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def proxy(s3_root: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr(retry, "LONGEST_DELAY_SECONDS", 0.05)
    proxy = Proxy(s3_endpoint)
    with _serving(proxy) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield proxy


def test_conflicts_are_tried_again_until_the_put_is_decided(proxy: Proxy, s3_root: str) -> None:
    url = storage.join(s3_root, "x")
    proxy.faults["PUT"] = [f"409 {CONFLICT}", f"409 {CONFLICT}"]
    assert storage.put_if_absent(url, b"mine") is True
    assert proxy.seen == ["PUT"] * 3
    assert storage.read(url) == b"mine"


def test_a_conflict_that_the_other_writer_won_is_false(proxy: Proxy, s3_root: str) -> None:
    """A 409 means that another request is under way: here that one wins while we wait. Even with equal bytes it is not ours."""
    url = storage.join(s3_root, "x")
    proxy.faults["PUT"] = [f"409 {CONFLICT}", lambda: storage.put(url, b"mine")]
    assert storage.put_if_absent(url, b"mine") is False


def test_a_lost_answer_is_settled_by_the_content(proxy: Proxy, s3_root: str) -> None:
    url = storage.join(s3_root, "x")
    proxy.faults["PUT"] = ["lose answer"]
    assert storage.put_if_absent(url, b"mine") is True  # the first try had written it
    assert storage.read(url) == b"mine"
    assert proxy.seen[:2] == ["PUT", "PUT"]


def test_after_a_lost_connection_another_writer_may_have_won(proxy: Proxy, s3_root: str) -> None:
    url = storage.join(s3_root, "x")
    proxy.faults["PUT"] = ["reset before", lambda: storage.put(url, b"theirs")]
    assert storage.put_if_absent(url, b"mine") is False
    assert storage.read(url) == b"theirs"


@pytest.mark.parametrize("fault", [f"503 {SLOW_DOWN}", "500 ", "reset before", "lose answer", "cut body"])
def test_reads_get_over_one_failure(proxy: Proxy, s3_root: str, fault: str) -> None:
    url = storage.join(s3_root, "x")
    storage.put(url, b"0123456789" * 1000)
    proxy.faults["GET"] = [fault]
    assert storage.read(url) == b"0123456789" * 1000
    proxy.faults["GET"] = [fault]
    assert storage.read_range(url, 5, 3) == b"567"
    proxy.faults |= {"GET": [fault], "HEAD": [fault.replace("cut body", "reset before")]}
    with storage.open_stream(url) as stream:
        assert stream.read() == b"0123456789" * 1000
    proxy.faults["GET"] = [fault]
    assert storage.list_names(s3_root) == ["x"]


def test_refusals_are_not_tried_again(proxy: Proxy, s3_root: str) -> None:
    proxy.faults["PUT"] = [f"403 {DENIED}"]
    with pytest.raises(TriplaneError, match=r"cannot write s3://.*AccessDenied.*check credentials and endpoint http"):
        storage.put(storage.join(s3_root, "x"), b"")
    assert proxy.seen == ["PUT"]


def test_failures_without_end_end(proxy: Proxy, s3_root: str) -> None:
    proxy.faults["PUT"] = [f"503 {SLOW_DOWN}"] * 99
    with pytest.raises(TriplaneError, match=r"write s3://.* failed 12 times"):
        storage.put_if_absent(storage.join(s3_root, "x"), b"")
    assert len(proxy.seen) == retry.MAX_ATTEMPTS


def test_a_multipart_upload_gets_over_failures_of_each_step(
    proxy: Proxy, s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_s3, "ONE_PUT_BYTES", 1 << 20)
    monkeypatch.setattr(storage_s3, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(storage_s3, "PART_THREADS", 1)
    big = tmp_path / "big"
    big.write_bytes(bytes(range(256)) * (6 << 12))
    proxy.faults = {"POST": [f"503 {SLOW_DOWN}"], "PUT": ["reset before", f"503 {SLOW_DOWN}"]}
    storage.put_file(storage.join(s3_root, "big"), big)
    assert storage.read(storage.join(s3_root, "big")) == big.read_bytes()
    proxy.faults = {
        "POST": [lambda: None, "lose answer"]
    }  # the answer to the completion is lost: its retry finds no upload
    storage.put_file(storage.join(s3_root, "again"), big)
    assert storage.read(storage.join(s3_root, "again")) == big.read_bytes()
    assert storage.leftovers(s3_root) == []
