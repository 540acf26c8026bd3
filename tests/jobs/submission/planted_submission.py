"""Submissions whose files are clean, laid out from `planted/SCENARIO`, and mistakes to plant into them (its mistakes.yaml)."""

import http.server
import os
import shutil
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from jobs.manifests.finding import Finding
from jobs.submission import dry_run
from tests.training_fixtures import write_mix
from triplane import vocabulary
from triplane.lm.export import to_huggingface
from triplane.lm.model import ModelConfig, Olmo2, init_weights
from triplane.tokenizer import Tokenizer

PLANTED = Path(__file__).parent / "planted"
PLANES = {"data": "data", "train": "train", "eval": "eval", "kubernetes": "train"}
MISTAKES: dict[str, list[dict[str, Any]]] = {
    name: yaml.safe_load((PLANTED / name / "mistakes.yaml").read_text()) for name in PLANES
}
KUBECTL = """#!/bin/sh
echo "$*" >> {calls}
[ "$1" = kustomize ] && exec {kubectl} "$@"
[ -e {down} ] || exit 0
echo "The connection to the server 10.0.0.1:443 was refused - did you specify the right host or port?" >&2
exit 1
"""


@dataclass
class Submission:
    """A scenario laid out in a folder, with what is planted so far."""

    name: str
    folder: Path
    options: dict[str, Any]

    def plant(self, mistakes: list[dict[str, Any]]) -> None:
        for one in mistakes:
            if "file" in one:
                path = self.folder / one["file"]
                text, old = path.read_text(), self.filled(one["old"])
                assert text.count(old) == 1, one
                path.write_text(text.replace(old, self.filled(one["new"])))
            elif "remove" in one:
                (path,) = (self.folder / "root").glob(one["remove"])
                path.unlink()
            elif one["option"] == "cluster":
                (self.folder / "down").touch()
            elif one["option"] == "overrides":
                self.options["overrides"] = [one["new"]]
            else:
                self.options[one["option"]] = self.filled(one["new"])

    def filled(self, text: str) -> str:
        return text.replace("FOLDER", str(self.folder))

    def findings(self) -> list[Finding]:
        manifests = self.folder / "infra" / "k8s" / "jobs" / "aws"
        return dry_run.findings(
            PLANES[self.name],
            self.folder / "recipe.yaml",
            self.options.get("overrides", []),
            self.options["root"],
            self.options["target"],
            manifests if self.options["target"] == "k8s" else None,
        )

    def is_of(self, finding: Finding, mistake: dict[str, Any]) -> bool:
        """Whether a finding is the one that the mistake should give, at its place."""
        if self.filled(mistake["says"]) not in finding.message:
            return False
        if "option" in mistake:
            option = {"target": "--to", "root": "--root", "cluster": "--to"}.get(mistake["option"])
            given = self.options["target" if mistake["option"] == "cluster" else mistake["option"]]
            place = mistake.get("place", f"{option} {given}")
            return (finding.file, finding.line) == (place, 0)
        path = self.folder / mistake.get("in", mistake.get("file", "recipe.yaml"))
        lines = path.read_text().splitlines()
        at = self.filled(mistake.get("at", mistake.get("new", ""))).split("\n")[0]
        (line,) = [number for number, text in enumerate(lines, 1) if at in text]
        return (os.path.realpath(finding.file), finding.line) == (os.path.realpath(path), line)


class _Dashboard(http.server.BaseHTTPRequestHandler):
    """A Ray dashboard that knows no job, and remembers what it was asked."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        self.send_response(404)
        self.end_headers()

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def dashboard() -> Iterator[Any]:
    handler = type("Dashboard", (_Dashboard,), {"asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(vocabulary.train(["one two three four five six seven"] * 20, 300), "a test's")


@pytest.fixture
def make(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dashboard: Any,
    listener: int,
    tokenizer: Tokenizer,
    request: pytest.FixtureRequest,
) -> Callable[[str], Submission]:
    """make(scenario) -> the clean scenario in a folder of its own."""

    def _make(name: str) -> Submission:
        folder = tmp_path / name
        shutil.copytree(PLANTED / name, folder)
        recipe = folder / "recipe.yaml"
        recipe.write_text(recipe.read_text().replace("FOLDER", str(folder)))
        (folder / "tokenizer.json").write_bytes(tokenizer.json_bytes)
        root = str(folder / "root")
        targets = {"data": f"spark://127.0.0.1:{listener}", "train": f"http://127.0.0.1:{dashboard.server_port}"}
        options = {"root": root, "target": targets.get(name, "local")}
        if name == "data":
            for source in ("prose", "notes"):
                (folder / "documents" / source).mkdir(parents=True)
                (folder / "documents" / source / "a.jsonl").write_text('{"id": "a", "text": "b"}\n')
        elif name == "eval":
            _write_evaluation(folder, tokenizer)
        elif name == "kubernetes":
            request.getfixturevalue("s3_endpoint")
            boto3.client("s3").create_bucket(Bucket="planted")
            _kubectl(folder, monkeypatch)
            options = {"root": f"s3://planted/{tmp_path.name}", "target": "k8s"}
        if PLANES[name] == "train":
            write_mix(options["root"], tmp_path)
        return Submission(name, folder, options)

    return _make


def _write_evaluation(folder: Path, tokenizer: Tokenizer) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        num_key_value_heads=1,
        max_position_embeddings=64,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.eos_id,
        **sizes,
    )
    model = Olmo2(config)
    init_weights(model, 1)
    to_huggingface(model.eval(), folder / "model", tokenizer.json_bytes)
    items = folder / "data" / "arithmetic" / "items.jsonl"
    items.parent.mkdir(parents=True)
    items.write_text('{"id": "a", "question": "1+1=\\n", "answer": "2"}\n')


def _kubectl(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kubectl that renders, records what it is asked, and answers while there is no file `down`."""
    real = shutil.which("kubectl")
    if real is None:
        pytest.skip("kubectl renders kustomizations")
    values = {"calls": folder / "calls", "kubectl": real, "down": folder / "down"}
    path = folder / "bin" / "kubectl"
    path.parent.mkdir()
    path.write_text(KUBECTL.format(**values))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
