"""gs:// against a fake of Google's JSON API: what is sent (ifGenerationMatch=0) and what its answers mean."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from triplane import storage
from triplane.errors import Corrupt, NotFound

gcsfs = pytest.importorskip("gcsfs")


class FakeBucket(BaseHTTPRequestHandler):
    """The few calls of https://cloud.google.com/storage/docs/json_api that gcsfs makes for us."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]
    marks: dict[str, dict[str, str]]
    conditions: list[str]
    lose_answers: int

    def log_message(self, *_: object) -> None: ...

    def _send(self, status: int, body: bytes = b"{}", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def _missing(self) -> None:
        self._send(404, json.dumps({"error": {"code": 404, "message": "No such object"}}).encode())

    def _describe(self, name: str) -> dict[str, object]:
        size = str(len(self.objects[name]))
        return {
            "metadata": self.marks[name],
            "name": name,
            "bucket": "b",
            "size": size,
            "updated": "2026-01-02T03:04:05Z",
            "generation": "1",
        }

    def do_POST(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        _, described, content = body.split(b"--==0==", 2)
        sent = json.loads(described.split(b"\n\n", 1)[1])
        name = sent["name"]
        data = content.split(b"\n\n", 1)[1].rsplit(b"\n--==0==--", 1)[0]
        condition = query.get("ifGenerationMatch", [""])[0]
        self.conditions.append(condition)
        if condition == "0" and name in self.objects:
            self._send(412, json.dumps({"error": {"code": 412, "message": "conditionNotMet"}}).encode())
            return
        self.objects[name], self.marks[name] = data, sent.get("metadata", {})
        if type(self).lose_answers:
            type(self).lose_answers -= 1
            self._send(503, json.dumps({"error": {"code": 503, "message": "lost"}}).encode())
            return
        self._send(200, json.dumps(self._describe(name)).encode())

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        name = unquote(parts.path.partition("/b/b/o/")[2])
        if not name:
            self._list(query)
        elif name not in self.objects:
            self._missing()
        elif query.get("alt") == "media" or "Range" in self.headers or "/download/" in parts.path:
            self._media(self.objects[name])
        else:
            self._send(200, json.dumps(self._describe(name)).encode())

    def _media(self, data: bytes) -> None:
        ranged = self.headers.get("Range", "").removeprefix("bytes=")
        if ranged:
            start, _, end = ranged.partition("-")
            data = data[int(start) : int(end) + 1 if end else None]
        self._send(206 if ranged else 200, data)

    def _list(self, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, prefixes = [], set()
        for name in sorted(self.objects):
            if name.startswith(prefix):
                rest = name[len(prefix) :]
                if delimiter and delimiter in rest:
                    prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
                else:
                    items.append(self._describe(name))
        self._send(200, json.dumps({"items": items, "prefixes": sorted(prefixes)}).encode())

    def do_DELETE(self) -> None:
        name = unquote(urlsplit(self.path).path.partition("/b/b/o/")[2])
        if self.objects.pop(name, None) is None:
            self._missing()
        else:
            self._send(204, b"")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeBucket]]:
    handler = type("Bucket", (FakeBucket,), {"objects": {}, "marks": {}, "conditions": [], "lose_answers": 0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    gcsfs.GCSFileSystem.clear_instance_cache()
    try:
        yield handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_put_if_absent_sends_generation_zero(bucket: type[FakeBucket]) -> None:
    assert storage.put_if_absent("gs://b/records/x.json", b"first") is True
    assert storage.put_if_absent("gs://b/records/x.json", b"first") is False  # equal content is still someone else's
    assert bucket.conditions == ["0", "0"]
    assert storage.read("gs://b/records/x.json") == b"first"
    storage.put("gs://b/records/x.json", b"third")
    assert bucket.conditions == ["0", "0", ""]
    assert bucket.objects == {"records/x.json": b"third"}


def test_a_lost_answer_is_settled_by_the_mark_of_the_attempt(bucket: type[FakeBucket]) -> None:
    bucket.lose_answers = 1
    assert storage.put_if_absent("gs://b/x", b"mine") is True
    assert bucket.objects == {"x": b"mine"} and len(bucket.conditions) >= 2


def test_objects_are_read_listed_and_deleted(bucket: type[FakeBucket]) -> None:
    for name in ("t/a.json", "t/c/b.json", "u"):
        storage.put(f"gs://b/{name}", b"0123456789")
    assert storage.read_range("gs://b/u", 2, 3) == b"234"
    with pytest.raises(Corrupt):
        storage.read_range("gs://b/u", 8, 3)
    assert (storage.size("gs://b/u"), storage.modified("gs://b/u")) == (10, 1767323045.0)
    with storage.open_stream("gs://b/u") as stream:
        assert stream.read() == b"0123456789"
    assert storage.list_names("gs://b/t") == ["a.json", "c/b.json"]
    assert storage.folders("gs://b/t") == ["c"]
    assert (storage.list_names("gs://b/none"), storage.folders("gs://b/none"), storage.leftovers("gs://b")) == (
        [],
        [],
        [],
    )
    storage.delete("gs://b/u")
    storage.delete("gs://b/u")
    with pytest.raises(NotFound, match="gs://b/u does not exist"):
        storage.read("gs://b/u")
    assert not storage.exists("gs://b/u")
