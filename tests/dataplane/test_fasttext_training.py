"""fastText's training: the same bytes every time, and why that needs cleared memory."""

import platform
from pathlib import Path

import pytest

from dataplane import fasttext_training
from triplane import hashing
from triplane.errors import TriplaneError, UsageError

LINES = ["__label__hq the proof of the lemma\n", "__label__cc win a prize now\n"] * 20
SETTINGS = {"dim": 16, "wordNgrams": 2, "bucket": 500, "epoch": 3, "lr": 0.5, "minCount": 1}
DIRTY = {**fasttext_training.CLEARED_MEMORY, "MALLOC_PERTURB_": "1"}  # filled with 0xFE: as a float, a huge number


def train(folder: Path, **options: object) -> str:
    folder.mkdir()
    return hashing.sha256_file(fasttext_training.train(LINES, SETTINGS | options, folder))


def test_the_same_lines_and_settings_give_the_same_bytes(tmp_path: Path) -> None:
    first = train(tmp_path / "a")
    assert train(tmp_path / "b") == first
    assert train(tmp_path / "c", lr=0.6) != first


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told how to fill memory")
def test_without_cleared_memory_training_fails_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fasttext_training, "CLEARED_MEMORY", DIRTY)
    with pytest.raises(
        TriplaneError, match=r"ended with 1 \(RuntimeError: Encountered NaN\.\): lower the learning rate"
    ):
        train(tmp_path / "dirty")


def test_without_the_library_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fasttext_training, "PROGRAM", "import sys; sys.path.clear(); import fasttext")
    with pytest.raises(UsageError, match=r"fastText is not installed: install triplane\[data\]"):
        train(tmp_path / "absent")
