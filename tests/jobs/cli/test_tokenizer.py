"""`triplane tokenizer train` as a user calls it."""

import gzip
import json
from pathlib import Path

import pytest
import zstandard
from typer.testing import CliRunner

from jobs.cli import app
from triplane.tokenizer import Tokenizer

TEXT = "the cat sat on the mat, and the cat ran\n" * 40


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """The same document as JSON lines in each compression, and as text."""
    folder = tmp_path / "documents"
    folder.mkdir()
    line = json.dumps({"id": "1", "text": TEXT}).encode() + b"\n"
    (folder / "a.jsonl").write_bytes(line)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(line))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(line + b"not a document\n"))
    (tmp_path / "plain.txt").write_text(TEXT)
    (tmp_path / "plain.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    return [str(folder), str(tmp_path / "plain.txt"), str(tmp_path / "plain.txt.gz")]


def arguments(inputs: list[str], output: Path, vocab_size: int = 310) -> list[str]:
    given = [word for url in inputs for word in ("--input", url)]
    return ["tokenizer", "train", *given, "--vocab-size", str(vocab_size), "--output", str(output)]


def test_trains_from_documents_and_text(inputs: list[str], tmp_path: Path) -> None:
    output = tmp_path / "new/tokenizer.json"
    done = CliRunner().invoke(app, [*arguments(inputs, output), "--json"])
    assert done.exit_code == 0, done.output
    tokenizer = Tokenizer.load(output)
    report = json.loads(done.stdout)
    assert report["vocab_size"] == tokenizer.vocab_size <= 310
    assert (report["files"], report["sha256"], report["output"]) == (5, tokenizer.sha256, str(output))
    assert "c.jsonl.zst: 1 records are not documents" in done.stderr
    assert len(tokenizer.encode(["the cat sat"])[0]) == 3


def test_the_same_again_is_fine_and_another_is_not_overwritten(inputs: list[str], tmp_path: Path) -> None:
    output = tmp_path / "tokenizer.json"
    assert CliRunner().invoke(app, arguments(inputs, output)).exit_code == 0
    first = output.read_bytes()
    assert CliRunner().invoke(app, arguments(inputs, output)).exit_code == 0
    other = CliRunner().invoke(app, arguments(inputs, output, vocab_size=285))
    assert other.exit_code == 3 and "exists and holds another tokenizer" in other.stderr
    assert output.read_bytes() == first


def test_dry_run_writes_nothing(inputs: list[str], tmp_path: Path) -> None:
    output = tmp_path / "tokenizer.json"
    done = CliRunner().invoke(app, [*arguments(inputs, output), "--dry-run", "--json"])
    assert done.exit_code == 0 and not output.exists()
    report = json.loads(done.stdout)
    assert report["dry_run"] is True and report["files"] == 5
    assert report["inputs"][-1].endswith("plain.txt.gz")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--vocab-size", "100"], "vocab size 100 is below 278"),
        (["--input", "absent.txt"], "absent.txt does not exist: check --input"),
        (["--input", "absent-folder"], "absent-folder holds no document files"),
    ],
)
def test_wrong_use(change: list[str], words: str, inputs: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*arguments(inputs, tmp_path / "tokenizer.json"), *change])
    assert done.exit_code == 2 and words in done.stderr


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    done = CliRunner().invoke(app, arguments([str(tmp_path / "latin1.txt")], tmp_path / "tokenizer.json"))
    assert done.exit_code == 1 and "latin1.txt is not whole UTF-8 text" in done.stderr
