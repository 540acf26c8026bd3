"""Ranges over kept connections: from S3 and from plain HTTP, and what happens when a server fails, closes, or gives no ranges."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from triplane import ranges, retry, storage
from triplane.errors import Corrupt, NotFound, TriplaneError

DATA = bytes(range(256)) * 40


class Server(ThreadingHTTPServer):
    """Answers by the name of the object; counts requests and connections."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: Counter[str] = Counter()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.seen["connections"] += 1

    def do_HEAD(self) -> None:
        name = self.path.rpartition("/")[2]
        if name.startswith("moved"):
            to = {"moved": "/there/moved-on", "moved-on": f"{self.server.url}/ok"}.get(name, self.path)
            return self._answer(302, b"", 0, to)
        self._answer(404 if name == "missing" else 200, b"", len(DATA))

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        self.server.seen[name] += 1
        if name == "missing":
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        if name == "hanging" and self.server.seen[name] == 1:
            time.sleep(0.5)
        if name == "flaky" and self.server.seen[name] <= 2:
            return self._answer(503, b"<Error><Code>SlowDown</Code></Error>")
        if name == "whole" or "Range" not in self.headers:
            return self._answer(200, DATA)
        start, stop = (int(part) for part in self.headers["Range"].removeprefix("bytes=").split("-"))
        self._answer(206, DATA[start : stop + 1])
        if name == "closing":
            self.close_connection = True

    def _answer(self, status: int, body: bytes, length: int | None = None, to: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("ETag", '"0"')
        if to is not None:
            self.send_header("Location", to)
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        with suppress(ConnectionError):  # the client of `hanging` is gone
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Also what s3:// means while it runs."""
    one = Server()
    thread = threading.Thread(target=one.serve_forever, args=(0.01,))
    thread.start()
    for name, value in {
        "AWS_ENDPOINT_URL": one.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(retry, "FIRST_DELAY_SECONDS", 0.01)
    yield one
    ranges.close()
    one.shutdown()
    thread.join()
    one.server_close()


@pytest.mark.parametrize("scheme", ["s3://bucket", "http"])
def test_ranges_come_over_one_connection(server: Server, scheme: str) -> None:
    root = server.url if scheme == "http" else scheme
    for start in range(0, 5000, 100):
        assert ranges.read(f"{root}/ok", start, 77) == DATA[start : start + 77]
    assert server.seen == {"ok": 50, "connections": 1}
    assert ranges.size(f"{root}/ok") == len(DATA)
    assert server.seen["ok"] == 50


def test_a_path_may_hold_what_a_request_may_not(server: Server) -> None:
    """Spaces and letters are escaped, and what is escaped already is not escaped again."""
    for path in ("a b/ä+c", "a%20b/%C3%A4+c"):
        assert ranges.read(f"{server.url}/{path}", 3, 5) == DATA[3:8]
    assert server.seen["%C3%A4+c"] == 2


def test_a_url_that_moved_is_followed(server: Server) -> None:
    for start in (0, 5):
        assert ranges.read(f"{server.url}/a/moved", start, 5) == DATA[start : start + 5]
    assert ranges.size(f"{server.url}/a/moved") == len(DATA)
    with pytest.raises(TriplaneError, match="from one URL to another, 5 times"):
        ranges.size(f"{server.url}/moved-in-a-circle")


def test_threads_take_turns_with_connections(server: Server) -> None:
    def one(start: int) -> bytes:
        return ranges.read("s3://bucket/ok", start, 10)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(100))) == [DATA[start : start + 10] for start in range(100)]
    assert server.seen["connections"] <= 4


def test_a_closed_connection_is_opened_again(server: Server) -> None:
    for start in range(5):
        assert ranges.read("s3://bucket/closing", start, 10) == DATA[start : start + 10]
    assert server.seen["closing"] == server.seen["connections"] == 5


def test_an_answer_that_hangs_is_asked_for_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(storage, "read_range", None)
    assert ranges.read("s3://bucket/hanging", 3, 5) == DATA[3:8]
    assert server.seen["hanging"] == 2


@pytest.mark.parametrize("root", ["s3://bucket", "http"])
def test_a_failing_server_is_asked_again(server: Server, root: str) -> None:
    url = f"{server.url if root == 'http' else root}/flaky"
    assert ranges.read(url, 3, 5) == DATA[3:8]
    assert server.seen["flaky"] == 3


def test_what_cannot_be_read_is_one_sentence(server: Server) -> None:
    for root in ("s3://bucket", server.url):
        with pytest.raises(NotFound, match="missing does not exist"):
            ranges.read(f"{root}/missing", 0, 5)
    with pytest.raises(TriplaneError, match="answered 200, not with a range"):
        ranges.read(f"{server.url}/whole", 0, 5)
    with pytest.raises(Corrupt, match=f"holds {len(DATA)} of the 5 bytes"):
        ranges.read("s3://bucket/whole", 0, 5)
    with pytest.raises(Corrupt, match="holds 2 of the 5 bytes"):
        ranges.read("s3://bucket/ok", len(DATA) - 2, 5)


def test_nobody_listening_is_told_after_the_deadline(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setenv(retry.DEADLINE_VARIABLE, "0.2")
    with pytest.raises(TriplaneError, match=r"failed \d+ times"):
        ranges.read(f"http://127.0.0.1:{free_port}/ok", 0, 5)


def test_real_s3_takes_the_signed_url(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast way alone, without the storage that would catch its failure."""
    storage.put(f"{s3_root}/a b/ä+c", DATA)
    with monkeypatch.context() as patched:
        patched.setattr(storage, "read_range", None)
        assert ranges.read(f"{s3_root}/a b/ä+c", 1000, 50) == DATA[1000:1050]


def test_a_proxy_is_left_to_the_client(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "elsewhere")
    assert ranges._signed("s3://bucket/proxied") is None
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert ranges._signed("s3://bucket/direct") is not None
