"""A planted set of mistakes, all found by one look at each submission, each with file and line; and nothing was sent.

`planted/SCENARIO` holds clean files and, in mistakes.yaml, what is planted into them. Without any there is no finding; taking one away takes away
its finding and no other.
"""

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
from triplane import artifact, vocabulary
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
    thread = threading.Thread(target=server.serve_forever)
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


def test_at_least_thirty_mistakes_are_planted() -> None:
    assert sum(map(len, MISTAKES.values())) >= 30
    said = [one["says"] for planted in MISTAKES.values() for one in planted]
    assert len(set(said)) >= 30


@pytest.mark.parametrize("name", PLANES)
def test_a_clean_submission_has_no_findings(name: str, make: Callable[[str], Submission]) -> None:
    assert make(name).findings() == []


@pytest.mark.parametrize("name", PLANES)
def test_one_command_finds_all_that_is_planted(
    name: str, make: Callable[[str], Submission], dashboard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = make(name)
    submission.plant(MISTAKES[name])
    connected: list[Any] = []
    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda self, to: (connected.append(to), connect(self, to))[1])
    found = submission.findings()
    by_mistake = [[one for one in found if submission.is_of(one, mistake)] for mistake in MISTAKES[name]]
    missed = [mistake for mistake, those in zip(MISTAKES[name], by_mistake, strict=True) if len(those) != 1]
    assert missed == [], "\n".join(map(str, found))
    assert sorted(those[0] for those in by_mistake) == found, "something else was found"
    # Nothing was sent: nobody but the planted target was spoken to, and kubectl was only asked.
    assert {to[1] for to in connected if isinstance(to, tuple)} <= {1}
    assert dashboard.RequestHandlerClass.asked == []
    calls = submission.folder / "calls"
    asked = calls.read_text().splitlines() if calls.exists() else []
    assert all(line.startswith(("kustomize ", "get ")) for line in asked), asked
    assert (len(asked) > 0) is (name == "kubernetes")


@pytest.mark.parametrize(
    ("name", "part"), [(name, slice(at, at + 10)) for name in PLANES for at in range(0, len(MISTAKES[name]), 10)]
)
def test_a_mistake_by_itself_is_its_finding_alone(name: str, part: slice, make: Callable[[str], Submission]) -> None:
    clean = make(name)
    for mistake in MISTAKES[name][part]:
        submission = Submission(name, clean.folder, dict(clean.options))
        kept = {path: path.read_bytes() for path in clean.folder.rglob("*") if path.is_file()}
        submission.plant([mistake])
        found = submission.findings()
        assert len(found) == 1 and submission.is_of(found[0], mistake), (mistake, list(map(str, found)))
        (clean.folder / "down").unlink(missing_ok=True)
        for path, content in kept.items():
            path.write_bytes(content)


def test_taking_one_away_takes_its_finding_away(make: Callable[[str], Submission]) -> None:
    name = "data"
    clean = make(name)
    kept = {path: path.read_bytes() for path in clean.folder.rglob("*") if path.is_file()}
    for left_out in MISTAKES[name]:
        submission = Submission(name, clean.folder, dict(clean.options))
        submission.plant([one for one in MISTAKES[name] if one is not left_out])
        found = submission.findings()
        assert len(found) == len(MISTAKES[name]) - 1
        assert not any(submission.filled(left_out["says"]) in one.message for one in found)
        for path, content in kept.items():
            path.write_bytes(content)


def test_a_name_that_another_run_has(make: Callable[[str], Submission]) -> None:
    submission = make("train")
    recipe = submission.folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("version: null", "version: v1"))
    assert submission.findings() == []
    taken = artifact.begin(
        submission.options["root"], "run", "tiny", inputs={}, recipe={"a": 1}, stage_versions={}, version="v1"
    )
    taken.commit({})
    (finding,) = submission.findings()
    assert (finding.file, finding.line) == (str(recipe), 1) and "run/tiny@v1" in finding.message


def test_a_suite_that_is_none(make: Callable[[str], Submission]) -> None:
    submission = make("eval")
    recipe = submission.folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("suite: arithmetic", "suite: arithmatic"))
    (finding,) = submission.findings()
    assert finding.line == 2 and "did you mean 'arithmetic'" in finding.message


def test_a_recipe_that_is_no_yaml_leaves_the_rest_to_be_looked_at(make: Callable[[str], Submission]) -> None:
    submission = make("data")
    (submission.folder / "recipe.yaml").write_text("name: [\n")
    submission.options["target"] = "spark://127.0.0.1:1"
    assert ["not YAML" in one.message or "no Spark master" in one.message for one in submission.findings()] == [
        True
    ] * 2


@pytest.mark.parametrize(
    ("root", "says"),
    [
        ("s3://dry-run-far/x", "bucket dry-run-far is in eu-west-1, the region set here is us-east-1"),
        ("s3://dry-run-absent/x", "bucket dry-run-absent does not exist"),
        ("s3:///x", "names no bucket"),
        ("ftp://a/b", "has the unknown scheme ftp://"),
        ("FILE", "is a file: name a folder"),
    ],
)
def test_a_root_that_cannot_be_used(
    root: str, says: str, s3_endpoint: str, tmp_path: Path, make: Callable[[str], Submission]
) -> None:
    if "far" in root:
        place = {"LocationConstraint": "eu-west-1"}
        boto3.client("s3", region_name="eu-west-1").create_bucket(Bucket="dry-run-far", CreateBucketConfiguration=place)
    submission = make("data")
    (tmp_path / "file").touch()
    submission.options["root"] = root.replace("FILE", str(tmp_path / "file"))
    (finding,) = submission.findings()
    assert finding.file == f"--root {submission.options['root']}" and says in finding.message


def test_no_credentials_and_no_answer(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, make: Callable[[str], Submission]
) -> None:
    submission = make("data")
    submission.options["root"] = "s3://bucket/x"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    (finding,) = submission.findings()
    assert "no object store answers" in finding.message
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")
    (finding,) = submission.findings()
    assert "no credentials: set AWS_PROFILE" in finding.message


def test_images_are_those_of_the_pins(make: Callable[[str], Submission]) -> None:
    submission = make("kubernetes")
    folder = submission.folder / "infra" / "k8s" / "jobs" / "aws"
    kustomization = folder / "kustomization.yaml"
    kustomization.write_text(kustomization.read_text().partition("images:")[0])
    job = folder / "train.yaml"
    job.write_text(job.read_text().replace("image: triplane-ray", "image: triplane-ray:unpinned"))
    pins = submission.folder / "infra" / "pins.yaml"
    pins.write_text('images: {triplane-ray: "unpinned: none was built"}\n')
    found = submission.findings()
    assert [one.message.partition(" is unpinned ")[2] for one in found] == [
        "(unpinned: none was built): fill the digest in"
    ] * 2
    pins.write_text(f"images: {{triplane-ray: registry.example/ray@sha256:{'2' * 64}}}\n")
    assert submission.findings() == []


def test_pods_have_no_files_of_this_machine(make: Callable[[str], Submission]) -> None:
    cluster, build, evaluation = make("kubernetes"), make("data"), make("eval")
    for submission, lines in ((build, [3, 9, 18]), (evaluation, [1, 3, 4])):
        found = dry_run.findings(
            PLANES[submission.name],
            submission.folder / "recipe.yaml",
            [],
            cluster.options["root"],
            "k8s",
            cluster.folder / "infra" / "k8s" / "jobs" / "aws",
        )
        of_recipe = [one for one in found if one.file == str(submission.folder / "recipe.yaml")]
        assert [one.line for one in of_recipe] == lines
        assert all("is of this machine, and pods do not have it" in one.message for one in of_recipe)


def test_a_root_that_cannot_be_used_hides_nothing_that_needs_none(make: Callable[[str], Submission]) -> None:
    submission = make("data")
    recipe = submission.folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("documents/prose", "documents/pros"))
    submission.options["root"] = "ftp://a/b"
    assert [one.file for one in submission.findings()] == ["--root ftp://a/b", str(recipe)]
