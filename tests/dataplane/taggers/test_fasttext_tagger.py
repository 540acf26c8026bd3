"""fastText scores as DCLM computes them, through the kernel and through the library; a file that is not the recipe's is refused."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fasttext
import pytest

from dataplane import documents, tagger
from dataplane.kernels import fasttext as kernel
from dataplane.taggers import fasttext as taggers
from dataplane.taggers.table import TAGGERS
from triplane import storage
from triplane.errors import Refused, UsageError

SENTENCES = {
    "hq": ["the theorem follows from the lemma above", "we measure the mass of the sample", "a proof by induction"],
    "cc": ["buy cheap watches now", "click here to win a prize", "best deals on the web today"],
}
LANGUAGES = {
    "en": ["the house is old and the river is wide", "we went to the market in the morning"],
    "de": ["das haus ist alt und der fluss ist breit", "wir gingen am morgen auf den markt"],
    "fr": ["la maison est vieille et le fleuve est large", "nous sommes allés au marché le matin"],
}
TEXTS = [
    "  the theorem\nfollows\r\nfrom the lemma\u2028above \u00a0",
    "click here\x85to win",
    "words that it never saw",
    "",
    " \n ",
    "das haus und der fluss",
]
# In a process with a used heap the library trains from an output matrix that is not zero: see tests/dataplane/kernels/test_fasttext.py.
TRAIN = "import json, sys, fasttext\nfasttext.train_supervised(sys.argv[1], **json.loads(sys.argv[2])).save_model(sys.argv[3])\n"


def train(folder: Path, sentences: dict[str, list[str]], **options: object) -> dict[str, str]:
    """-> {"model": path, "sha256": its hash}."""
    lines = [f"__label__{label} {text}" for label, texts in sentences.items() for text in texts] * 5
    (folder / "train.txt").write_text("\n".join(lines) + "\n")
    settings = {"dim": 200, "bucket": 500, "epoch": 20, "lr": 0.3, "thread": 1, "verbose": 0, "minCount": 1} | options
    path = folder / "model.bin"
    subprocess.run(
        [sys.executable, "-c", TRAIN, str(folder / "train.txt"), json.dumps(settings), str(path)],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1024"},
        check=True,
    )
    return {"model": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.fixture(scope="module")
def quality(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return train(tmp_path_factory.mktemp("quality"), SENTENCES, wordNgrams=2)


@pytest.fixture(scope="module")
def languages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return train(tmp_path_factory.mktemp("languages"), LANGUAGES, minn=2, maxn=3)


def tag(name: str, texts: list[str], params: dict[str, str]) -> list[dict[str, Any]]:
    one = TAGGERS[name]
    checked = one.params(**params)
    columns = one.tag(documents.make_batch(range(len(texts)), ["x"] * len(texts), texts), checked)
    assert columns.schema == one.columns(checked) and columns.num_rows == len(texts)
    return columns.to_pylist()


def dclm_score(model: Any, content: str) -> float:
    """mlfoundations/dclm classify_fasttext_hq_prob, as it stands."""
    labels, probabilities = model.predict(" ".join(content.strip().splitlines()))
    return float(1 - probabilities[0]) if labels[0] == "__label__cc" else float(probabilities[0])


def test_quality_is_what_dclm_computes(quality: dict[str, str]) -> None:
    assert isinstance(kernel.load(Path(quality["model"])), kernel.FasttextModel)
    model = fasttext.load_model(quality["model"])
    rows = tag("fasttext_quality", TEXTS, quality | {"label": "hq"})
    for text, row in zip(TEXTS, rows, strict=True):
        assert row["quality_score"] == pytest.approx(dclm_score(model, text), abs=1e-6)
    assert rows[0]["quality_score"] > 0.9 and rows[1]["quality_score"] < 0.1


def test_the_likelier_label_decides_which_side_is_rounded(quality: dict[str, str]) -> None:
    """The library's probabilities are each 1e-5 too high: the complement of the likelier differs from the label's own by 2e-5."""
    model = fasttext.load_model(quality["model"])
    labels, scores = model.predict("click here to win", k=-1)
    own = dict(zip(labels, scores, strict=True))["__label__hq"]
    [row] = tag("fasttext_quality", ["click here to win"], quality | {"label": "__label__hq"})
    assert own - row["quality_score"] == pytest.approx(2e-5, abs=2e-6)


def test_presets(quality: dict[str, str]) -> None:
    [rule] = TAGGERS["fasttext_quality"].rules
    assert (taggers.DCLM_BASELINE, taggers.DOLMINO) == (0.018112, 0.03311014)
    assert tagger.first_match((rule,), {"quality_score": 0.018111}) == "dclm_quality"
    assert tagger.first_match((rule,), {"quality_score": 0.018112}) is None  # at the threshold it is kept


def test_math_has_its_own_column(quality: dict[str, str]) -> None:
    both = quality | {"label": "hq"}
    assert [row["math_score"] for row in tag("fasttext_math", TEXTS, both)] == [
        row["quality_score"] for row in tag("fasttext_quality", TEXTS, both)
    ]


def test_languages_through_the_library(languages: dict[str, str]) -> None:
    """A model with subwords, which the kernel leaves to the library."""
    with pytest.raises(kernel.Unsupported):
        kernel.load(Path(languages["model"]))
    model = fasttext.load_model(languages["model"])
    rows = tag("language_id", TEXTS, languages | {"label": "de"})
    for text, row in zip(TEXTS, rows, strict=True):
        labels, scores = model.predict(" ".join(text.strip().splitlines()), k=-1)
        known = dict(zip(labels, scores, strict=True))
        assert row["language"] == (labels[0].removeprefix("__label__") if labels else "")
        assert row["language_score"] == pytest.approx(known.get("__label__de", 0.0), abs=1e-6)
    assert rows[-1]["language"] == "de"
    assert tagger.first_match(TAGGERS["language_id"].rules, rows[0]) == "language"
    assert tag("language_id", [], languages | {"label": "de"}) == []


def test_another_file_is_refused(quality: dict[str, str], tmp_path: Path) -> None:
    changed = tmp_path / "model.bin"
    data = bytearray(Path(quality["model"]).read_bytes())
    data[-1] ^= 1
    changed.write_bytes(data)
    with pytest.raises(Refused, match="the recipe says " + quality["sha256"]):
        tag("fasttext_quality", ["x"], {"model": str(changed), "sha256": quality["sha256"], "label": "hq"})
    with pytest.raises(ValueError, match="sha256"):
        TAGGERS["fasttext_quality"].params(model=str(changed), sha256="abc", label="hq")


def test_an_unknown_label_names_those_there_are(quality: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"__label__(cc, __label__hq|hq, __label__cc)"):
        tag("fasttext_quality", ["x"], quality | {"label": "good"})


def test_a_model_on_s3(quality: dict[str, str], s3_root: str) -> None:
    url = storage.join(s3_root, "models/quality.bin")
    storage.put_file(url, Path(quality["model"]))
    remote = {"model": url, "sha256": quality["sha256"], "label": "hq"}
    assert tag("fasttext_quality", TEXTS, remote) == tag("fasttext_quality", TEXTS, quality | {"label": "hq"})
    wrong = remote | {"sha256": "0" * 64}
    with pytest.raises(Refused):
        tag("fasttext_quality", TEXTS, wrong)
