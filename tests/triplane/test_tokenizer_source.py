"""Where a tokenizer is loaded from: file, folder, artifact, S3, Hub; and what the error says when it is nowhere."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from triplane import artifact, storage, tokenizer_source
from triplane.errors import Corrupt, UsageError
from triplane.tokenizer import Tokenizer, train

ROOT = Path(__file__).parents[2]
HUB_ID = "allenai/dolma2-tokenizer"


@pytest.fixture(scope="module")
def small() -> bytes:
    return train(["the cat sat on the mat\n" * 50], 300)


def test_a_file_and_a_folder(small: bytes, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(small)
    renamed = tmp_path / "renamed"
    renamed.write_bytes(small)
    for source in (file, str(file), tmp_path, f"{tmp_path}/", f"file://{tmp_path}", renamed):
        assert Tokenizer.load(source).sha256 == hashlib.sha256(small).hexdigest()


def test_one_object_a_process_until_the_file_changes(small: bytes, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(small)
    first = Tokenizer.load(file)
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_bytes(small)
    assert Tokenizer.load(file) is Tokenizer.load(elsewhere) is first
    file.write_bytes(small.replace(b'"version": "1.0"', b'"version":"1.0"'))
    assert Tokenizer.load(file) is not first


def test_an_s3_object_and_an_artifact_on_s3(small: bytes, s3_root: str) -> None:
    url = storage.join(s3_root, "some/tokenizer.json")
    storage.put(url, small)
    assert Tokenizer.load(url).json_bytes == small
    assert Tokenizer.load(storage.join(s3_root, "some")).json_bytes == small
    draft = artifact.begin(s3_root, "tokenizer", "small", inputs={}, recipe={}, stage_versions={})
    draft.record("tokenizer", [draft.put_bytes(small, "tokenizer", ".json")], {})
    draft.commit({})
    assert Tokenizer.load(draft.url).json_bytes == small


def test_a_changed_artifact_is_corrupt(small: bytes, tmp_path: Path) -> None:
    draft = artifact.begin(str(tmp_path), "tokenizer", "small", inputs={}, recipe={}, stage_versions={})
    entry = draft.put_bytes(small, "tokenizer", ".json")
    draft.record("tokenizer", [entry], {})
    draft.commit({})
    assert tokenizer_source.read(draft.url) == small
    Path(draft.url, entry.name).write_bytes(small.replace(b'"version": "1.0"', b'"version": "1.1"'))
    with pytest.raises(Corrupt, match=rf"{entry.name} holds {len(small)} bytes with sha256"):
        tokenizer_source.read(draft.url)


def test_absent_says_where_it_looked(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "no" / "such" / "folder"):
        with pytest.raises(
            UsageError, match=rf"no tokenizer at {source}/tokenizer\.json or {source}/manifest\.json: give"
        ):
            Tokenizer.load(source)
    with pytest.raises(UsageError, match=rf"no tokenizer at {tmp_path}/other\.json: give a tokenizer\.json"):
        Tokenizer.load(tmp_path / "other.json")


@pytest.mark.parametrize("value", ["huggingface.co", "ftp://mirror", "https://"])
def test_a_wrong_endpoint_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", value)
    with pytest.raises(UsageError, match=r"HF_ENDPOINT is .*: set it to an http"):
        Tokenizer.load(HUB_ID)


def test_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert tokenizer_source.endpoint() == "https://huggingface.co"
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example:8080/hf/")
    assert tokenizer_source.endpoint() == "http://mirror.example:8080/hf"


@pytest.fixture
def hub(small: bytes) -> Iterator[str]:
    """A Hub that has one file."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == f"/{HUB_ID}/resolve/main/tokenizer.json"
            self.send_response(200 if found else 404)
            self.send_header("ETag", f'"{hashlib.sha1(small).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(small) if found else 0))
            self.end_headers()
            if found and self.command == "GET":
                self.wfile.write(small)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def load_in_child(hub_id: str, home: Path, **environment: str) -> str:
    """huggingface_hub reads its settings when imported, so each case is a process. Gives the sha256, or the error."""
    program = (
        "import hashlib, sys\nfrom triplane import tokenizer_source\nfrom triplane.errors import UsageError\n"
        "try: print(hashlib.sha256(tokenizer_source.read(sys.argv[1])).hexdigest())\nexcept UsageError as error: print(error)"
    )
    whole = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | environment | {"HF_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", program, hub_id], cwd=ROOT, env=whole, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_a_hub_id_is_downloaded_from_the_endpoint_and_cached(small: bytes, tmp_path: Path, hub: str) -> None:
    digest = hashlib.sha256(small).hexdigest()
    assert load_in_child(HUB_ID, tmp_path, HF_ENDPOINT=hub) == digest
    assert load_in_child(HUB_ID, tmp_path, HF_ENDPOINT=hub, HF_HUB_OFFLINE="1") == digest
    missing = load_in_child("allenai/no-such-tokenizer", tmp_path, HF_ENDPOINT=hub)
    assert f"the Hub at {hub} did not give allenai/no-such-tokenizer/tokenizer.json" in missing


def test_offline_says_what_to_do(tmp_path: Path) -> None:
    message = load_in_child(HUB_ID, tmp_path, HF_HUB_OFFLINE="1")
    assert message.startswith(f"no tokenizer at {HUB_ID}/tokenizer.json or {HUB_ID}/manifest.json, and the Hub at ")
    assert message.endswith("or download tokenizer.json once and give its path")
