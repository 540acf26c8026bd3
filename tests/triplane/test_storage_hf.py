"""hf:// against a local server with the few calls of the Hub's API that huggingface_hub makes for us."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from triplane import retry, storage
from triplane.errors import Corrupt, NotFound, TriplaneError, UsageError

REVISION = "5e729f5e15d3935506c64cbeb0ec23fba8ba2412"
REPOSITORY = f"hf://datasets/owner/corpus@{REVISION}"
FILES = {"README.md": b"# corpus", "data/web/0001/b.jsonl.gz": b"bbb", "data/web/a.json.zst": bytes(range(256)) * 40}


class FakeHub(BaseHTTPRequestHandler):
    """One dataset, `owner/corpus`, at one revision."""

    protocol_version = "HTTP/1.1"
    fail: list[int]
    reads: list[str]

    def log_message(self, *_: object) -> None: ...

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), Content_Type="application/json")

    def _describe(self, name: str) -> dict[str, object]:
        return {"type": "file", "path": name, "size": len(FILES[name]), "oid": "0" * 40}

    def _tree(self, folder: str) -> None:
        found = [self._describe(name) for name in FILES if name.startswith(f"{folder}/" if folder else "")]
        if found:
            self._json(found)
        else:
            self._send(404, X_Error_Code="EntryNotFound")

    def _file(self, name: str) -> None:
        if self.fail and self.command == "GET":
            self._send(self.fail.pop())
            return
        data, given = FILES[name], self.headers.get("Range")
        self.reads.append(f"{name} {given}")
        if given is None:
            self._send(200, data, ETag='"0"', X_Repo_Commit=REVISION)
            return
        first, last = (int(part) for part in given.removeprefix("bytes=").split("-"))
        part = data[first : last + 1]
        self._send(206, part, Content_Range=f"bytes {first}-{first + len(part) - 1}/{len(data)}")

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == f"/api/datasets/owner/corpus/revision/{REVISION}":
            self._json({"id": "owner/corpus", "sha": REVISION, "siblings": []})
        elif path.startswith(tree := f"/api/datasets/owner/corpus/tree/{REVISION}"):
            self._tree(path.removeprefix(tree).strip("/"))
        elif path.startswith(resolve := f"/datasets/owner/corpus/resolve/{REVISION}/"):
            self._file(path.removeprefix(resolve))
        else:
            self._send(404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self._json([self._describe(name) for name in form["paths"] if name in FILES])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    import huggingface_hub

    handler = type("Handler", (FakeHub,), {"fail": [], "reads": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(retry, "delay_seconds", lambda attempt: 0.0)
    huggingface_hub.HfFileSystem.clear_instance_cache()
    yield handler
    server.shutdown()
    server.server_close()


def test_a_listing_and_what_it_lists(hub: type[FakeHub], tmp_path: Path) -> None:
    found = storage.entries(f"{REPOSITORY}/data/web")
    assert [(one.name, one.bytes) for one in found] == [("0001/b.jsonl.gz", 3), ("a.json.zst", 10_240)]
    url = f"{REPOSITORY}/data/web/a.json.zst"
    data = FILES["data/web/a.json.zst"]
    assert (storage.size(url), storage.read(url), storage.read_range(url, 250, 10)) == (10_240, data, data[250:260])
    with storage.open_stream(url) as stream:
        assert stream.read(100) + stream.read() == data
    storage.download(url, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert any("bytes=250-259" in one for one in hub.reads)


def test_what_is_not_there(hub: type[FakeHub]) -> None:
    assert storage.entries(f"{REPOSITORY}/data/none") == []
    assert not storage.exists(f"{REPOSITORY}/data/none.jsonl")
    with pytest.raises(NotFound, match="check repository, revision and path"):
        storage.read(f"{REPOSITORY}/data/none.jsonl")
    with pytest.raises(NotFound):
        storage.size("hf://datasets/owner/another/a.jsonl")
    with pytest.raises(Corrupt):
        storage.read_range(f"{REPOSITORY}/README.md", 5, 100)


def test_nothing_is_written(hub: type[FakeHub], tmp_path: Path) -> None:
    url = f"{REPOSITORY}/data/new"
    for write in (storage.put, storage.put_if_absent):
        with pytest.raises(UsageError, match="only read from"):
            write(url, b"x")
    with pytest.raises(UsageError, match="only read from"):
        storage.delete(url)


def test_a_busy_hub_is_asked_again_and_a_broken_one_is_named(
    hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{REPOSITORY}/README.md"
    hub.fail.append(429)
    assert storage.read(url) == FILES["README.md"]
    hub.fail.append(403)
    with pytest.raises(TriplaneError, match=r"cannot read hf://datasets/owner/corpus@.*check HF_ENDPOINT"):
        storage.read(url)
