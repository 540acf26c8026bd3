"""What a submission names, looked for where it would be read: roots, data, images, names, files that a job elsewhere does not have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from dataplane import ingestion
from evalplane import decontamination
from jobs import build_mix
from jobs.submission import dry_run
from tests.jobs.submission.planted_submission import PLANES, Submission
from triplane import artifact
from triplane.contamination_status import Status
from triplane.errors import NotFound, TriplaneError


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


def test_a_job_on_ray_has_another_folder(
    make: Callable[[str], Submission], dashboard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = make("eval")
    submission.options["target"] = f"http://127.0.0.1:{dashboard.server_port}"
    assert submission.findings() == []  # absolute paths may be on disks that are shared
    monkeypatch.chdir(submission.folder)
    recipe = submission.folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(f"{submission.folder}/", ""))
    assert [(one.line, one.message) for one in submission.findings()] == [
        (line, f"{name} is of this folder, and the job runs in another: write {submission.folder / name}")
        for line, name in ((1, "model"), (3, "data"), (4, "tokenizer.json"))
    ]
    submission.options["target"] = "local"
    assert submission.findings() == []


def test_pods_get_data_from_the_object_store_alone(make: Callable[[str], Submission]) -> None:
    """Also where an override names it, or nothing does, so that this machine's own would be tried."""
    cluster, submission = make("kubernetes"), make("eval")
    submission.options = {"root": cluster.options["root"], "target": "k8s"}
    recipe = submission.folder / "recipe.yaml"
    plain = recipe.read_text().replace(f"data: [{submission.folder}/data]", "data: []")
    plain = plain.replace(f"{submission.folder}/", "s3://planted/")
    items = submission.folder / "data" / "arithmetic" / "items.jsonl"
    for text, line, says in (
        (
            plain,
            2,
            f"the evaluation data arithmetic/items.jsonl is missing; looked for it at {cluster.options['root']}",
        ),
        (plain.replace("overrides: []", f"overrides: ['arithmetic.data.path=[{items}]']"), 7, "pods do not have it"),
    ):
        recipe.write_text(text)
        manifests = cluster.folder / "infra" / "k8s" / "jobs" / "aws"
        found = dry_run.findings("eval", recipe, [], submission.options["root"], "k8s", manifests)
        assert any(one.line == line and says in one.message for one in found), "\n".join(map(str, found))


def test_a_store_that_does_not_answer_is_asked_once(
    make: Callable[[str], Submission], monkeypatch: pytest.MonkeyPatch
) -> None:
    submission, asked = make("data"), list[str]()
    recipe = submission.folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(f"documents: {submission.folder}/", "documents: hf://datasets/a/"))

    def listing(source: Any) -> None:
        asked.append(source.documents)
        raise error

    monkeypatch.setattr(ingestion, "listing", listing)
    error: TriplaneError = TriplaneError("list hf://datasets/a failed 12 times in 120 s")
    assert [one.message for one in submission.findings()] == [str(error)] and len(asked) == 1
    error = NotFound("hf://datasets/a does not exist")  # an answer
    assert len(submission.findings()) == 2 and len(asked) == 3


def test_what_another_file_says_is_named_there(make: Callable[[str], Submission]) -> None:
    """The change of a variant, the key of a source that a build names: both reach the recipe as overrides, and are none to a reader."""
    run = make("train")
    recipe = run.folder / "recipe.yaml"
    base = recipe.rename(run.folder / "base.yaml")
    recipe.write_text(f"base: {base}\nname: other\nsource: none\nchange:\n  z_loss: 0.0\n  data.mix: mix/none\n")
    (finding,) = run.findings()
    assert (finding.file, finding.line) == (str(recipe), 6) and "no committed mix/none" in finding.message
    run.options["overrides"] = ["data.mix=mix/never"]
    assert [one.file for one in run.findings()] == ["override data.mix=mix/never"]
    recipe.write_text(recipe.read_text().replace("data.mix: mix/none", "stop_tokens: 0"))
    assert (str(recipe), 6) in [(one.file, one.line) for one in run.findings()]


def test_the_documents_of_a_named_source_are_named_there(
    make: Callable[[str], Submission], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = make("data")
    recipe, sources = build.folder / "recipe.yaml", build.folder / "sources"
    value = yaml.safe_load(recipe.read_text())
    sources.mkdir()
    documents = build.folder / "documents" / "prose"
    named = {**value["sources"][0], "documents": str(documents)}
    (sources / "prose.yaml").write_text(yaml.safe_dump(named, sort_keys=False))
    value["sources"][0] = "prose"
    recipe.write_text(yaml.safe_dump(value))
    monkeypatch.setattr(build_mix, "SOURCES", sources)
    assert build.findings() == []
    (documents / "a.jsonl").unlink()
    (finding,) = build.findings()
    assert (finding.file, finding.line) == (str(sources / "prose.yaml"), 2)


def test_a_root_that_cannot_be_used_hides_nothing_that_needs_none(make: Callable[[str], Submission]) -> None:
    submission = make("data")
    recipe = submission.folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("documents/prose", "documents/pros"))
    submission.options["root"] = "ftp://a/b"
    assert [one.file for one in submission.findings()] == ["--root ftp://a/b", str(recipe)]


def test_data_that_an_override_names_is_looked_for_there(make: Callable[[str], Submission]) -> None:
    submission = make("eval")
    items = submission.folder / "data" / "arithmetic" / "items.jsonl"
    elsewhere = items.rename(submission.folder / "my items.jsonl")
    assert "arithmetic/items.jsonl" in submission.findings()[0].message
    recipe = submission.folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("overrides: []", f"overrides: ['arithmetic.data.path=[{elsewhere}]']"))
    assert submission.findings() == []
    elsewhere.unlink()
    (finding,) = submission.findings()
    assert "my items.jsonl" in finding.message


@pytest.mark.parametrize(
    ("status", "key", "says"),
    [
        ("contaminated", "", "items that are evaluated are in what"),
        ("contaminated", "allow_contaminated: true", ""),
        ("contaminated", "require_clean: true", "items that are evaluated are in what"),
        ("unknown", "", ""),
        ("unknown", "require_clean: true", "nobody looked whether the items of arithmetic are in what"),
        ("clean", "allow_contaminated: true\nrequire_clean: true", "exclude each other: set one"),
    ],
)
def test_contamination_is_judged_as_the_recipe_says(
    status: Any, key: str, says: str, make: Callable[[str], Submission], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"arithmetic": Status(status, ("a",) if status == "contaminated" else ())}
    monkeypatch.setattr(decontamination, "statuses", lambda *arguments: found)
    submission = make("eval")
    with (submission.folder / "recipe.yaml").open("a") as recipe:
        recipe.write(f"{key}\n")
    said = [one.message for one in submission.findings()]
    assert len(said) == bool(says) and all(says in one for one in said)
