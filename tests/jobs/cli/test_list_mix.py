"""`triplane data list-mix` as a user runs it: a list of files becomes a mix that batches are read from in AI2's order."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from trainplane.batches import Batches
from triplane import artifact, mixture, orders, path_list, vocabulary
from triplane.path_list import ListedFile

LENGTH = 16
SIZES = {"web/a/0.npy": 100, "web/a/1.npy": 7, "web/b/0.npy": 65}
CONFIGURATION = "data:\n  memmap_dtype: uint32\n  paths:\n" + "".join(f"    - {name}\n" for name in SIZES)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """files/: token files; words.json: a tokenizer; and the list as an OLMo configuration and as an OLMo-core mix."""
    for number, (name, count) in enumerate(SIZES.items()):
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (np.arange(count, dtype=np.uint32) + 100 * number).tofile(path)
    (tmp_path / "words.json").write_bytes(vocabulary.train(["some words", "and some more"] * 10, 300))
    (tmp_path / "theirs.yaml").write_text(CONFIGURATION)
    (tmp_path / "theirs.txt").write_text("".join(f"web,{{TOKENIZER}}/{name.removeprefix('web/')}\n" for name in SIZES))
    return tmp_path


def list_mix(place: Path, *arguments: str) -> tuple[int, str]:
    fixed = ["--root", str(place / "root"), "--name", "theirs", "--sequence-length", str(LENGTH), "--json"]
    done = CliRunner().invoke(app, ["data", "list-mix", *arguments, *fixed])
    return done.exit_code, done.stdout if done.exit_code == 0 else done.stderr


def test_a_list_becomes_a_mix_in_their_order(place: Path) -> None:
    words = ("--tokenizer", str(place / "words.json"), "--base", str(place / "files"))
    code, out = list_mix(place, str(place / "theirs.yaml"), *words)
    made = json.loads(out)
    assert code == 0 and (made["files"], made["unverified_files"], made["instances"]) == (3, 3, 6 + 0 + 4)
    assert made["sources"] == {"a": 6 * LENGTH, "b": 4 * LENGTH} and made["tokens"] == 10 * LENGTH
    root = str(place / "root")
    lock = mixture.load(artifact.artifact_url(root, made["mix"]))
    batches = Batches(root, lock, 6198, 2, False, order="olmo")
    seen = np.concatenate([batches.at(position).tokens_BT for position in range(5)])
    whole = [np.fromfile(place / "files" / name, "<u4") for name in SIZES]
    rows = np.concatenate([ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH) for ids in whole])
    np.testing.assert_array_equal(seen, rows[orders.epoch_indices(10, 6198)])
    assert list_mix(place, str(place / "theirs.yaml"), *words) == (code, out)  # found, not made again


def test_a_dry_run_writes_nothing(place: Path) -> None:
    words = ("--tokenizer", str(place / "words.json"), "--base", str(place / "files"))
    code, out = list_mix(place, str(place / "theirs.yaml"), *words, "--dry-run")
    assert code == 0 and json.loads(out)["mix"] is None and json.loads(out)["instances"] == 10
    assert not (place / "root").exists()


def test_a_mix_of_olmo_core_names_its_tokenizers_folder(place: Path) -> None:
    words = (str(place / "theirs.txt"), "--tokenizer", str(place / "words.json"), "--base", str(place / "files"))
    code, out = list_mix(place, *words, "--tokenizer-path", "web")
    assert code == 0 and json.loads(out)["sources"] == {"web": 10 * LENGTH}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("theirs.yaml", "--tokenizer", "words.json"), 1, "is in the list and does not exist"),
        (("thiers.yaml", "--tokenizer", "words.json", "--base", "files"), 1, "thiers.yaml"),
        (("theirs.yaml", "--tokenizer", "tokenizer/absent", "--base", "files"), 1, "tokenizer/absent"),
        (("theirs.txt", "--tokenizer", "words.json", "--base", "files"), 2, "the tokenizer if the paths hold {TOKENIZER}"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, words: str
) -> None:
    monkeypatch.chdir(place)
    found, error = list_mix(place, *arguments)
    assert found == code and words in error and not (place / "root").exists()


def test_only_paths_that_are_no_url_are_put_below_a_base() -> None:
    files = [ListedFile("", path) for path in ("a.npy", "/b.npy", "https://host/c.npy")]
    assert [one.path for one in path_list.below("s3://ai2-llm", files)] == [
        "s3://ai2-llm/a.npy",
        "/b.npy",
        files[2].path,
    ]
    assert path_list.below(None, files) == files
