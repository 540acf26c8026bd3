"""fastText scored by the kernel: the library's own labels and probabilities, on any text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fasttext
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.kernels import fasttext as kernel
from triplane.errors import Corrupt

SENTENCES = {
    "hq": [
        "the theorem follows from the lemma above",
        "we measure the mass of the sample",
        "a proof by induction is short",
        "naïve café résumé",
    ],
    "cc": [
        "buy cheap watches now",
        "click here to win a prize",
        "best deals on the web today",
        "subscribe and win 100 % now",
    ],
}


TRAIN = """
import json, sys, fasttext
fasttext.train_supervised(sys.argv[1], **json.loads(sys.argv[2])).save_model(sys.argv[3])
"""


def train(folder: Path, **options: object) -> Path:
    lines = [f"__label__{label} {text}" for label, texts in SENTENCES.items() for text in texts] * 5
    (folder / "train.txt").write_text("\n".join(lines) + "\n")
    settings = {
        "dim": 200,
        "wordNgrams": 2,
        "bucket": 500,
        "epoch": 10,
        "lr": 0.1,
        "thread": 1,
        "verbose": 0,
        "minCount": 1,
    } | options
    path = folder / "model.bin"
    # The library never clears the memory of its output matrix, so in a process with a used heap training meets NaN. A fresh process that gets
    # every allocation of over 1 KB as fresh pages (which are zero) trains from zeros, and so deterministically.
    subprocess.run(
        [sys.executable, "-c", TRAIN, str(folder / "train.txt"), json.dumps(settings), str(path)],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1024"},
        check=True,
    )
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("fasttext"))


def scores(path: Path, texts: list[str], joins_lines: bool = False) -> dict[str, np.ndarray]:
    array = pa.array(texts, pa.large_string())
    offsets = np.frombuffer(array.buffers()[1], np.int64)[: len(texts) + 1]
    data = np.frombuffer(array.buffers()[2] or b"", np.uint8)
    model = kernel.load(path)
    return dict(zip(model.labels, kernel.score(model, offsets, data, joins_lines=joins_lines).T, strict=True))


def assert_equals_library(path: Path, text: str) -> None:
    labels, probabilities = fasttext.load_model(str(path)).predict(text, k=-1)
    ours = scores(path, [text])
    assert set(ours) == {"__label__hq", "__label__cc"}
    for label, probability in zip(labels, probabilities, strict=True):
        assert ours[label][0] == pytest.approx(probability, abs=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "the theorem follows",
        "",
        "   ",
        "win </s> the proof is not read",
        "__label__hq click here",
        "__label__unknown click here",
        "nul\x00separates words",
        "nbsp\u00a0does not\x1cnor this",
        "tabs\tand\vfeeds\f",
        "unseen words entirely zzz qqq",
        "naïve café \U0001f600 résumé",
        "longer_than_sixteen_bytes_word proof",
    ],
)
def test_equals_library(path: Path, text: str) -> None:
    assert_equals_library(path, text)


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\n"), max_size=60))
def test_equals_library_on_any_text(path: Path, text: str) -> None:
    assert_equals_library(path, text)


def test_joined_lines_are_scored_as_dclm_does(path: Path) -> None:
    text = "the theorem\r\nfollows\x1cfrom\x85the\u2028lemma"
    joined = scores(path, [" ".join(text.strip().splitlines())])
    assert scores(path, [text], joins_lines=True)["__label__hq"][0] == joined["__label__hq"][0]
    assert scores(path, [text])["__label__hq"][0] != joined["__label__hq"][0]


def test_documents_do_not_affect_each_other(path: Path) -> None:
    texts = ["the proof", "win a prize " * 2000, "the proof"]
    together = scores(path, texts)["__label__hq"]
    assert together[0] == together[2] == scores(path, ["the proof"])["__label__hq"][0]
    assert together[1] < 0.5 < together[0]


@pytest.mark.parametrize(
    ("options", "word"),
    [({"minn": 2, "maxn": 3}, "maxn"), ({"wordNgrams": 3}, "wordNgrams"), ({"loss": "ova"}, "loss")],
)
def test_what_the_kernel_does_not_cover_is_left_to_the_library(
    tmp_path: Path, options: dict[str, object], word: str
) -> None:
    with pytest.raises(kernel.Unsupported, match=word):
        kernel.load(train(tmp_path, **options))


def test_damaged_file_is_refused(path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "short.bin"
    damaged.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Corrupt, match="ends at"):
        kernel.load(damaged)
    damaged.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(Corrupt, match="not a fastText"):
        kernel.load(damaged)
