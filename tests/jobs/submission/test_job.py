"""What a job is, by what it is known again, and how its end is told."""

from pathlib import Path

import pytest
import yaml

from jobs import train
from jobs.submission import job as jobs
from jobs.submission.job import Job, State
from triplane.errors import UsageError

RUNS = Path(train.__file__).parent / "recipes" / "runs"
JOB = Job("train", "name: x\n", "s3://bucket/root", ("a=1",))


def test_the_command_of_each_plane() -> None:
    assert JOB.command("python", "r.yaml") == [
        "python", "-m", "jobs.train", "r.yaml", "--root", "s3://bucket/root", "a=1",
    ]  # fmt: skip
    data = Job("data", "", "/root", ("a=1", "b=2"))
    assert data.command("python", "r.yaml") == ["python", "-m", "jobs.build_mix", "r.yaml", "/root", "a=1", "b=2"]
    assert Job("eval", "", "/root", ()).command("p", "r")[2] == "jobs.evaluate"


@pytest.mark.parametrize(
    "other",
    [
        Job("eval", JOB.recipe, JOB.root, JOB.overrides),
        Job("train", "name: y\n", JOB.root, JOB.overrides),
        Job("train", JOB.recipe, "s3://bucket/other", JOB.overrides),
        Job("train", JOB.recipe, JOB.root, ("a=2",)),
    ],
)
def test_what_differs_has_another_fingerprint(other: Job) -> None:
    assert JOB.fingerprint("code") == Job("train", "name: x\n", "s3://bucket/root", ("a=1",)).fingerprint("code")
    assert JOB.fingerprint("code") != other.fingerprint("code")
    assert JOB.fingerprint("code") != JOB.fingerprint("newer code")


@pytest.mark.parametrize("name", ["a", "train-1", "a" * 40])
def test_a_name_every_place_takes(name: str) -> None:
    assert jobs.checked_id(name) == name


@pytest.mark.parametrize("name", ["", "A", "1a", "a-", "-a", "a_b", "a.b", "a/../b", "a" * 41, "a\n"])
def test_a_name_some_place_refuses(name: str) -> None:
    with pytest.raises(UsageError, match="--name"):
        jobs.checked_id(name)


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (State("a", "succeeded", 0), 0),
        (State("a", "succeeded"), 0),
        (State("a", "failed", 2), 2),
        (State("a", "failed", 143), 143),
        (State("a", "failed", -9), 137),
        (State("a", "failed"), 1),
        (State("a", "failed", 0), 1),
        (State("a", "failed", 256), 1),
        (State("a", "stopped", -15), 143),
        (State("a", "stopped"), 143),
    ],
)
def test_a_shell_would_report_the_same_exit_code(state: State, code: int) -> None:
    assert state.own_exit_code == code


def test_a_run_with_a_base_is_sent_whole(tmp_path: Path) -> None:
    variant = RUNS / "ablations" / "adamw_eps_1e5.yaml"
    job = jobs.read("train", variant, "s3://bucket/root", ())
    assert "base" not in yaml.safe_load(job.recipe)
    alone = tmp_path / "recipe.yaml"
    alone.write_text(job.recipe)
    assert train.load(alone) == train.load(variant)
    given = ("data.mix=mix/mine", "optimizer.eps=1e-7")
    alone.write_text(jobs.read("train", variant, "s3://bucket/root", given).recipe)
    assert train.load(alone, given) == train.load(variant, given)
    plain = RUNS / "olmo2_1b_stage1.yaml"
    assert jobs.read("train", plain, "s3://bucket/root", ()).recipe == plain.read_text()


def test_a_run_sent_whole_keeps_its_words_and_the_overrides_it_needs(tmp_path: Path) -> None:
    """`1e5` is a number to YAML 1.2 unless quoted, and not to 1.1; and a value that only an override puts right is not refused here."""
    variant = tmp_path / "my variant é.yaml"
    base = RUNS / "olmo2_190m.yaml"
    variant.write_text(f"base: {base}\nname: '1e5'\nsource: none\nchange: {{optimizer.eps: 1e-7, stop_tokens: 0}}\n")
    given = ("stop_tokens=4194304",)
    alone = tmp_path / "recipe.yaml"
    alone.write_text(jobs.read("train", variant, "s3://bucket/root", given).recipe)
    assert train.load(alone, given) == train.load(variant, given)
    assert train.load(alone).name == "1e5"


def test_a_relative_root_is_this_folder_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("model: m\n")
    assert jobs.read("eval", Path("r.yaml"), "runs", ()).root == str(tmp_path / "runs")
    assert jobs.read("eval", Path("r.yaml"), "gs://b/p", ()).root == "gs://b/p"


def test_a_recipe_that_cannot_be_read(tmp_path: Path) -> None:
    for content in (None, b"\xff\xfe"):
        path = tmp_path / "r.yaml"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UsageError, match="cannot be read"):
            jobs.read("data", path, "/root", ())
